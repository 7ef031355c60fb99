"""What a forked child does with its parent's connections is nothing to the parent."""

from __future__ import annotations

import subprocess
import sys

import pytest

from .peers import peers

pytestmark = pytest.mark.integration

FORKING = """
import asyncio, os, sys
from tests.memory import message
from xoscar.backends.core import ActorCaller
from xoscar.backends.router import Router
import xoscar_idle
from xoscar_idle import registry

async def main(address):
    owner, router = ActorCaller(), Router([], None)
    assert (await owner.call(router, address, message(1))).result == 1
    mine = registry.here(owner)
    before = mine.connections()
    assert len(before) == 1
    if (pid := os.fork()) == 0:
        os._exit(0)
    await asyncio.to_thread(os.waitpid, pid, 0)
    for i in range(3):
        reply = await asyncio.wait_for(owner.call(router, address, message(i)), 10)
        assert reply.result == i
    assert mine.connections() == before, "another connection"
    await owner.stop()

if sys.argv[2] == "uvloop":
    import uvloop
    uvloop.install()
xoscar_idle.install(idle_timeout=30)
asyncio.run(main(sys.argv[1]))
"""


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_connections_of_the_parent_survive_a_fork(loop: str) -> None:
    with peers(1) as addresses:
        done = subprocess.run(
            [sys.executable, "-c", FORKING, addresses[0], loop],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert done.returncode == 0, done.stderr
