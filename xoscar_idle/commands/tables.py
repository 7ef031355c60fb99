"""Snapshots of processes as tables, and tables as plain text."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from operator import itemgetter
from pathlib import PurePath
from typing import Any

from ..connection.statistics import use
from ..telemetry.snapshot import Snapshot

GAP = "  "
ORDER = ("active", "idle", "retired", "closing")
"""In which connections of a process are listed: what is in use first."""


@dataclass(frozen=True)
class Column:
    """A column: its header, and its cell for what a row is about."""

    header: str
    cell: Callable[[Any], str]
    text: bool = False
    """Left-aligned; all others are numbers."""
    spare: int = 0
    """Where there is no room, the columns that can be spared are left out, 1 first; 0 never."""


@dataclass(frozen=True)
class Table:
    """Rows of cells under headers.

    The column number ``wide`` takes what room is left. Where that is less than ``needed``
    characters, columns that can be spared are left out.
    """

    columns: Sequence[Column]
    rows: Sequence[Sequence[str]]
    needed: int = 8
    wide: int = 1

    def plain(self, width: int) -> list[str]:
        """Its lines, none of them longer than ``width``."""
        cells = [[each.header for each in self.columns], *self.rows]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        wide = self.wide
        least = min(widths[wide], 8)
        needed, shown = max(least, min(widths[wide], self.needed)), list(range(len(widths)))
        spare = [i for i in shown if self.columns[i].spare]
        for each in sorted(spare, key=lambda i: self.columns[i].spare):
            if self._room(widths, shown, width) >= needed:
                break
            shown.remove(each)
        widths[wide] = max(least, min(widths[wide], self._room(widths, shown, width)))
        return [self._line(row, widths, shown)[:width].rstrip() for row in cells]

    def _line(self, row: Sequence[str], widths: list[int], shown: list[int]) -> str:
        return GAP.join(
            _clipped(row[i], widths[i]).ljust(widths[i])
            if self.columns[i].text
            else row[i].rjust(widths[i])
            for i in shown
        )

    def _room(self, widths: list[int], shown: list[int], width: int) -> int:
        """What is left for the wide column."""
        return width - sum(len(GAP) + widths[i] for i in shown if i != self.wide)


def _clipped(text: str, width: int) -> str:
    """As much as there is room for; an address at the beginning keeps its end, the port."""
    if len(text) <= width:
        return text
    address = text.partition(" ")[0]
    if len(address) == width:
        return address
    if len(address) < width or ":" not in address:
        return text[: width - 1] + "…"
    end = (width - 1) * 2 // 3
    return f"{address[: width - 1 - end]}…{address[-end:]}"


@dataclass(frozen=True)
class Page:
    """All that ``top`` shows at one moment."""

    title: str
    tables: list[Table]
    notes: list[str]
    first: int = 0
    """The row of all tables together with which it begins."""
    room: int = 0
    """How many rows there is room for."""

    def plain(self, width: int) -> str:
        """As text."""
        blocks = [[_clipped(self.title, width)], *(each.plain(width) for each in self.tables)]
        if self.notes:
            blocks.append([_clipped(each, width) for each in self.notes])
        return "\n\n".join("\n".join(block) for block in blocks)


def page(
    snapshots: Sequence[Snapshot],
    complaints: Sequence[str] = (),
    height: int | None = None,
    when: str = "",
    first: int = 0,
    keys: str = "",
) -> Page:
    """What there is to show: as many rows, from ``first`` on, as fit on ``height`` lines.

    ``keys`` says how to see the others.
    """
    states = [_state(each) for one in snapshots for each in one.connections]
    counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    title = f"{when}  {counted(len(snapshots), 'process', 'processes')}, ".lstrip() + (
        f"{counted(len(states), 'connection')}: {counts}" if states else "no connections"
    )
    notes = [f"{_name(each)}: {each.note}" for each in snapshots if each.note] + list(complaints)
    processes = [row(PROCESSES, each) for each in snapshots]
    connections = [each for one in snapshots for each in _connection_rows(one)]
    total = room = len(processes) + len(connections)
    if height is not None:
        notes = _some(notes, max(1, height // 3))
        # Title and, of each table that there is, a blank line and the headers.
        room = height - 1 - 2 * (bool(processes) + bool(connections)) - bool(notes) - len(notes)
        if total > room:
            room = max(1, room - 1 - (not notes))
            first = max(0, min(first, total - room))
            notes.append(f"rows {first + 1} to {min(first + room, total)} of {total}{keys}")
    if total <= room:
        first = 0
    shown = slice(first, first + room)
    processes, connections = (
        processes[shown],
        connections[max(0, first - len(processes)) : max(0, first + room - len(processes))],
    )
    tables = [_processes(processes, snapshots)] if processes else []
    if connections:
        tables.append(_connections(connections))
    return Page(title, tables, notes, first, room)


def _some(notes: list[str], most: int) -> list[str]:
    if len(notes) <= most:
        return notes
    rest = len(notes) - most + 1
    return [*notes[: most - 1], f"{rest} more notes, which xoscar-idle stats tells"]


def _processes(rows: Sequence[Sequence[str]], snapshots: Sequence[Snapshot]) -> Table:
    return Table(PROCESSES, rows, max(len(each.address or "") for each in snapshots))


def _connections(rows: Sequence[Sequence[str]]) -> Table:
    return Table(CONNECTIONS, rows, max(len(each[1].partition(" ")[0]) for each in rows))


def row(columns: Sequence[Column], about: Any) -> list[str]:
    """The cells of what a row is about."""
    return [each.cell(about) for each in columns]


def _connection_rows(one: Snapshot) -> Iterator[list[str]]:
    def order(connection: dict[str, Any]) -> tuple[int, str]:
        state = _state(connection)
        return ORDER.index(state) if state in ORDER else len(ORDER), _destination(connection)

    for each in sorted(one.connections, key=order):
        yield row(CONNECTIONS, {"pid": one.pid, **each})


def _process(one: Snapshot) -> str:
    program, *arguments = printable(one.command).split(" ")
    command = " ".join([PurePath(program).name, *arguments])
    return f"{one.address or ''} {command}".strip()


def _closed(told: dict[str, Any]) -> int:
    return sum(told["closed"].values())


def _destination(connection: dict[str, Any]) -> str:
    """Who is connected to; and over which route, where that is not the same."""
    route: str = connection["route"]
    address: str = connection.get("address") or route
    return address if address == route else f"{address} via {route}"


def _state(connection: dict[str, Any]) -> str:
    # The kernel, where it was asked, knows no references.
    return use(connection["state"], connection.get("references", 0))


def printable(text: str) -> str:
    """``text`` on one line, without what would do something to a terminal."""
    return _harmless(" ".join(text.split()))


def paragraphs(text: str, width: int, indent: str = "") -> list[str]:
    """The lines of ``text``, each as deep as it was, printable, and none longer than ``width``."""
    lines = []
    for line in map(_harmless, text.expandtabs().splitlines()):
        depth = indent + line[: len(line) - len(line.lstrip())]
        lines += textwrap.wrap(
            line.strip(),
            width,
            initial_indent=depth,
            subsequent_indent=depth,
            break_on_hyphens=False,
        )
    return lines


def _harmless(line: str) -> str:
    return "".join(each if each.isprintable() else "?" for each in line)


def name_of(pid: int | None, address: str | None) -> str:
    """What a process is called in a line about it."""
    if pid is None:
        return str(address)
    return f"{pid}" if address is None else f"{pid} at {address}"


def _name(one: Snapshot) -> str:
    return name_of(one.pid, one.address)


def _descriptors(one: Snapshot) -> str:
    if one.descriptors is None and one.descriptor_limit is None:
        return "-"
    count = "?" if one.descriptors is None else f"{one.descriptors}"
    return count if one.descriptor_limit is None else f"{count}/{one.descriptor_limit}"


def cell(value: object) -> str:
    """A figure, where it is known."""
    return "-" if value is None else str(value)


def counted(count: int, noun: str, plural: str | None = None) -> str:
    """So many of them, in words."""
    return f"{count} {noun if count == 1 else plural or noun + 's'}"


def duration(seconds: float | None) -> str:
    """As short as a table needs it."""
    if seconds is None:
        return "-"
    if seconds < 60:
        return f"{seconds:.1f}s"
    minutes = int(seconds) // 60
    if minutes < 60:
        return f"{minutes}m{int(seconds) % 60:02}s"
    if minutes < 60 * 24:
        return f"{minutes // 60}h{minutes % 60:02}m"
    return f"{minutes // 1440}d{minutes // 60 % 24:02}h"


def _told(figure: Callable[[dict[str, Any]], object]) -> Callable[[Snapshot], str]:
    """A figure of the statistics, where the process has told them."""
    return lambda one: cell(None if one.statistics is None else figure(one.statistics))


def _of(name: str, shown: Callable[[Any], str] = cell) -> Callable[[dict[str, Any]], str]:
    """A field of a connection, where it is known."""
    return lambda connection: shown(connection.get(name))


PROCESSES = (
    Column("PID", lambda one: cell(one.pid)),
    Column("PROCESS", _process, text=True),
    Column("OPEN", _told(itemgetter("open"))),
    Column("ACTIVE", _told(itemgetter("active")), spare=5),
    Column("IDLE", _told(itemgetter("idle")), spare=6),
    Column("CONN", _told(itemgetter("connecting")), spare=3),
    Column("REQS", _told(itemgetter("requests_in_flight")), spare=4),
    Column("OPENED", _told(itemgetter("opened")), spare=1),
    Column("CLOSED", _told(_closed), spare=2),
    Column("FDS", _descriptors),
)
"""Those of the table of processes; a row is about a :class:`Snapshot`."""

CONNECTIONS = (
    Column("PID", _of("pid")),
    Column("CONNECTION TO", _destination, text=True),
    Column("STATE", _state, text=True),
    Column("REQS", _of("in_flight")),
    Column("CALLS", _of("calls"), spare=3),
    Column("AGE", _of("age", duration), spare=2),
    Column("IDLE", _of("idle", duration)),
    Column("FD", _of("descriptor"), spare=1),
)
"""Those of the table of connections; a row is about a connection of a snapshot, and its PID."""


def details(one: Snapshot) -> str:
    """Everything that ``stats`` says of a process."""
    lines = [f"process {_name(one)}" + (f": {printable(one.command)}" if one.command else "")]
    told = one.statistics
    if told is not None:
        closed = ", ".join(f"{count} {reason}" for reason, count in told["closed"].items() if count)
        origins = told["origins"]
        settings = ", ".join(
            f"{name}={value} ({origins[name]})"
            for name, value in told["settings"].items()
            if origins[name] != "default"
        )
        lines += [
            f"  connections  {told['open']} open: {told['active']} active, {told['idle']} idle, "
            f"{told['retired']} retired; {told['connecting']} connecting",
            f"  requests     {told['requests_in_flight']} in flight",
            f"  opened       {told['opened']}",
            f"  closed       {_closed(told)}" + (f": {closed}" if closed else ""),
            f"  connects     {told['connects_failed']} failed, "
            f"{told['connect_seconds']:.3f} s spent connecting, "
            f"{told['cap_exceeded']} over the cap",
            f"  settings     {settings or 'all by default'}",
        ]
    lines.append(f"  descriptors  {_descriptors(one)}")
    if one.note:
        lines.append(f"  note         {one.note}")
    return "\n".join(lines)
