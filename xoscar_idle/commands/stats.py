"""Printing what there is to know of processes: once, or again and again."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from typing import Any

import click

from ..telemetry.snapshot import BLOCKED, INACTIVE, MISSING, Snapshot
from ..telemetry.targets import Target, exit_status, look, nobody
from .details import details
from .interrupting import until_interrupted
from .listings import CLIENTS, PEERS, Seen
from .names import names
from .ordering import arranged
from .output import until_closed
from .page import note
from .peers import clients, peers
from .rates import Look
from .tables import columns


def stats(targets: Sequence[Target], as_json: bool, watch: float | None, by_peer: bool) -> int:
    """Print everything about ``targets``, or what they hold to whom; the exit status.

    Every ``watch`` seconds, until it is interrupted; None: once.
    """
    show = _show(targets, as_json, watch, by_peer)
    return until_closed(lambda: until_interrupted(show))


async def _show(
    targets: Sequence[Target], as_json: bool, watch: float | None, by_peer: bool
) -> int:
    complained: list[str] = []
    while True:
        snapshots = await look(targets)
        complaints = _complaints(snapshots, by_peer)
        if as_json:
            told: Any = _peers(snapshots) if by_peer else [vars(each) for each in snapshots]
            click.echo(json.dumps(told, indent=2 if watch is None else None))
        elif snapshots:
            text = _table(snapshots) if by_peer else _text(snapshots)
            click.echo(text if watch is None else f"{time.strftime('%X')}\n{text}\n")
        for each in complaints:
            if each not in complained:
                click.echo(f"xoscar-idle: {each}", err=True)
        complained = complaints
        if watch is None:
            return exit_status(snapshots) if snapshots else 1
        await asyncio.sleep(watch)


def _complaints(snapshots: Sequence[Snapshot], by_peer: bool) -> list[str]:
    """What is wrong and not told otherwise."""
    if not snapshots:
        return [nobody()]
    silent = (BLOCKED, INACTIVE, *MISSING) if by_peer else ()
    return [note(each) for each in snapshots if each.status in silent]


def _peers(snapshots: Sequence[Snapshot]) -> dict[str, list[dict[str, Any]]]:
    known = names(snapshots)
    return {
        "to": [each.to_dict() for each in peers(snapshots, known)],
        "from": [each.to_dict() for each in clients(snapshots, known)],
    }


def _text(snapshots: Sequence[Snapshot]) -> str:
    """Fit for a terminal; what a program reads has no other lines than ours."""
    return "\n\n".join(details(each, columns()) for each in snapshots)


def _table(snapshots: Sequence[Snapshot]) -> str:
    seen = Seen.of(Look(snapshots))
    both = [rows for each in (PEERS, CLIENTS) if (rows := arranged(each, seen)).rows]
    tables = ["\n".join(rows.table(0, len(rows.rows)).plain(columns())) for rows in both]
    return "\n\n".join(tables) or "no connections"
