"""What has happened to the connections of this process: the last of it, in memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from .. import config
from ..journal import Journal

KINDS = (
    "opened",
    "closed",
    "connect failed",
    "cap exceeded",
    "deadline missed",
    "probe",
    "accepted",
    "hung up",
    "operator",
)
"""What can happen. ``hung up`` is the end of an accepted connection; ``operator``: somebody has
changed something from outside, or was refused."""


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

    @classmethod
    def from_dict(cls, given: Mapping[str, Any]) -> Happening:
        """Of ``dataclasses.asdict`` of one, from a process with another version of us, too."""
        known = {each.name for each in fields(cls)}
        return cls(**{name: value for name, value in given.items() if name in known})


journal: Journal[Happening] = Journal(config.Settings.history)
"""That of this process."""


def note(kind: str, peer: str, text: str = "") -> None:
    """Something has happened; from any thread, and from finalizers, too."""
    if config.current().history:
        journal.add(lambda sequence, when: Happening(sequence, when, kind, peer, text))


def apply() -> None:
    """Remember as much as the settings in force say."""
    journal.remember(config.current().history)


def after_fork() -> None:
    """In a forked child: what has happened has happened to the parent."""
    journal.clear()
