"""A little chaos; ``make chaos`` makes more of it."""

from __future__ import annotations

import sys

import pytest

from ..support.processes import run
from .chaos import ENOUGH_BOUND

pytestmark = pytest.mark.integration


@pytest.mark.timeout(3 * ENOUGH_BOUND)
def test_every_call_is_settled_and_nothing_is_left() -> None:
    """One seed on asyncio, one on uvloop, each until enough of everything has happened."""
    command = (sys.executable, "-m", "tests.whole.chaos", "enough", "2", "3")
    run(*command, timeout=2.5 * ENOUGH_BOUND)
