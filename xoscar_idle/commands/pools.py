"""Showing the sub-pools of main pools: what each of them is, and why it is not well."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections import Counter
from collections.abc import Iterator, Sequence

import click

from ..logs import counted
from ..supervision.state import PoolInfo, State
from ..telemetry.pools import Supervised, look
from ..telemetry.targets import Target
from .tables import Column, Table, cell, columns, duration, paragraphs, printable, row

WELL = (State.HEALTHY.value, State.STARTING.value)

NOT_WELL = 3
"""The exit status where a pool is not."""

INDENT = "    "

SHOWN_FRAMES = 12
"""Lines of a stack; the outermost say little, and are xoscar's."""


def pools(named: Sequence[Target], as_json: bool) -> int:
    """Print what is told of the sub-pools of those that are named; the exit status."""
    seen, complaints = asyncio.run(look(named))
    if as_json:
        told = [{"main": each.name, **vars(pool)} for each in seen for pool in each.pools]
        click.echo(json.dumps(told, indent=2))
    elif seen:
        click.echo("\n\n".join("\n".join(_shown(each, columns())) for each in seen))
    elif not complaints:
        click.echo("No process of this user that offers a monitor has sub-pools.")
    for each in complaints:
        click.echo(f"xoscar-idle: {each}", err=True)
    if not all(pool.state in WELL for each in seen for pool in each.pools):
        return NOT_WELL
    return 1 if complaints else 0


def states(one: Supervised) -> str:
    """How many sub-pools of a process are in which state."""
    counts = Counter(printable(each.state) for each in one.pools)
    return ", ".join(f"{count} {state}" for state, count in counts.items())


def _shown(one: Supervised, width: int) -> Iterator[str]:
    where = "process" if isinstance(one.name, int) else f"main pool {one.name}, process"
    if not one.pools:
        yield from paragraphs(f"{where} {one.pid}, no sub-pools", width)
        return
    number = counted(len(one.pools), "sub-pool")
    yield from paragraphs(f"{where} {one.pid}, {number}: {states(one)}", width)
    needed = max(len(each.address) for each in one.pools)
    header, *rows = Table(POOLS, [row(POOLS, each) for each in one.pools], needed).plain(width)
    yield header
    for pool, line in zip(one.pools, rows, strict=True):
        yield line
        yield from _why(pool, width)
    if not any(each.observed for each in one.pools):
        yield from paragraphs("Their health is not followed: XOSCAR_SUPERVISE is off.", width)


def _why(pool: PoolInfo, width: int) -> Iterator[str]:
    """What there is to say below the row of one that is not healthy."""
    if pool.state == State.HEALTHY:
        return
    yield from paragraphs(pool.reason, width, INDENT)
    if pool.restart_at is not None:
        left = max(0.0, pool.restart_at - time.time())
        yield from paragraphs(f"it is tried again in {duration(left)}", width, INDENT)
    for each in pool.requests:
        what = f"{each['actor']}.{each['method']}()"
        yield from paragraphs(f"in process for {each['seconds']:.1f} s: {what}", width, INDENT)
    if pool.last_failure and pool.last_failure != pool.reason:
        yield from paragraphs(f"last failure: {pool.last_failure}", width, INDENT)
    if pool.doing:
        yield from paragraphs("it is doing, the innermost call first:", width, INDENT)
        lines = pool.doing.splitlines()
        for line in lines[:SHOWN_FRAMES]:
            yield from paragraphs(_frame(line, width - len(INDENT)), width, INDENT)
        if (rest := len(lines) - SHOWN_FRAMES) > 0:
            yield from paragraphs(f"  … {rest} more lines, which --json has", width, INDENT)


def _frame(line: str, width: int) -> str:
    """A line of a stack; where it is too long for a path, the path keeps its end."""
    place = re.fullmatch(r'(\s*File ")(.+)(", line .*)', line)
    too_much = len(line) - width
    if place is None or not 0 < too_much < len(place[2]):
        return line
    return f"{place[1]}…{place[2][too_much + 1 :]}{place[3]}"


def _since(pool: PoolInfo) -> str:
    return duration(max(0.0, time.time() - pool.since))  # the clock of another host may be ahead


def _resident(pool: PoolInfo) -> str:
    if pool.rss is None:
        return "-"
    mebibytes = pool.rss / 2**20
    return f"{mebibytes:.0f}M" if mebibytes < 1000 else f"{mebibytes / 1024:.1f}G"


POOLS = (
    Column("POOL", lambda pool: cell(pool.lineage), spare=3),
    Column("ADDRESS", lambda pool: printable(pool.address) or "-", text=True),
    Column("PID", lambda pool: cell(pool.pid or None)),
    Column("STATE", lambda pool: printable(pool.state), text=True),
    Column("SINCE", _since),
    Column("UP", lambda pool: duration(pool.uptime), spare=2),
    Column("RESTARTS", lambda pool: cell(pool.restarts), spare=5),
    Column("REQ", lambda pool: cell(pool.in_process)),
    Column("OLDEST", lambda pool: duration(pool.oldest_request), spare=6),
    Column("HELD", lambda pool: cell(pool.held or None), spare=2),
    Column("LAG", lambda pool: duration(pool.loop_lag), spare=1),
    Column("RSS", _resident, spare=4),
)
"""A row is about a :class:`PoolInfo`."""
