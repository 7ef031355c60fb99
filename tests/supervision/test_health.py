"""The verdict on a living sub-pool, from every combination of facts on both sides of each bound."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from xoscar_idle.supervision.health import BEAT, BUSY, SILENT, Seen, Verdict, judge
from xoscar_idle.supervision.state import State

HANG = 60.0
JUST_BELOW = 1e-6
THREAD = (None, 0.0, BUSY, SILENT - JUST_BELOW, SILENT, 1e6)
LOOP = (None, 0.0, BUSY - JUST_BELOW, BUSY, HANG - JUST_BELOW, HANG, 1e6)
AGE = (None, 0.0, HANG - JUST_BELOW, HANG, 1e6)
FAULT = ("", "CUDA error: an illegal access")
EVERY = [
    (Seen(*facts), hang)
    for facts in itertools.product(THREAD, LOOP, (False, True), AGE, AGE, FAULT)
    for hang in (0.0, HANG)
]


def test_the_first_of_these_that_holds_is_the_verdict() -> None:
    for seen, hang in EVERY:
        age, idle = seen.oldest_request or 0.0, seen.no_progress
        loop = seen.loop_silent or 0.0
        expected = next(
            (state, says)
            for holds, state, says in (
                (seen.stopped, State.UNHEALTHY, "stopped: by a signal"),
                (seen.fault, State.UNHEALTHY, f"it raised {seen.fault}"),
                ((seen.thread_silent or 0.0) >= SILENT, State.UNHEALTHY, "no sign of life for "),
                (hang and loop >= hang, State.UNHEALTHY, "hung: its event loop"),
                (
                    hang and age >= hang and (idle is None or idle >= hang),
                    State.UNHEALTHY,
                    "hung: a request has been in process for ",
                ),
                (loop >= BUSY, State.BUSY, "its event loop has been blocked for "),
                (True, State.HEALTHY, ""),
            )
            if holds
        )
        verdict = judge(seen, hang)
        assert verdict.state is expected[0], (seen, hang)
        assert verdict.reason.startswith(expected[1]), (seen, hang)


def test_what_can_say_nothing_itself_is_told_apart() -> None:
    """Of that alone stacks are asked for: a stopped process writes none, any other has a thread."""
    for seen, hang in EVERY:
        verdict = judge(seen, hang)
        assert verdict.silent == verdict.reason.startswith("no sign of life")


def test_a_reason_comes_with_each_state_but_the_good_one() -> None:
    for seen, hang in EVERY:
        verdict = judge(seen, hang)
        assert (verdict.state is State.HEALTHY) == (not verdict.reason)
        assert verdict.state in (State.HEALTHY, State.BUSY, State.UNHEALTHY)


def test_of_which_nothing_is_known_it_is_healthy() -> None:
    assert judge(Seen(), HANG) == Verdict(State.HEALTHY)


@pytest.mark.parametrize(
    ("seen", "reason"),
    [
        (Seen(thread_silent=5.4), "no sign of life for 5 s: the GIL is held, or it gets no proc"),
        (Seen(loop_silent=61.0), "hung: its event loop has been blocked for 61 s"),
        (Seen(loop_silent=7.0), "its event loop has been blocked for 7 s"),
        (Seen(oldest_request=99.0), "hung: a request has been in process for 99 s, and none has"),
    ],
)
def test_a_reason_has_the_seconds(seen: Seen, reason: str) -> None:
    assert judge(seen, HANG).reason.startswith(reason)


def test_a_hang_is_no_sooner_than_asked_for_however_small() -> None:
    assert judge(Seen(loop_silent=0.5), 0.5).state is State.UNHEALTHY
    assert judge(Seen(loop_silent=0.4), 0.5).state is State.HEALTHY


def test_requests_that_end_show_that_a_long_one_is_none() -> None:
    """A pool that serves others meanwhile does not hang, however long one takes."""
    assert judge(Seen(oldest_request=1e6, no_progress=HANG - 1), HANG).state is State.HEALTHY
    assert judge(Seen(oldest_request=HANG - 1, no_progress=1e6), HANG).state is State.HEALTHY


def test_several_signs_are_missed_before_a_bound_is_reached() -> None:
    assert BUSY >= 3 * BEAT
    assert SILENT >= BUSY + 3 * BEAT


def test_what_is_hung_is_unhealthy_and_has_lasted() -> None:
    for seen, hang in EVERY:
        assert not judge(seen, 0).hung
        for lasted in (0.0, hang / 2, hang, 2 * hang):
            verdict = judge(replace(seen, unhealthy_for=lasted), hang)
            assert replace(verdict, hung=False) == replace(judge(seen, hang), hung=False)
            if verdict.hung:
                assert hang
                assert verdict.state is State.UNHEALTHY
            elif hang and verdict.state is State.UNHEALTHY:
                assert lasted < hang


@pytest.mark.parametrize(
    ("seen", "lasted", "hung"),
    [
        (Seen(stopped=True), HANG, True),
        (Seen(stopped=True), HANG - 1, False),
        (Seen(fault="CUDA error"), HANG, True),
        (Seen(thread_silent=SILENT), HANG, True),
        (Seen(loop_silent=HANG), 0.0, True),
        (Seen(loop_silent=BUSY), HANG, False),
        (Seen(), HANG, False),
    ],
)
def test_when_it_is_hung(seen: Seen, lasted: float, hung: bool) -> None:
    assert judge(replace(seen, unhealthy_for=lasted), HANG).hung is hung
