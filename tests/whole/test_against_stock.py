"""What xoscar gets wrong in the code that is replaced, and what must not come along."""

from __future__ import annotations

import re
import sys

import pytest

from ..support.environment import environment
from ..support.processes import run
from .scenarios import SCENARIOS

pytestmark = pytest.mark.integration

NOISE = re.compile("destroyed but it is pending|never retrieved|unhandled exception|ignored")

LOOPS = ("asyncio", "uvloop")
# uvloop closes what is left open on a loop that is closed, so there stock gets it right, too.
RIGHT_IN_STOCK = {("closed_loops", "uvloop")}
WRONG_IN_STOCK = sorted({(s, loop) for s in SCENARIOS for loop in LOOPS} - RIGHT_IN_STOCK)


def outcome(scenario: str, loop: str, **settings: str) -> tuple[int, str]:
    command = (sys.executable, "-m", "tests.whole.scenarios", scenario, loop)
    done = run(*command, status=None, timeout=100, env=environment(**settings))
    return done.returncode, done.stderr


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_right_here(scenario: str, loop: str) -> None:
    status, stderr = outcome(scenario, loop, XOSCAR_IDLE_TIMEOUT="30")
    assert status == 0, stderr
    assert not NOISE.search(stderr), stderr


@pytest.mark.parametrize(("scenario", "loop"), WRONG_IN_STOCK)
def test_wrong_in_stock(scenario: str, loop: str) -> None:
    status, stderr = outcome(scenario, loop)
    assert status != 0 or NOISE.search(stderr), "xoscar has mended this: say so in the docs"
