"""Showing what has happened to the sub-pools of main pools, and what happens."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator, Sequence

import click

from ..supervision.events import Event
from ..telemetry.history import Happened, History
from ..telemetry.targets import Target
from .interrupting import until_interrupted
from .tables import counted, printable

EVERY = 0.25
"""Seconds between two looks."""


def events(named: Sequence[Target], follow: bool, as_json: bool) -> int:
    """Print what has happened, and then what happens, if that is asked for; the exit status."""
    return until_interrupted(_show(History(named), follow, as_json))


async def _show(history: History, follow: bool, as_json: bool) -> int:
    complained: set[str] = set()
    printed = 0
    while True:
        happened, complaints = await history.look()
        for line in _json(happened) if as_json else _lines(happened):
            click.echo(line)
            printed += 1
        for each in complaints:
            if each not in complained:
                click.echo(f"xoscar-idle: {printable(each)}", err=True)
        complained = set(complaints)
        if not follow:
            if not (printed or complaints):
                click.echo("Nothing has happened to a sub-pool.", err=True)
            return 1 if complaints else 0
        await asyncio.sleep(EVERY)


def _json(happened: Sequence[Happened]) -> Iterator[str]:
    for one in happened:
        if one.missed != 0:
            yield json.dumps({"main": one.name, "kind": "gap", "missed": one.missed})
        for each in one.events:
            yield json.dumps({"main": one.name, **vars(each)})


def _lines(happened: Sequence[Happened]) -> Iterator[str]:
    """Those of all together, by time, behind what is missing."""
    for one in happened:
        if one.missed is None:
            yield f"{'-' * 12}  {one.name} is another process by now"
        elif one.missed:
            yield f"{'-' * 12}  {counted(one.missed, 'event')} of {one.name} are forgotten"
    for event in sorted((e for one in happened for e in one.events), key=lambda e: e.when):
        yield _line(event)


def _line(event: Event) -> str:
    who = f"pool {event.address or '?'} ({event.lineage}.{event.incarnation})"
    what = event.kind if event.kind == "crash" else event.state
    if event.kind == "instruction":
        what = f"instruction {event.state}"
    text = f"  {event.text}" if event.text else ""
    return _on_one_line(f"{_clock(event.when)}  {who}  {what}{text}")


def _on_one_line(text: str) -> str:
    """On one line, with the gaps between columns as they are."""
    return "  ".join(printable(each) for each in text.split("  "))


def _clock(when: float) -> str:
    try:
        return f"{time.strftime('%H:%M:%S', time.localtime(when))}.{int(when * 1000) % 1000:03}"
    except (OSError, OverflowError, ValueError):  # no time that this machine knows
        return "?" * 12
