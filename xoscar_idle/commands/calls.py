"""Showing which calls are under way, by age, and what blocked processes do."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import click

from ..connection.loops import AT_REST, BLOCKED, Loop
from ..connection.underway import CONNECTING, Call
from ..logs import counted
from ..telemetry import calls as telling
from ..telemetry.calls import Underway
from ..telemetry.targets import Target
from .interrupting import until_interrupted
from .listings import with_name
from .names import Names, names, of_peer
from .output import until_closed
from .page import note
from .tables import (
    Column,
    Table,
    cell,
    clipped,
    columns,
    duration,
    hanging,
    name_of,
    paragraphs,
    printable,
    row,
)

INDENT = "    "

SHOWN_LINES = 20
"""Of a stack; the outermost calls say little, and are xoscar's."""

LONGEST = 40
"""Characters of the name of an actor and of a method in the table."""


@dataclass(frozen=True)
class Wanted:
    """Which calls are shown."""

    min_age: float = 0.0
    """Seconds."""
    text: str = ""
    """Only those with it in a cell, whatever its case."""

    def has(self, one: Row) -> bool:
        """Whether that is shown."""
        if one.call.seconds < self.min_age:
            return False
        text = self.text.casefold()
        return any(text in each.casefold() for each in row(CALLS, one))


@dataclass(frozen=True)
class Row:
    """A row about a call."""

    pid: int | None
    call: Call
    peer: str
    """The other side, and whose it is, if that is known."""


def calls(named: Sequence[Target], wanted: Wanted, as_json: bool, full: bool) -> int:
    """Print the calls of those that are named, the oldest first; the exit status.

    Parameters
    ----------
    full
        Stacks are printed to their ends.
    """
    return until_closed(lambda: until_interrupted(_show(named, wanted, as_json, full)))


async def _show(named: Sequence[Target], wanted: Wanted, as_json: bool, full: bool) -> int:
    seen, complaints = await telling.look(named)
    known = names([each.seen for each in seen])
    found = [(each, list(filter(wanted.has, _rows(each, known)))) for each in seen]
    if as_json:
        click.echo(json.dumps([_told(*each) for each in found], indent=2))
    elif seen:
        click.echo("\n".join(_text(found, columns(), full)))
    for each in [*complaints, *_remarks(seen)]:
        click.echo(f"xoscar-idle: {printable(each)}", err=True)
    return telling.exit_status(seen)


def _rows(one: Underway, known: Names) -> Iterator[Row]:
    for each in one.calls:
        name = of_peer(vars(each), known)
        if name is not None:  # the actor has a column of its own
            name = replace(name, actors=(), n_actors=0)
        peer = with_name(each.peer, name) or "-"
        yield Row(one.seen.pid, each, f"{peer} via {each.via}" if each.via else peer)


def _remarks(seen: Sequence[Underway]) -> Iterator[str]:
    """What is not all there."""
    for each in seen:
        if each.note:
            yield f"{_name(each)}: {each.note}"


def _told(one: Underway, rows: Sequence[Row]) -> dict[str, Any]:
    """For JSON."""
    return {
        "pid": one.seen.pid,
        "address": one.seen.address,
        "command": one.seen.command,
        "status": one.seen.status,
        "blocked": one.is_blocked,
        "told_by": one.told_by,
        "note": one.complaint or one.note or one.seen.note,
        "calls": [dataclasses.asdict(each.call) for each in rows],
        "left_out": one.left_out,
        "loops": [dataclasses.asdict(each) for each in one.loops],
    }


# -- text ------------------------------------------------------------------------------------------

Found = Sequence[tuple[Underway, Sequence[Row]]]


