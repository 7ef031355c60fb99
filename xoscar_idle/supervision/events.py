"""What has happened to the sub-pools of this process, numbered without a gap; the last of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..journal import Journal
from ..versions import known_fields
from .lineage import Lineage

REMEMBERED = 1000
"""Events that are still told of."""


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
        return cls(**known_fields(cls, given))


class Events(Journal[Event]):
    """Those of the lineages of this process."""

    def happened(self, kind: str, lineage: Lineage, state: str, text: str = "") -> int:
        """Something has happened; its number."""
        found = lineage.subpool
        address, number, incarnation = lineage.address, lineage.number, lineage.incarnation
        pid, label = 0 if found is None else found.pid, lineage.label
        return self.add(
            lambda sequence, when: Event(
                sequence, when, kind, address, number, incarnation, pid, label, state, text
            )
        )


journal = Events(REMEMBERED)
"""That of this process."""
