"""How often a sub-pool may fail, and when it is tried again. Time and chance are arguments."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

from .. import values

FIRST_DELAY, LONGEST_DELAY = 1.0, 60.0
"""Seconds before the second try in a row, and the most that there are: each is twice as long."""

JITTER = 0.2
"""The part of a delay by which it may be shorter or longer, so that not all come at once."""

STABLE = 600.0
"""Seconds of a run after which what was before does not count any more."""

STABLE_STARTS = 10.0
"""A run that is this many times as long as its start is stable, too, if it is as long as the period
in which failures are counted: what starts at once and dies soon after is not."""

IN_A_ROW = 5
"""Failures without a stable run between them that are too many, however far apart."""

LONGEST_COOLDOWN = 600.0


@dataclass(frozen=True)
class Limits:
    """What an operator allows: failures in so many seconds, and how long to leave it alone then.

    ``times`` None: as many as there are; ``period`` still tells what a stable run is. ``cooldown``
    0: until somebody asks.
    """

    times: int | None = 3
    period: float = 60.0
    cooldown: float = 60.0

    @classmethod
    def of(cls, restart_limit: str, restart_cooldown: float) -> Limits:
        """Those of the settings."""
        if restart_limit == "off":
            return cls(None, cooldown=restart_cooldown)
        times, period = values.times_per(restart_limit)
        return cls(times, period, restart_cooldown)


@dataclass(frozen=True)
class Plan:
    """What follows a failure."""

    at: float
    """When to try again; ``math.inf``: when somebody asks for it."""
    degraded: str = ""
    """Why it is left alone until then; empty: it is not."""


class Budget:
    """Of one lineage. All times are of one clock that goes on evenly.

    It is closed, and each failure is followed by a try; or open, and there is one try after each
    cool-down. A stable run, or :meth:`forget`, closes it.
    """

    def __init__(self) -> None:
        self._failures: deque[float] = deque()  # within the period, the oldest first
        self._in_a_row = 0
        self._cooldowns = 0  # so far without a stable run: it is open where there are any
        self._why = ""  # it has been opened last

    @property
    def is_open(self) -> bool:
        """Whether it has failed too often since its last stable run."""
        return self._cooldowns > 0

    def failed(
        self, now: float, limits: Limits, *, chance: float, start: float = 0.0, ran: float = 0.0
    ) -> Plan:
        """It has failed: a process has died, or none could be made to take its place.

        Parameters
        ----------
        chance
            From 0 to 1, for the jitter.
        start, ran
            Seconds that the process took until it could be used, and for which it was used then.
        """
        if ran >= stable_after(start, limits.period):
            self._in_a_row = self._cooldowns = 0
        self._failures.append(now)
        self._in_a_row += 1
        self._prune(now, limits)
        if why := self._too_often(limits):
            self._cooldowns += 1
            self._why = why
        return self.plan(now, limits, chance=chance)

    def plan(self, now: float, limits: Limits, *, chance: float) -> Plan:
        """What follows, where nothing has failed that counts."""
        if limits.times is None:
            self._cooldowns = 0
        if self.is_open:
            return self._cool_down(now, limits)
        if self._in_a_row <= 1:
            return Plan(now)
        # The exponent is bounded, as a float is.
        delay = min(LONGEST_DELAY, FIRST_DELAY * 2.0 ** min(self._in_a_row - 2, 30))
        return Plan(now + delay * (1 + JITTER * (2 * chance - 1)))

    def forget(self) -> None:
        """Nothing has ever failed."""
        self._failures.clear()
        self._in_a_row = self._cooldowns = 0

    def _prune(self, now: float, limits: Limits) -> None:
        while self._failures and now - self._failures[0] >= limits.period:
            self._failures.popleft()

    def _too_often(self, limits: Limits) -> str:
        if limits.times is None:
            return ""
        if self.is_open:
            return "it has failed again"
        if len(self._failures) > limits.times:
            return f"it has failed {_times(len(self._failures))} within {limits.period:g} s"
        if self._in_a_row >= IN_A_ROW:
            return f"it has failed {_times(self._in_a_row)} without a stable run between"
        return ""

    def _cool_down(self, now: float, limits: Limits) -> Plan:
        if not limits.cooldown:
            return Plan(math.inf, self._why)
        cooldown = limits.cooldown * 2.0 ** min(self._cooldowns - 1, 30)
        # One that is meant to be longer than the longest stays as it is.
        return Plan(now + min(cooldown, max(LONGEST_COOLDOWN, limits.cooldown)), self._why)


def stable_after(start: float, period: float) -> float:
    """Seconds of a run, after a start that took ``start``, from which on it is stable."""
    return min(STABLE, max(STABLE_STARTS * start, period))


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"
