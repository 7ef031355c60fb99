"""The time that is measured is none that anybody sets."""

from __future__ import annotations

import sys

import pytest

from .support.processes import run

pytestmark = pytest.mark.integration

SETTING_THE_CLOCK = """
import asyncio, sys, time
real, offset = time.time, 0.0
time.time = lambda: real() + offset  # before anybody keeps the real one

from tests.support.memory import Network
from xoscar_idle import config
from xoscar_idle.connection.caller import ActorCaller

async def main(seconds):
    global offset
    config.use(config.Settings(idle_timeout=1))
    network, caller = Network(), ActorCaller()
    connection = await caller.get_client(network, "a:1")
    offset = seconds
    assert await caller.get_client(network, "a:1") is connection, "taken for overdue"
    for _ in range(200):
        if connection.closed:
            return
        await asyncio.sleep(0.05)
    raise AssertionError("never closed")

asyncio.run(main(float(sys.argv[1])))
"""


@pytest.mark.parametrize("seconds", [3600, -3600])
def test_setting_the_wall_clock_changes_nothing(seconds: int) -> None:
    run(sys.executable, "-c", SETTING_THE_CLOCK, str(seconds))
