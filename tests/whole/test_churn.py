"""Loops that come and go in many threads; :mod:`tests.whole.churn` does it for long."""

from __future__ import annotations

import itertools

import pytest

from .churn import LOOPS, churn

pytestmark = pytest.mark.integration


@pytest.mark.parametrize("reconfigure", [False, True], ids=["cap", "settings that change"])
@pytest.mark.parametrize("loop", LOOPS)
def test_no_loop_dies_and_nothing_is_left(active: None, loop: str, reconfigure: bool) -> None:
    threads, count = (6, itertools.count()) if reconfigure else (30, itertools.count())
    outcome = churn(loop, threads, lambda: next(count) < 120, reconfigure)
    assert not outcome.errors
    assert outcome.loops == 120
