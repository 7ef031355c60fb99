"""Showing what has happened to sub-pools and to connections, and what happens."""

from __future__ import annotations

import asyncio
import fnmatch
import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import click

from ..connection.history import KINDS, Happening
from ..logs import counted
from ..supervision.events import Event
from ..telemetry import web
from ..telemetry.history import Happened, History
from ..telemetry.snapshot import Snapshot
from ..telemetry.sources import CONNECTIONS, SUB_POOLS
from ..telemetry.targets import Target
from .interrupting import until_interrupted
from .listings import with_name
from .names import Name, Names, names
from .output import until_closed
from .tables import printable
from .times import brief, clock, day

WIDEST = 40
"""Characters of a column; what is longer moves the rest of its line."""

EVERY = 0.25
"""Seconds between two looks."""

PER_SECOND = 100
"""How many processes are asked at most: of more of them each is asked less often."""

KINDS_OF = {SUB_POOLS: ("state", "crash", "instruction"), CONNECTIONS: KINDS}
"""What can happen to which."""


@dataclass(frozen=True)
class Wanted:
    """What is shown of it."""

    since: float = -math.inf
    """Unix time."""
    until: float = math.inf
    """Unix time, itself included."""
    peer: str | None = None
    """A shell pattern of the other side, or of the address of the sub-pool."""
    kinds: tuple[str, ...] = ()
    """Of these alone; empty: of all."""
    last: int | None = None
    """Only so many, the last ones, of what has happened so far."""

    def of(self) -> list[str]:
        """Of what there is to be asked."""
        return [of for of, kinds in KINDS_OF.items() if not self.kinds or {*kinds} & {*self.kinds}]

    def has(self, row: Row) -> bool:
        """Whether that is shown."""
        if self.kinds and row.of not in self.kinds:
            return False
        # One that stands for several reaches from the first of them to the last.
        if row.last < self.since or row.when > self.until:
            return False
        # The brackets of an IPv6 address are none of a pattern.
        return self.peer in (None, row.peer) or fnmatch.fnmatchcase(row.peer, f"{self.peer}")


@dataclass(frozen=True)
class Row:
    """One of what has happened. Times are Unix times."""

    when: float
    last: float
    """When it happened last, where it stands for several."""
    process: str
    of: str
    """What kind it is of."""
    peer: str
    """The other side; of a sub-pool its address."""
    cells: tuple[str, ...]
    """The other side as it is shown, what happened, and why."""
    told: dict[str, Any] = field(compare=False)
    """For JSON."""


def events(named: Sequence[Target], wanted: Wanted, follow: bool, as_json: bool) -> int:
    """Print what has happened, and then what happens, if that is asked for; the exit status."""
    show = _Show(named, wanted, as_json)
    return until_closed(lambda: until_interrupted(show.run(follow)))


