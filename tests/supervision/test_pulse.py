"""Whether a loop answers: in virtual time, with a loop that answers when the test lets it."""

from __future__ import annotations

import asyncio
import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest

from xoscar_idle.supervision import health, pulse
from xoscar_idle.supervision.pulse import Pulse

from ..support.loops import AskedLoop
from ..support.waiting import BOUND


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The time, which the test moves."""
    made = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(pulse, "time", SimpleNamespace(monotonic=lambda: made.now))
    return made


@pytest.fixture
def loop() -> Any:
    return AskedLoop()


@pytest.fixture
def beating(loop: Any) -> Pulse:
    return Pulse(loop, threading.get_ident())


def test_one_that_was_never_asked(beating: Pulse, clock: Any) -> None:
    assert beating.lag(clock.now) == 0
    assert not beating.is_busy(clock.now + 1e6)


def test_how_long_it_took(beating: Pulse, loop: Any, clock: Any) -> None:
    beating.ask(clock.now)
    clock.now += 0.25
    assert loop.answer()
    clock.now += 5
    assert beating.lag(clock.now) == 0.25, "of its last answer, however long ago"
    beating.ask(clock.now)
    assert beating.lag(clock.now) == 0.25
    clock.now += 0.1
    assert beating.lag(clock.now) == 0.25, "it may be as quick as before"
    clock.now += 0.4
    assert beating.lag(clock.now) == pytest.approx(0.5)
    assert loop.answer()
    clock.now += 3
    assert beating.lag(clock.now) == pytest.approx(0.5)
    beating.ask(clock.now)
    assert loop.answer()
    assert beating.lag(clock.now) == 0


def test_one_question_at_a_time(beating: Pulse, loop: Any, clock: Any) -> None:
    """It counts from the first: it is that one which is not answered."""
    for _ in range(5):
        beating.ask(clock.now)
        clock.now += 0.5
    assert len(loop.asked) == 1
    assert beating.lag(clock.now) == 2.5
    assert loop.answer()
    beating.ask(clock.now)
    assert len(loop.asked) == 1


def test_one_that_is_silent_for_too_long_is_busy(beating: Pulse, loop: Any, clock: Any) -> None:
    beating.ask(clock.now)
    assert not beating.is_busy(clock.now + health.BUSY - 0.001)
    assert beating.is_busy(clock.now + health.BUSY)
    clock.now += 3600
    assert beating.is_busy(clock.now)
    assert loop.answer()
    assert not beating.is_busy(clock.now)
    assert beating.lag(clock.now) == 3600
    assert not beating.is_busy(clock.now + 3600), "nothing was asked since"


def test_one_that_is_closed_is_not_busy(beating: Pulse, loop: Any, clock: Any) -> None:
    loop.closed = True
    beating.ask(clock.now)
    assert not beating.is_busy(clock.now + 3600)
    assert beating.lag(clock.now + 3600) == 0


def test_one_that_is_closed_while_it_is_asked_is_not_busy(
    beating: Pulse, loop: Any, clock: Any
) -> None:
    """What it was asked last is never answered: its program has ended it, and its pool with it."""
    beating.ask(clock.now)
    loop.closed = True
    for _ in range(10):
        clock.now += 0.5
        beating.ask(clock.now)
    assert not beating.is_busy(clock.now)
    assert beating.lag(clock.now) < health.BUSY


def test_a_real_loop_that_is_closed_while_it_is_asked() -> None:
    loop = asyncio.new_event_loop()
    beating = Pulse(loop, threading.get_ident())
    beating.ask(1.0)
    loop.close()
    beating.ask(1000.0)
    assert not beating.is_busy(1000.0)


@pytest.mark.integration
def test_what_its_thread_does() -> None:
    """The innermost call first; nothing, when the thread has ended."""
    begun, go_on = threading.Event(), threading.Event()

    def waits_here() -> None:
        begun.set()
        go_on.wait(BOUND)

    thread = threading.Thread(target=waits_here)
    thread.start()
    assert thread.ident is not None
    beating = Pulse(AskedLoop(), thread.ident)  # type: ignore[arg-type]
    assert begun.wait(BOUND)
    told = beating.doing()
    assert "in wait" in told.split("File")[1]
    assert told.index("in wait\n") < told.index("in waits_here\n")
    go_on.set()
    thread.join(BOUND)
    assert beating.doing() == ""


async def test_a_real_loop_answers() -> None:
    loop = asyncio.get_running_loop()
    beating = Pulse(loop, threading.get_ident())
    begun = time.monotonic()
    beating.ask(begun)
    assert not beating.is_busy(begun + health.BUSY - 0.001)
    assert beating.is_busy(begun + health.BUSY), "it had no turn yet"
    while beating.is_busy(begun + health.BUSY):  # noqa: ASYNC110
        await asyncio.sleep(0)
    assert 0 < beating.lag(begun + 3600) < BOUND
