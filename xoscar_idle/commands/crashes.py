"""Showing the crash records of this machine."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence

import click

from ..logs import one_line
from ..supervision import records
from ..supervision.record import CrashRecord
from ..telemetry.targets import Target
from .tables import Column, Table, cell, columns, duration, paragraphs, printable, row


def crashes(named: Sequence[Target], as_json: bool) -> int:
    """Print the records of those that are named, in full, or else a table of all; the status."""
    found, complaints = records.read_all()
    chosen = [each for each in found if not named or _is_of(each, named)]
    width = columns()
    if as_json:
        click.echo(json.dumps([vars(each) for each in chosen], indent=2))
    elif named:
        click.echo("\n\n".join("\n".join(_whole(each, width)) for each in chosen), nl=bool(chosen))
    elif chosen:
        rows = [row(CRASHES, each) for each in chosen]
        click.echo("\n".join(Table(CRASHES, rows, needed=16, wide=len(CRASHES) - 1).plain(width)))
    for each in complaints:
        click.echo(f"xoscar-idle: {each}", err=True)
    if not (chosen or complaints):
        click.echo(f"xoscar-idle: {_nothing(named, len(found))}", err=True)
    return 1 if complaints or (named and not chosen) else 0


def when(record: CrashRecord) -> str:
    """The local time of its death."""
    return _local(record, "%Y-%m-%d %H:%M:%S")


def _local(record: CrashRecord, form: str) -> str:
    try:
        return time.strftime(form, time.localtime(record.when))
    except (OSError, OverflowError, ValueError):  # no time that this machine knows
        return "?"


def _is_of(record: CrashRecord, named: Sequence[Target]) -> bool:
    return not {record.pid, record.address, record.main_pid, record.main_address}.isdisjoint(named)


def _nothing(named: Sequence[Target], others: int) -> str:
    if others:
        names = ", ".join(f"{each}" for each in named)
        return f"none of {others} crash records is of {names}"
    try:
        looked = f"there is no crash record in {', '.join(map(str, records.directories()))}"
    except (OSError, ValueError) as error:
        looked = f"there is no crash record: {one_line(error)}"
    return (
        f"{looked}; they are written where XOSCAR_SUPERVISE is set to observe or act, and are "
        f"looked for where {records.DIRECTORY} says"
    )


def _whole(record: CrashRecord, width: int) -> Iterator[str]:
    yield from paragraphs(f"{when(record)}  {record.told(whole=True)}", width)
    if record.record:
        yield from paragraphs(f"Its record: {record.record}", width)


def _why(record: CrashRecord) -> str:
    return printable(record.oom or record.why) or "-"


CRASHES = (
    Column("WHEN", lambda record: _local(record, "%m-%d %H:%M:%S"), text=True),
    Column("ADDRESS", lambda record: printable(record.address) or "-", text=True),
    Column("PID", lambda record: cell(record.pid)),
    Column("HOW", lambda record: printable(record.cause), text=True),
    Column("UP", lambda record: duration(record.uptime), spare=2),
    Column("REQ", lambda record: cell(record.in_flight), spare=1),
    Column("WHY", _why, text=True),
)
"""A row is about a :class:`CrashRecord`."""
