"""All that ``top`` shows at one moment, as many rows as fit."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from ..logs import counted
from ..telemetry.snapshot import ACTIVE, Snapshot
from . import peers
from .listings import CLIENTS, PEERS, VIEWS, Seen
from .ordering import Arranged, arranged
from .tables import Table, clipped, cut, hanging, name_of, printable
from .view import HELP, HINT, View

TITLE, HEADER, ROW, NOTE, FOOT = "title", "header", "row", "note", "foot"
"""What a line is."""

INDENT = "    "
"""Of all but the first line of what takes several."""


@dataclass(frozen=True)
class Page:
    """What is shown, and of how many rows."""

    title: str
    tables: Sequence[Table] = ()
    notes: Sequence[str] = ()
    foot: str = ""
    first: int = 0
    """The row of all tables together with which it begins."""
    room: int = 1
    """How many rows there is room for."""

    def lines(self, width: int) -> list[tuple[str, str]]:
        """Its lines, and what each of them is."""
        blocks = [[(TITLE, clipped(each, width)) for each in self.title.splitlines()]]
        for each in self.tables:
            header, *rows = each.plain(width)
            blocks.append([(HEADER, header), *((ROW, line) for line in rows)])
        notes = [(NOTE, clipped(each, width)) for each in self.notes]
        foot = [(FOOT, _end(self.foot, width))] if self.foot else []
        if notes or foot:
            blocks.append([*notes, *foot])
        return [line for block in blocks for line in [(NOTE, ""), *block]][1:]

    def plain(self, width: int) -> str:
        """As text."""
        return "\n".join(text for _, text in self.lines(width))


def page(
    seen: Seen,
    view: View = View(),  # noqa: B008 (it cannot be changed)
    height: int | None = None,
    when: str = "",
    complaint: str = "",
    keys: bool = False,
    width: int | None = None,
) -> Page:
    """What there is to show: as many rows as fit on ``height`` lines; None: all.

    Parameters
    ----------
    complaint
        What is wrong besides.
    keys
        Whether there are any: then the last line says what they do.
    width
        How many characters fit on a line: what is longer takes several, if there is room.
    """
    if view.help:
        return Page("keys", notes=HELP.splitlines(), first=view.first, room=view.room)
    lists = [arranged(each, seen, view.sort, view.filter) for each in VIEWS[view.name]]
    title = _title(seen, view, lists, when)
    lists = [each for each in lists if each.rows]
    total = room = sum(len(each.rows) for each in lists)
    notes = [note(each) for each in seen.snapshots if each.note]
    notes += [printable(complaint)] if complaint else []
    hint = HINT if keys else ""
    foot = f"/{printable(view.filter)}_" if view.typing else hint
    first = 0
    if width is not None:
        whole = [line for each in notes for line in hanging(each, width, INDENT)]
        notes = whole if height is None or len(whole) <= height // 3 else notes
        title = "\n".join(hanging(title, width, INDENT)) if height is None else title
    if height is not None:
        notes = _some(notes, max(1, height // 3))
        # Title and, of each table, a blank line and the headers.
        room = height - 1 - 2 * len(lists) - bool(notes or foot) - len(notes) - bool(foot)
        if total > room:
            if not foot:
                room -= 1 + (not notes)
            room = max(1, room)
            first = max(0, min(view.first, total - room))
            if not view.typing:
                foot = f"rows {first + 1} to {min(first + room, total)} of {total}"
                foot += f": {hint}" if hint else ""
    return Page(title, _tables(lists, first, first + room), notes, foot, first, room)


def _tables(lists: Sequence[Arranged], first: int, end: int) -> list[Table]:
    tables, before = [], 0
    for each in lists:
        here = max(0, first - before), max(0, end - before)
        if each.rows[slice(*here)]:
            tables.append(each.table(*here))
        before += len(each.rows)
    return tables


def _title(seen: Seen, view: View, lists: Sequence[Arranged], when: str) -> str:
    opened = [peers.state(each) for one in seen.snapshots for each in one.connections]
    accepted = [peers.accepted_state(each) for one in seen.snapshots for each in one.accepted]
    parts = [_processes(seen.snapshots)]
    parts += [counted(each.total, "peer") for each in lists if each.listing is PEERS]
    if view.name == "accepted":
        parts.append(_counts(accepted, "accepted connection"))
    else:
        parts.append(_counts(opened, "connection"))
    title = ", ".join(parts)
    for each in lists:
        if each.listing is CLIENTS and accepted:
            clients = counted(each.total, "client")
            title += f"; {clients}, {_counts(accepted, 'accepted connection')}"
    if view.filter:
        shown, total = sum(len(each.rows) for each in lists), sum(each.total for each in lists)
        title = f"filter: {printable(view.filter)}, {shown} of {total}; {title}"
    return f"{when}  {title}".lstrip()


def _processes(snapshots: Sequence[Snapshot]) -> str:
    unlike = Counter(each.status for each in snapshots if each.status != ACTIVE)
    told = ", ".join(f"{count} {printable(status)}" for status, count in unlike.items())
    number = counted(len(snapshots), "process", "processes")
    return f"{number} ({told})" if told else number


def _counts(states: Sequence[str], noun: str) -> str:
    if not states:
        return f"no {noun}s"
    told = ", ".join(f"{count} {printable(each)}" for each, count in Counter(states).items())
    return f"{counted(len(states), noun)}: {told}"


def note(one: Snapshot) -> str:
    """What there is to say of a process, with its name."""
    text = printable(one.note)
    for each in (one.pid, one.address):
        if each is not None and re.search(rf"(?<!\w){re.escape(str(each))}(?!\w)", text):
            return text
    return f"{name_of(one.pid, one.address)}: {text}"


def _some(notes: list[str], most: int) -> list[str]:
    if len(notes) <= most:
        return notes
    rest = len(notes) - most + 1
    return [*notes[: most - 1], f"{rest} more notes, which xoscar-idle stats tells"]


def _end(text: str, width: int) -> str:
    """Of a prompt the end, where one types; of all else the beginning."""
    if text.startswith("/") and len(text) > width:
        return cut(f"/…{text[2 - width :]}", width)
    return clipped(text, width)
