"""Snapshots of processes as tables, and tables as plain text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from .snapshot import Snapshot

GAP = "  "
ORDER = ("active", "idle", "retired", "closing")
"""In which connections of a process are listed: what is in use first."""


@dataclass(frozen=True)
class Table:
    """Rows of cells under headers. Column 1 is text, and takes what room is left; so is 2 where
    ``text`` says so. All others are numbers."""

    headers: Sequence[str]
    rows: Sequence[Sequence[str]]
    text: Sequence[int] = (1,)

    def plain(self, width: int) -> list[str]:
        """Its lines, none of them longer than ``width``."""
        cells = [self.headers, *self.rows]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        widths[1] = max(8, min(widths[1], widths[1] + width - sum(widths) - _gaps(widths)))
        return [self._line(row, widths)[:width].rstrip() for row in cells]

    def _line(self, row: Sequence[str], widths: list[int]) -> str:
        return GAP.join(
            _clipped(cell, width).ljust(width) if i in self.text else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )


def _gaps(widths: list[int]) -> int:
    return len(GAP) * (len(widths) - 1)


def _clipped(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"


@dataclass(frozen=True)
class Page:
    """All that ``top`` shows at one moment."""

    title: str
    tables: list[Table]
    notes: list[str]

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
) -> Page:
    """What there is to show; as many connections as fit on ``height`` lines."""
    states = [_state(each) for one in snapshots for each in one.connections]
    counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    title = f"{when}  {_number(len(snapshots), 'process', 'processes')}, ".lstrip() + (
        f"{_number(len(states), 'connection')}: {counts}" if states else "no connections"
    )
    notes = [f"{_name(each)}: {each.note}" for each in snapshots if each.note] + list(complaints)
    tables = [_processes(snapshots)] if snapshots else []
    if states:
        rows = [row for one in snapshots for row in _connection_rows(one)]
        if height is not None:
            # Title, two headers, the blank lines, and the one that says what is missing.
            room = max(1, height - len(snapshots) - len(notes) - 7)
            if len(rows) > room:
                notes.append(f"{len(rows) - room} more connections do not fit here")
                rows = rows[:room]
        tables.append(
            Table(
                ("PID", "CONNECTION TO", "STATE", "REQS", "CALLS", "AGE", "IDLE", "FD"),
                rows,
                text=(1, 2),
            )
        )
    return Page(title, tables, notes)


def _processes(snapshots: Sequence[Snapshot]) -> Table:
    counts = ("OPEN", "ACTIVE", "IDLE", "CONN", "REQS", "OPENED", "CLOSED")
    return Table(("PID", "PROCESS", *counts, "FDS"), [_process_row(each) for each in snapshots])


def _process_row(one: Snapshot) -> list[str]:
    told = one.statistics
    counts = ["-"] * 7
    if told is not None:
        counts = [str(told[name]) for name in ("open", "active", "idle", "connecting")]
        counts += [str(told["requests_in_flight"]), str(told["opened"])]
        counts.append(str(sum(told["closed"].values())))
    program, *arguments = one.command.split(" ")
    command = " ".join([PurePath(program).name, *arguments])
    name = f"{one.address or ''} {command}".strip()
    return [_cell(one.pid), name, *counts, _descriptors(one)]


def _connection_rows(one: Snapshot) -> Iterator[list[str]]:
    def order(connection: dict[str, Any]) -> tuple[int, str]:
        state = _state(connection)
        return ORDER.index(state) if state in ORDER else len(ORDER), connection["route"]

    for each in sorted(one.connections, key=order):
        yield [
            _cell(one.pid),
            each["route"],
            _state(each),
            _cell(each.get("in_flight")),
            _cell(each.get("calls")),
            _duration(each.get("age")),
            _duration(each.get("idle")),
            _cell(each.get("descriptor")),
        ]


def _state(connection: dict[str, Any]) -> str:
    state: str = connection["state"]
    if state != "open":
        return state
    return "active" if connection["references"] else "idle"


def _name(one: Snapshot) -> str:
    if one.pid is None:
        return str(one.address)
    return f"{one.pid}" if one.address is None else f"{one.pid} at {one.address}"


def _descriptors(one: Snapshot) -> str:
    if one.descriptors is None and one.descriptor_limit is None:
        return "-"
    count = "?" if one.descriptors is None else f"{one.descriptors}"
    return count if one.descriptor_limit is None else f"{count}/{one.descriptor_limit}"


def _cell(value: object) -> str:
    return "-" if value is None else str(value)


def _number(count: int, noun: str, plural: str | None = None) -> str:
    return f"{count} {noun if count == 1 else plural or noun + 's'}"


def _duration(seconds: float | None) -> str:
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


def details(one: Snapshot) -> str:
    """Everything that ``stats`` says of a process."""
    lines = [f"process {_name(one)}" + (f": {one.command}" if one.command else "")]
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
            f"  closed       {sum(told['closed'].values())}" + (f": {closed}" if closed else ""),
            f"  connects     {told['connects_failed']} failed, "
            f"{told['connect_seconds']:.3f} s spent connecting, "
            f"{told['cap_exceeded']} over the cap",
            f"  settings     {settings or 'all by default'}",
        ]
    lines.append(f"  descriptors  {_descriptors(one)}")
    if one.note:
        lines.append(f"  note         {one.note}")
    return "\n".join(lines)