class _Show:
    def __init__(self, named: Sequence[Target], wanted: Wanted, as_json: bool) -> None:
        self._wanted = wanted
        self._as_json = as_json
        self._history = History(named, wanted.of(), wanted.since)
        self._only_urls = bool(named) and all(web.is_address(f"{each}") for each in named)
        # The name of one is on each line, where there is another.
        self._of_one = self._only_urls and len(named) == 1
        self._day = day(time.time())
        self._widths: list[int] = []
        self._pids: dict[int, str] = {}
        self._seen: Sequence[Snapshot] = ()
        self._names: Names = {}

    async def run(self, follow: bool) -> int:
        """The exit status."""
        complained: set[str] = set()
        printed, is_first = 0, True
        try:
            while True:
                happened, complaints = await self._history.look()
                for line in self._lines(happened, self._wanted.last if is_first else None):
                    click.echo(line)
                    printed += 1
                for each in [*self._remarks(happened), *complaints]:
                    if each not in complained:
                        click.echo(f"xoscar-idle: {printable(each)}", err=True)
                complained, is_first = set(complaints), False
                if not follow:
                    if not (printed or complaints):
                        click.echo(self._nothing(), err=True)
                    return 1 if complaints else 0
                await asyncio.sleep(max(EVERY, self._history.asked / PER_SECOND))
        finally:
            self._history.close()

    def _nothing(self) -> str:
        if self._wanted != Wanted():
            return "Nothing that is asked for has happened."
        to = "a sub-pool" if self._only_urls else "a sub-pool or a connection"
        return f"Nothing has happened to {to}."

    # -- what is missing ---------------------------------------------------------------------------

    def _remarks(self, happened: Sequence[Happened]) -> Iterator[str]:
        """What is to be said beside it, once."""
        since = self._wanted.since
        for one in happened:
            name, oldest = self._process(one), one.oldest
            if one.begins and one.remembered == 0:
                yield f"{name} remembers nothing of its connections: XOSCAR_HISTORY is 0 there"
            elif one.begins and one.missed and oldest is not None and -math.inf < since < oldest:
                of = " of its sub-pools" if one.of == SUB_POOLS else ""
                yield f"{name} remembers{of} no further than {brief(oldest, time.time())}"

    def _is_gap(self, one: Happened) -> bool:
        """Whether it is to be said in between that something is missing."""
        if one.missed == 0 or one.remembered == 0:
            return False
        # Who asks for a part is told only if that is not all there.
        is_part = self._wanted.since > -math.inf or self._wanted.last is not None
        return not (one.begins and is_part and one.missed is not None)

    # -- what has happened -------------------------------------------------------------------------

    def _lines(self, happened: Sequence[Happened], last: int | None) -> Iterator[str]:
        """That of all together, by time, behind what is missing."""
        for one in filter(self._is_gap, happened):
            yield json.dumps(_gap(one)) if self._as_json else self._missing(one)
        rows = [row for one in happened for row in self._rows(one) if self._wanted.has(row)]
        rows.sort(key=lambda row: row.when)
        rows = rows if last is None else rows[len(rows) - min(last, len(rows)) :]
        self._widen(rows)
        for row in rows:
            if self._as_json:
                yield json.dumps(row.told)
                continue
            if (at := day(row.when)) not in ("", self._day):
                yield f"-- {at} --"
                self._day = at
            cells = map(str.ljust, map(_on_one_line, self._cells(row)), (*self._widths, 0))
            yield "  ".join((clock(row.when), *cells)).rstrip()

    def _cells(self, row: Row) -> tuple[str, ...]:
        return row.cells if self._of_one else (row.process, *row.cells)

    def _widen(self, rows: Sequence[Row]) -> None:
        """Let the columns be as wide as what has been in them so far, within bounds."""
        for row in rows:
            widths = [min(len(_on_one_line(each)), WIDEST) for each in self._cells(row)[:-1]]
            before = self._widths or [0] * len(widths)
            self._widths = [max(pair) for pair in zip(before, widths, strict=True)]

    def _missing(self, one: Happened) -> str:
        name = self._process(one)
        if one.missed is None:
            return f"{'-' * 12}  {name} is another process by now"
        return f"{'-' * 12}  {counted(one.missed, 'event')} of {name} are forgotten"

    def _process(self, one: Happened) -> str:
        """What it is called, in front of what has happened in it."""
        if one.of == SUB_POOLS:
            return f"{one.name}"
        # PIDs of several machines can be the same.
        is_own = self._pids.setdefault(one.pid, one.journal) == one.journal
        return f"{one.pid}" if is_own or one.name == one.pid else f"{one.pid} at {one.name}"

    def _rows(self, one: Happened) -> Iterator[Row]:
        process = self._process(one)
        if self._seen is not self._history.snapshots:
            self._seen = self._history.snapshots
            self._names = names(self._seen)
        for each in one.events:
            if isinstance(each, Event):
                yield _of_sub_pool(one, process, each)
            else:
                yield _of_connection(one, process, each, self._names)


def _gap(one: Happened) -> dict[str, Any]:
    return {**_whose(one), "kind": "gap", "missed": one.missed}


def _whose(one: Happened) -> dict[str, Any]:
    if one.of == SUB_POOLS:
        return {"main": one.name}
    return {"pid": one.pid, "process": one.name}


def _of_sub_pool(one: Happened, process: str, event: Event) -> Row:
    who = f"pool {event.address or '?'} ({event.lineage}.{event.incarnation})"
    what = event.kind if event.kind == "crash" else event.state
    if event.kind == "instruction":
        what = f"instruction {event.state}"
    cells = who, what, event.text
    told = {**_whose(one), **vars(event)}
    return Row(event.when, event.when, process, event.kind, event.address, cells, told)


def _of_connection(one: Happened, process: str, event: Happening, known: Names) -> Row:
    last, text = event.when, event.text
    if event.until is not None:
        last = event.until
        text = f"{text}  ({event.times:,} times, until {clock(last)})"
    peer = with_name(event.peer, _name(event.peer, known)) or "-"
    told = {**_whose(one), **{name: getattr(event, name) for name in Happening.__slots__}}
    return Row(event.when, last, process, event.kind, event.peer, (peer, event.kind, text), told)


def _name(peer: str, known: Names) -> Name | None:
    """Which pool that is, without what may have been another one then."""
    name = known.get(peer)
    return None if name is None else replace(name, pid=None, actors=(), n_actors=0)


def _on_one_line(text: str) -> str:
    """On one line, with the gaps between columns as they are."""
    return "  ".join(printable(each) for each in text.split("  "))
