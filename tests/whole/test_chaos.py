"""A little chaos; ``make chaos`` makes more of it."""

from __future__ import annotations

import re
import sys

import pytest

from ..support.processes import run

pytestmark = pytest.mark.integration


@pytest.mark.timeout(240)
def test_every_call_is_settled_and_nothing_is_left() -> None:
    """One seed on asyncio, one on uvloop."""
    done = run(sys.executable, "-m", "tests.whole.chaos", "14", "2", "3", timeout=200)
    # The totals so far follow each seed: those after the last are the highest.
    counts = {what: int(n) for n, what in re.findall(r"^ *(\d+)  (.*)$", done.stdout, re.M)}
    assert counts.keys() & {"SIGKILL", "SIGSTOP"}, done.stdout  # a slow machine has time for few
    assert counts.keys() >= {"call echo answered", "connections closed: idle"}, done.stdout
