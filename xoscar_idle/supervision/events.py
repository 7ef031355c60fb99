"""What has happened to the sub-pools of this process, numbered without a gap; the last of it."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ..locks import process_lock
from .lineage import Lineage

REMEMBERED = 1000
"""Events that are still told of."""


UNNAMED = "-"
"""The name of the journal of who knows no event yet."""


@dataclass(frozen=True)
class Event:
    """One of them, in values that JSON has."""

    sequence: int
    """Its number in this process, from 1."""
    when: float
    """Unix time."""
    kind: str
    """``state``: a sub-pool is in another one; ``crash``: it has died; ``instruction``."""
    address: str
    lineage: int
    incarnation: int
    pid: int
    label: str | None
    state: str
    """Of the sub-pool; of an instruction: what became of it."""
    text: str
    """Why, or what."""

    @classmethod
    def from_dict(cls, given: Mapping[str, Any]) -> Event:
        """Of :func:`vars` of one, from a process with another version of us, too."""
        known = {each.name for each in dataclasses.fields(cls)}
        return cls(**{name: value for name, value in given.items() if name in known})


class Journal:
    """The last events. Any thread adds and reads."""

    def __init__(self) -> None:
        self._lock = process_lock()
        self._listeners: list[Callable[[], None]] = []
        self.clear()

    def clear(self) -> None:
        """Begin anew, in another process."""
        self.name = f"{time.time_ns() // 1_000_000:x}.{os.getpid():x}"
        """That of this process's events: others have the same numbers."""
        self._last = 0
        self._events: deque[Event] = deque(maxlen=REMEMBERED)
        self._listeners.clear()

    @property
    def last(self) -> int:
        """The number of the last event; 0: there was none."""
        return self._last

    def add(self, kind: str, lineage: Lineage, state: str, text: str = "") -> int:
        """Something has happened; its number."""
        found = lineage.subpool
        with self._lock:
            self._last += 1
            self._events.append(
                Event(
                    sequence=self._last,
                    when=time.time(),
                    kind=kind,
                    address=lineage.address,
                    lineage=lineage.number,
                    incarnation=lineage.incarnation,
                    pid=0 if found is None else found.pid,
                    label=lineage.label,
                    state=state,
                    text=text,
                )
            )
            number, listeners = self._last, list(self._listeners)
        for each in listeners:
            with contextlib.suppress(Exception):  # who listens has gone, as a closed loop has
                each()
        return number

    def since(self, number: int) -> tuple[int, list[Event]]:
        """How many after that number are forgotten, and those that are not, the oldest first."""
        with self._lock:
            found = [each for each in self._events if each.sequence > number]
            return max(0, self._last - number - len(found)), found

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
        missed, events = self.since(at)
        return {
            "pid": os.getpid(),
            "journal": self.name,
            "missed": missed if is_known else None,
            "last": events[-1].sequence if events else at,
            "events": [vars(each) for each in events],
        }

    def listen(self, listener: Callable[[], None]) -> None:
        """Call ``listener``, in whichever thread, after each event. It must not wait."""
        with self._lock:
            if listener not in self._listeners:
                self._listeners.append(listener)

    def ignore(self, listener: Callable[[], None]) -> None:
        """Call it no more."""
        with self._lock, contextlib.suppress(ValueError):
            self._listeners.remove(listener)


journal = Journal()
"""That of this process."""
