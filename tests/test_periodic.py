"""The one task that sweeps, in virtual time."""

from __future__ import annotations

import asyncio
import math

from xoscar_idle.clock import Clock
from xoscar_idle.periodic import Periodic

from .support.memory import VirtualTimeLoop


class Alarm(Periodic):
    """Rings after 5 s, and then has nothing to wait for, or something later."""

    def __init__(self, clock: Clock, then: float) -> None:
        super().__init__(clock)
        self.begun = clock()
        self.at = self.begun + 5
        self.then = self.begun + then
        self.rang: list[float] = []

    def sweep(self, now: float) -> None:
        if now < self.at:
            return
        self.rang.append(now - self.begun)
        for at in (math.inf, self.then):  # as where the last of several goes, and another comes
            self.at = at
            self.ensure_check()
        self.then = math.inf

    def next_expiry(self, now: float) -> float:
        return self.at


def run(then: float) -> tuple[Alarm, asyncio.Task[None]]:
    loop = VirtualTimeLoop()

    async def main() -> tuple[Alarm, asyncio.Task[None]]:
        alarm = Alarm(loop.time, then)
        alarm.ensure_check()
        assert alarm._check is not None
        check = alarm._check
        await asyncio.sleep(20)
        return alarm, check

    try:
        return loop.run_until_complete(main())
    finally:
        loop.close()


def test_what_leaves_nothing_to_wait_for_does_not_cancel_the_check_that_does_it() -> None:
    alarm, check = run(math.inf)
    assert alarm.rang == [5]
    assert check.done()
    assert not check.cancelled()


def test_what_comes_within_a_sweep_is_waited_for_by_the_same_check() -> None:
    alarm, check = run(9)
    assert alarm.rang == [5, 9]
    assert not check.cancelled()