def _text(found: Found, width: int, full: bool) -> Iterator[str]:
    yield from hanging(_title(found), width, INDENT)
    if rows := [each for _, those in found for each in those]:
        rows.sort(key=lambda each: -each.call.seconds)
        needed = max(len(each.call.peer) for each in rows)
        cells = [row(CALLS, each) for each in rows]
        yield ""
        yield from Table(CALLS, cells, needed, CALLS.index(PEER)).plain(width)
    for one, _ in found:
        if one.left_out:
            more = counted(one.left_out, "younger call")
            yield from paragraphs(f"{_name(one)}: {more}, not listed", width)
    for one, _ in found:
        lines = list(_below(one, width, full))
        yield from ["", *lines] if lines else []


def _title(found: Found) -> str:
    calls = [each for one, _ in found for each in one.calls]
    shown = sum(len(rows) for _, rows in found)
    blocked = sum(one.is_blocked for one, _ in found)
    # Not how many together: one between two of the processes is there on both sides.
    sides = Counter(each.side for each in calls)
    told = ", ".join(f"{count} {printable(side)}" for side, count in sides.items())
    title = counted(len(found), "process", "processes")
    title += f" ({blocked} blocked)" if blocked else ""
    title += f", calls under way: {told}" if told else ", no calls under way"
    return title if shown == len(calls) else f"{title}; {shown} of them shown"


def _below(one: Underway, width: int, full: bool) -> Iterator[str]:
    """What there is to say of a process whose event loops do not run."""
    name = _name(one)
    if one.told_by is not None and one.seen.note:  # else that is a complaint
        yield from hanging(note(one.seen), width, INDENT)
    for each in one.loops:
        if each.state == BLOCKED:
            yield from hanging(f"{name}: {_blocked(one, each)}", width, INDENT)
            yield from _stack(each.stack, width, full)
        elif waiting := _waiting(one, each):
            what = f"{name}: no thread runs an event loop at present, {waiting}"
            yield from hanging(what, width, INDENT)


def _blocked(one: Underway, loop: Loop) -> str:
    thread = f" in {printable(loop.name)}" if loop.name else ""
    since = f", for {duration(loop.seconds)} at least" if loop.seconds else ""
    who = "" if one.told_by is None else ", as its main pool knows"
    return f"its event loop{thread} is blocked{since}{who}"


def _waiting(one: Underway, loop: Loop) -> str:
    """The calls that wait for somebody to run a loop; empty: there are none."""
    others = {each.thread for each in one.loops if each.state != AT_REST}
    if loop.state != AT_REST or loop.thread in others:
        return ""
    count = sum(each.thread == loop.thread for each in one.calls)
    return f"and {counted(count, 'call')} of it wait" if count else ""


def _stack(stack: str, width: int, full: bool) -> Iterator[str]:
    lines = stack.splitlines()
    if lines:
        yield from paragraphs("it is doing, the innermost call first:", width, INDENT)
    for line in lines if full else lines[:SHOWN_LINES]:
        yield from paragraphs(line, width, INDENT)
    if (rest := len(lines) - SHOWN_LINES) > 0 and not full:
        yield from paragraphs(f"  … {rest} more lines, which --full shows", width, INDENT)


def _name(one: Underway) -> str:
    return name_of(one.seen.pid, one.seen.address)


def _method(about: Row) -> str:
    call = about.call
    if call.method:
        return f"{clipped(printable(call.method), LONGEST)}()"
    if call.state == CONNECTING:
        return f"({counted(call.count, 'call')})"
    return f"({printable(call.kind)})"


PEER = Column("PEER", lambda about: printable(about.peer), text=True)

CALLS = (
    Column("AGE", lambda about: duration(about.call.seconds)),
    Column("PID", lambda about: cell(about.pid)),
    Column("SIDE", lambda about: printable(about.call.side), text=True, spare=1),
    PEER,
    Column("ACTOR", lambda about: clipped(printable(about.call.actor), LONGEST) or "-", text=True),
    Column("METHOD", _method, text=True),
    Column("STATE", lambda about: printable(about.call.state), text=True, spare=2),
)
"""A row is about a :class:`Row`."""
