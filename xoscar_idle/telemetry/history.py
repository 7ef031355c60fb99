"""What has happened to the sub-pools of main pools, told by those, a bit at a time."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from ..supervision.events import Event
from . import asking
from .asking import Question, Told
from .snapshot import Unobservable
from .targets import Target

QUESTION = "xoscar_idle events"
"""What a process with main pools is asked, with where to begin behind it."""


@dataclass(frozen=True)
class Position:
    """Up to where the events of a process are known."""

    number: int = 0
    journal: str = "-"
    """The name of what the number is one of; none is called so."""


@dataclass(frozen=True)
class Happened:
    """What a process has to tell since it was asked last."""

    name: Target
    """The process that was asked, or the address of the main pool."""
    missed: int | None
    """How many have been forgotten meanwhile; None: it is another process by now."""
    events: list[Event]
    position: Position


class History:
    """Asks those that are named, or else all that offer a monitor, for what they have not told."""

    def __init__(self, named: Sequence[Target]) -> None:
        self._named = named
        self._known: dict[Target, Position] = {}

    async def look(self) -> tuple[list[Happened], list[str]]:
        """What has happened since the last look, of each process of which there is; complaints."""
        seen, complaints = await asking.everybody(self._named, self._question)
        found: dict[Target, Happened] = {}
        for each in seen:
            try:
                read = _read(each)
            except Unobservable as error:
                complaints.append(str(error))
                continue
            self._known[each.asked] = read.position
            if read.missed != 0 or read.events:
                found[each.name] = read
        return list(found.values()), complaints

    def _question(self, target: Target) -> Question:
        at = self._known.get(target, Position())
        last = "0" if at == Position() else f"{at.journal}-{at.number}"
        text = f"{QUESTION} {at.number} {at.journal}"
        return Question(text, "/v1/events", "events", {"last-event-id": last})


def _read(told: Told) -> Happened:
    try:
        given = json.loads(told.text)
        events = [Event.from_dict(each) for each in given["events"]]
        missed = None if given["missed"] is None else int(given["missed"])
        position = Position(int(given["last"]), str(given["journal"]))
        return Happened(told.name, missed, events, position)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise Unobservable(f"{told.name} does not tell what happened: {error!r}") from None
