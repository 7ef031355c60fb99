"""What has happened in this process, numbered without a gap; the last of it."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Generic, Protocol, TypeVar

from .locks import process_lock

UNNAMED = "-"
"""The name of the journal of who knows no entry yet."""


class Entry(Protocol):
    """What a journal keeps: a dataclass of values that JSON has."""

    @property
    def sequence(self) -> int:
        """Its number in this process, from 1."""


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
        self._entries: deque[T] = deque(maxlen=self._remembered)
        self._listeners.clear()

    def remember(self, number: int) -> None:
        """Keep so many from now on."""
        with self._lock:
            if number != self._remembered:
                self._remembered = number
                self._entries = deque(self._entries, maxlen=number)

    @property
    def last(self) -> int:
        """The number of the last entry; 0: there was none."""
        return self._last

    def add(self, make: Callable[[int, float], T]) -> int:
        """Add what ``make`` gives for a number and the time (Unix); its number."""
        with self._lock:
            # A finalizer, which may run in what follows, may add one, too: that one is later.
            number = self._last = self._last + 1
            self._entries.append(make(number, time.time()))
            listeners = list(self._listeners)
        for each in listeners:
            with contextlib.suppress(Exception):  # who listens has gone, as a closed loop has
                each()
        return number

    def since(self, number: int) -> tuple[int, list[T]]:
        """How many after that number are forgotten, and those that are not, the oldest first."""
        with self._lock:
            found = [each for each in self._entries if each.sequence > number]
            missed = max(0, self._last - number - len(found))
        return missed, sorted(found, key=lambda each: each.sequence)

    def position(self, name: str, number: int) -> tuple[int, bool]:
        """After which number to begin for who knows that one of that journal; and whether it is
        this journal's. Of another one nothing is known: then it is the beginning."""
        if name == UNNAMED and number == 0:
            return 0, True
        known = name == self.name and 0 <= number <= self._last
        return (number if known else 0), known

    def told(self, name: str, number: int) -> dict[str, Any]:
        """What comes after a number of a journal, in values that JSON has, for who asks in turns.

        ``journal`` and ``last`` are what to ask with then; ``missed`` are those that are forgotten,
        None: it is not known how many, since the number is of another process.
        """
        at, is_known = self.position(name, number)
        missed, entries = self.since(at)
        return {
            "pid": os.getpid(),
            "journal": self.name,
            "missed": missed if is_known else None,
            "last": entries[-1].sequence if entries else at,
            "events": [dataclasses.asdict(each) for each in entries],  # type: ignore[call-overload]
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
