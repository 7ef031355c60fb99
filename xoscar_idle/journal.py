"""What has happened in this process, numbered without a gap; the last of it."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import time
from collections.abc import Callable
from typing import Any, Generic, Protocol, TypeVar

from .locks import process_lock

UNNAMED = "-"
"""The name of the journal of who knows no entry yet."""


class Entry(Protocol):
    """What a journal keeps: a dataclass of values that JSON has, none of which holds others."""

    @property
    def sequence(self) -> int:
        """Its number in this process, from 1."""

    @property
    def when(self) -> float:
        """Unix time."""


T = TypeVar("T", bound=Entry)


def process_name() -> str:
    """A name for this process that no other one has, also none that gets its number later."""
    return f"{time.time_ns() // 1_000_000:x}.{os.getpid():x}"


class Journal(Generic[T]):
    """The last entries, at most ``remembered``. Any thread adds and reads."""

    def __init__(self, remembered: int) -> None:
        self._lock = process_lock()
        self._listeners: list[Callable[[], None]] = []
        self._remembered = remembered
        self.clear()

    def clear(self) -> None:
        """Begin anew, in another process."""
        self.name = process_name()
        """That of this process's entries: others have the same numbers."""
        self._last = 0
        self._first = 1  # of those that are remembered, if there are any
        # A ring: each has its place by its number, and those after a number need no search.
        self._ring: list[T | None] = [None] * self._remembered
        self._listeners.clear()

    def remember(self, number: int) -> None:
        """Keep so many from now on."""
        with self._lock:
            if number == self._remembered:
                return
            before, self._ring = self._ring, [None] * number
            self._remembered = number
            self._first = max(self._first, self._last - len(before) + 1, self._last - number + 1)
            for each in before:
                if each is not None and each.sequence >= self._first:
                    self._put(each)

    def _put(self, entry: T) -> None:
        if self._ring:
            place = entry.sequence % len(self._ring)
            there = self._ring[place]
            if there is None or there.sequence < entry.sequence:
                self._ring[place] = entry

    @property
    def last(self) -> int:
        """The number of the last entry; 0: there was none."""
        return self._last

    @property
    def remembered(self) -> int:
        """How many are kept."""
        return self._remembered

    @property
    def oldest(self) -> T | None:
        """The first of those that are remembered; None: there is none."""
        _, found, _ = self._after(0, 1, -math.inf)
        return found[0] if found else None

    def add(self, make: Callable[[int, float], T]) -> int:
        """Add what ``make`` gives for a number and the time (Unix); its number."""
        with self._lock:
            # A finalizer, which may run in what follows, may add one, too: that one is later.
            number = self._last = self._last + 1
            self._put(make(number, time.time()))
            listeners = list(self._listeners)
        for each in listeners:
            with contextlib.suppress(Exception):  # who listens has gone, as a closed loop has
                each()
        return number

    def amend(self, number: int, change: Callable[[T], T | None]) -> bool:
        """Put what ``change`` makes of the entry of that number in its place; None: leave it.

        Whether that was done: it may be forgotten. It keeps its number: whoever has been told of it
        is not told again, and nobody is called.
        """
        with self._lock:
            there = self._ring[number % len(self._ring)] if self._ring else None
            if there is None or there.sequence != number or (new := change(there)) is None:
                return False
            place = number % len(self._ring)
            if self._ring[place] is there:  # else it has been forgotten since
                self._ring[place] = new
            return True

    def since(self, number: int) -> tuple[int, list[T]]:
        """How many after that number are forgotten, and those that are not, the oldest first."""
        missed, found, _ = self._after(number, None, -math.inf)
        return missed, found

    def _after(self, number: int, most: int | None, earliest: float) -> tuple[int, list[T], int]:
        """What comes after a number: how many are forgotten, and at most so many others, without
        those of before ``earliest``; and up to which number that is."""
        with self._lock:
            size, last = len(self._ring), self._last
            first = max(number + 1, self._first, last - size + 1)
            count = max(0, last - first + 1)
            if most is not None and earliest == -math.inf:
                count = min(count, most)
            at = first % size if size else 0
            # Copied, which is quick, and looked at without the lock: there may be a million.
            copied = self._ring[at : at + count]
            copied += self._ring[: count - len(copied)]
        found: list[T] = []
        looked_at, missed = max(number, first - 1), max(0, first - 1 - number)
        for each in copied:
            if most is not None and len(found) == most:
                break
            looked_at += 1
            if each is None or each.sequence != looked_at:
                missed += 1
            elif each.when >= earliest:
                found.append(each)
        return missed, found, looked_at

    def position(self, name: str, number: int) -> tuple[int, bool]:
        """After which number to begin for who knows that one of that journal; and whether it is
        this journal's. Of another one nothing is known: then it is the beginning."""
        if name == UNNAMED and number == 0:
            return 0, True
        known = name == self.name and 0 <= number <= self._last
        return (number if known else 0), known

    def told(
        self, name: str, number: int, most: int | None = None, earliest: float = -math.inf
    ) -> dict[str, Any]:
        """What comes after a number of a journal, in values that JSON has, for who asks in turns.

        ``journal`` and ``last`` are what to ask with then; ``missed`` are those that are forgotten,
        None: it is not known how many, since the number is of another process.

        Parameters
        ----------
        most
            At most so many; the others come when it is asked again, as long as ``last`` is not
            :attr:`last`.
        earliest
            Without those of before that time (Unix), none of which counts as missed.
        """
        at, is_known = self.position(name, number)
        missed, entries, last = self._after(at, most, earliest)
        names = [each.name for each in dataclasses.fields(entries[0])] if entries else []  # type: ignore[arg-type]
        return {
            "pid": os.getpid(),
            "journal": self.name,
            "missed": missed if is_known else None,
            "last": last,
            "events": [{each: getattr(entry, each) for each in names} for entry in entries],
        }

    def listen(self, listener: Callable[[], None]) -> None:
        """Call ``listener``, in whichever thread, after each entry. It must not wait."""
        with self._lock:
            if listener not in self._listeners:
                self._listeners.append(listener)

    def ignore(self, listener: Callable[[], None]) -> None:
        """Call it no more."""
        with self._lock, contextlib.suppress(ValueError):
            self._listeners.remove(listener)
