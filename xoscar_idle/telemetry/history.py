"""What has happened to sub-pools and connections of processes, told by these, a bit at a time."""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..connection.history import Happening
from ..journal import UNNAMED
from ..supervision.events import Event
from .asking import Question, Silent, Unanswered
from .snapshot import Snapshot, Unobservable
from .sources import CONNECTIONS, SUB_POOLS, Ask, Source, Sources
from .targets import Target

QUESTION = {SUB_POOLS: "xoscar_idle events", CONNECTIONS: "xoscar_idle happened"}
"""What a process is asked, with where to begin behind it."""

AGAIN = 10.0
"""Seconds after which one that did not answer in time is asked again; the others need not wait."""

_READ: dict[str, Callable[[Mapping[str, Any]], Event | Happening]] = {
    SUB_POOLS: Event.from_dict,
    CONNECTIONS: Happening.from_dict,
}


@dataclass(frozen=True)
class Position:
    """Up to where what a process tells is known."""

    number: int = 0
    journal: str = UNNAMED
    """The name of what the number is one of; none is called so."""


@dataclass(frozen=True)
class Happened:
    """What a process has to tell since it was asked last."""

    name: Target
    """As it is named, or the address of its pool."""
    of: str
    """:data:`SUB_POOLS` or :data:`CONNECTIONS`."""
    pid: int
    missed: int | None
    """How many have been forgotten meanwhile; None: it is another process by now."""
    events: Sequence[Event | Happening]
    position: Position
    newest: int
    """The number of the last that there is."""
    oldest: float | None
    """Unix time of the first that is remembered; None: there is none."""
    remembered: int | None = None
    """How many can be; None: it is not told."""
    begins: bool = False
    """Whether it is all that this process remembers, as far as it was asked for."""

    @property
    def journal(self) -> str:
        """Which no other process has."""
        return self.position.journal


class History:
    """Asks those that are named, or else all that offer a monitor, for what they have not told.

    Parameters
    ----------
    of
        Of what it is to be told.
    since
        What has happened before that time (Unix) need not be told.
    """

    def __init__(
        self,
        named: Sequence[Target],
        of: Collection[str] = (SUB_POOLS, CONNECTIONS),
        since: float = -math.inf,
    ) -> None:
        self.asked = 0
        """How many were asked at the last look."""
        self._sources = Sources(named)
        self._of = of
        self._since = since
        self._known: dict[tuple[Target, str], Position] = {}
        self._silent: dict[tuple[type, Target], tuple[float, str | None]] = {}

    @property
    def snapshots(self) -> list[Snapshot]:
        """The processes of the pools that are named, when they were last looked at."""
        return self._sources.seen

    def close(self) -> None:
        """Wait for nobody any more."""
        self._sources.close()

    async def look(self) -> tuple[list[Happened], list[str]]:
        """What has happened since the last look, of each process once; complaints."""
        sources, complaints = await self._sources.now()
        self.asked = len(sources)
        seen = await asyncio.gather(*map(self._ask, sources))
        found: dict[tuple[str, str], Happened] = {}
        for told, complaint in seen:
            for each in told:
                found.setdefault((each.of, each.journal), each)
            if complaint is not None:
                complaints = [*complaints, complaint]
        return list(found.values()), list(dict.fromkeys(complaints))

    async def _ask(self, source: Source) -> tuple[list[Happened], str | None]:
        """What one tells, and what is wrong with it."""
        way = type(source), source.name
        until, complaint = self._silent.get(way, (0.0, None))
        if time.monotonic() < until:
            return [], complaint
        found: list[Happened] = []
        complaint = None
        try:
            async with source.conversation() as ask:
                for of in source.tells:
                    if of not in self._of:
                        continue
                    try:
                        found.append(await self._turn(source.name, of, ask))
                    except (Silent, Unanswered):
                        raise
                    except Unobservable as error:  # the other can be known there all the same
                        complaint = complaint or str(error)
        except Silent as error:
            # Of those that nobody has named one has just begun, or ended.
            return found, str(error) if self._sources.named else None
        except Unobservable as error:
            complaint = str(error)
            if isinstance(error, Unanswered):
                self._silent[way] = time.monotonic() + AGAIN, complaint
        return found, complaint

    async def _turn(self, name: Target, of: str, ask: Ask) -> Happened:
        """All that one has not told, of which an answer may have a part."""
        at = self._known.get((name, of), Position())
        begins, told, end = at == Position(), list[Happened](), 0
        while not told or at.number < end:
            told.append(read := _read(name, of, await ask(self._question(of, at))))
            if read.position == at:
                break  # it tells no more, whatever it says
            if at.journal != read.journal or len(told) == 1:
                end = read.newest  # what comes meanwhile is for the next look
            at = read.position
        self._known[name, of] = at
        missed = [each.missed for each in told]
        return replace(
            told[-1],
            missed=None if None in missed else sum(filter(None, missed)),
            events=[event for each in told for event in each.events],
            oldest=told[0].oldest,
            begins=begins or None in missed,
        )

    def _question(self, of: str, at: Position) -> Question:
        last = "0" if at == Position() else f"{at.journal}-{at.number}"
        text = f"{QUESTION[of]} {at.number} {at.journal}"
        if of == CONNECTIONS and self._since > -math.inf:
            text = f"{text} {self._since!r}"
        return Question(text, "/v1/events", of, {"last-event-id": last})


def _read(name: Target, of: str, text: str | bytes) -> Happened:
    try:
        given = json.loads(text)
        events = [_READ[of](each) for each in given["events"]]
        if not all(isinstance(each.when, (int, float)) for each in events):
            raise TypeError("a time is none")
        position = Position(int(given["last"]), str(given["journal"]))
        oldest = given["oldest"] if "oldest" in given else events[0].when if events else None
        return Happened(
            name,
            of,
            int(given["pid"]),
            None if given["missed"] is None else int(given["missed"]),
            events,
            position,
            int(given.get("newest", position.number)),
            None if oldest is None else float(oldest),
            given.get("remembered"),
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise Unobservable(f"{name} does not tell what happened: {error!r}") from None
