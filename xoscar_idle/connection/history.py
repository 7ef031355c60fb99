"""What has happened to the connections of this process: the last of it, in memory."""

from __future__ import annotations

import dataclasses
import math
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .. import config
from ..journal import Journal
from ..versions import known_fields

KINDS = (
    "opened",
    "closed",
    "connect failed",
    "cap exceeded",
    "deadline missed",
    "probe",
    "accepted",
    "hung up",
    "unused",
    "operator",
)
"""What can happen. ``probe``: one without an answer; ``hung up``: the end of an accepted
connection; ``unused``: that of one over which no request came; ``operator``: somebody has changed
something from outside, or was refused."""

REPEATED = ("connect failed", "cap exceeded", "deadline missed", "probe", "unused")
"""Of these there may be thousands in a second: a loop that calls a peer that is gone makes them. So
the same once more, but for the figures in its text, is counted where it stands."""

COUNTED_FOR = 60.0
"""Seconds; what repeats for longer stands there once more."""

MOST_COUNTED = 1000
"""So many different ones at a time; of more, some stand there more often."""

LONGEST = 500
"""Characters of a text: it may be that of an error, which has any length."""

AT_ONCE = 1000
"""How many one answer has: it must be sent within two seconds, on one line."""

_FIGURE = re.compile(r"\b\d[\d.]*\b")


@dataclass(frozen=True, slots=True)
class Happening:
    """One of it, in values that JSON has."""

    sequence: int
    """Its number in this process, from 1."""
    when: float
    """Unix time."""
    kind: str
    """One of :data:`KINDS`."""
    peer: str
    """The address of the other side; empty: there is none."""
    text: str
    """Why, or what."""
    times: int = 1
    """How often; of what repeats, all is of the first time."""
    until: float | None = None
    """Unix time of the last one, where there are several."""

    @classmethod
    def from_dict(cls, given: Mapping[str, Any]) -> Happening:
        """Of ``dataclasses.asdict`` of one, from a process with another version of us, too."""
        return cls(**known_fields(cls, given))


class Happenings(Journal[Happening]):
    """Those of this process."""

    def clear(self) -> None:
        """Begin anew, in another process."""
        super().clear()
        self._counted: dict[tuple[str, str, str], int] = {}

    def happened(self, kind: str, peer: str, text: str) -> None:
        """Something has happened."""
        if len(text) > LONGEST:
            text = f"{text[: LONGEST - 3]}..."
        if kind not in REPEATED:
            self._add(kind, peer, text)
            return
        same = kind, peer, _FIGURE.sub("0", text)
        with self._lock:  # the same one: a finalizer may come here while it is held
            number = self._counted.get(same)
            if number is None or not self.amend(number, _once_more):
                if len(self._counted) >= MOST_COUNTED:
                    self._counted.clear()
                self._counted[same] = self._add(kind, peer, text)

    def _add(self, kind: str, peer: str, text: str) -> int:
        return self.add(lambda sequence, when: Happening(sequence, when, kind, peer, text))


def _once_more(first: Happening) -> Happening | None:
    now = time.time()
    if not 0 <= now - first.when < COUNTED_FOR:  # the clock may have been put back
        return None
    return dataclasses.replace(first, times=first.times + 1, until=now)


journal = Happenings(config.Settings.history)
"""That of this process."""


def note(kind: str, peer: str, text: str = "") -> None:
    """Something has happened; from any thread, and from finalizers, too."""
    if config.current().history:
        journal.happened(kind, peer, text)


def told(asked: str) -> dict[str, Any]:
    """What has happened after ``NUMBER JOURNAL``; ``NUMBER JOURNAL TIME``: without most of what was
    before that time (Unix): what has repeated until then, and longer, is there.

    As :meth:`.Journal.told` has it, :data:`AT_ONCE` at most; ``newest`` is the number of the last
    that there is, ``oldest`` the time of the first that is remembered, or None, and ``remembered``
    how many can be.
    """
    number, name, *earliest = asked.split(" ")
    since = float(earliest[0]) - COUNTED_FOR if earliest else -math.inf
    oldest, newest = journal.oldest, journal.last
    return {
        **journal.told(name, int(number), AT_ONCE, since),
        "newest": newest,
        "oldest": None if oldest is None else oldest.when,
        "remembered": journal.remembered,
    }


def apply() -> None:
    """Remember as much as the settings in force say."""
    journal.remember(config.current().history)


def after_fork() -> None:
    """In a forked child: what has happened has happened to the parent."""
    journal.clear()
