"""Whether idle closing is active in processes that run, and how their sub-pools are."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import click
import psutil

from .. import gate, side_channel, values
from ..telemetry import pools, targets
from ..telemetry.pools import Supervised
from ..telemetry.snapshot import ACTIVE, BLOCKED, INACTIVE, MISSING, NOT_ACTIVE, Snapshot
from . import tables
from .pools import states

ASK = (
    f"to be able to ask it, start it with {side_channel.MONITOR}=1, or name the address of its "
    "pool instead of its PID"
)


@dataclass(frozen=True)
class Verdict:
    """What there is to say of one process."""

    pid: int | None
    address: str | None
    command: str
    active: bool | None
    """None: it is not known."""
    asked_for: bool | None
    """Whether its environment asked for activation when it was started; None: it is not known."""
    text: str
    settings: dict[str, dict[str, Any]] = field(default_factory=dict)
    """The value and the origin of each, where it is active."""


def verdict(seen: Snapshot, environ: Mapping[str, str] | None = None) -> Verdict:
    """What follows from what was seen of a process and from the environment of its start."""
    asked_for = None if environ is None else gate.wanted(environ)
    active: bool | None = None
    settings: dict[str, dict[str, Any]] = {}
    if seen.statistics is not None:
        active = True
        origins = seen.statistics["origins"]
        settings = {
            name: {"value": value, "origin": origins[name]}
            for name, value in seen.statistics["settings"].items()
        }
        text = _settings(settings)
        if seen.note:
            text = f"{text}; {seen.note}"
    elif seen.status == INACTIVE or NOT_ACTIVE in seen.note:
        active = False
        text = seen.note
    elif seen.status in (BLOCKED, *MISSING):
        text = seen.note
    else:
        text = seen.note + _from_outside(environ)
    return Verdict(seen.pid, seen.address, seen.command, active, asked_for, text, settings)


def _settings(settings: Mapping[str, Mapping[str, Any]]) -> str:
    given = [
        f"{name}={each['value']} ({each['origin']})"
        for name, each in settings.items()
        if each["origin"] != "default"
    ]
    return f"{', '.join(given)}; all others by default" if given else "all settings by default"


def _from_outside(environ: Mapping[str, str] | None) -> str:
    if environ is None:
        return ""
    place = side_channel.own_directory(environ)
    if place is not None and place != side_channel.own_directory():
        return f"; it was started with {side_channel.MONITOR}={place}: give this command the same"
    if gate.wanted(environ):
        name = gate.IDLE_TIMEOUT if gate.idle_closing_wanted(environ) else gate.SUPERVISE
        return (
            f"; it was started with {name}={values.shown(environ[name])}, but whether it is active "
            f"only it can tell: {ASK}"
        )
    return (
        f"; it was started without {gate.IDLE_TIMEOUT}, or with off: it is not active unless its "
        f"program calls xoscar_idle.install(); {ASK}"
    )


def doctor(named: Sequence[targets.Target], as_json: bool) -> int:
    """Print what is found of those that are named; the exit status: 0 if all are active."""
    verdicts, supervised = asyncio.run(_examine(named))
    active = [each.active for each in verdicts]
    status = 0 if all(active) else 1
    if as_json:
        report = {
            "status": status,
            "processes": [dataclasses.asdict(each) for each in verdicts],
            "pools": [dataclasses.asdict(each) for each in supervised],
        }
        click.echo(json.dumps(report, indent=2))
        return status
    words = {True: "active", False: "not active", None: "not known"}
    for each in verdicts:
        name = tables.name_of(each.pid, each.address)
        command = tables.printable(each.command)
        click.echo(f"{words[each.active]:10}  {name}  {command}".rstrip())
        click.echo(f"{'':10}  {tables.printable(each.text)}")
    for one in supervised:
        click.echo(f"sub-pools   {tables.printable(_of_sub_pools(one))}")
    counts = {word: active.count(state) for state, word in words.items()}
    told = ", ".join(f"{count} {word}" for word, count in counts.items() if count)
    click.echo(f"\nOf {len(verdicts)}: {told}.")
    return status


def _of_sub_pools(one: Supervised) -> str:
    """Their states, and the last crash of each that had one."""
    failures = [each.last_failure for each in one.pools if each.last_failure]
    told = f"of {one.name}: {states(one)}"
    return f"{told}; last failures: {'; '.join(failures)}" if failures else told


async def _examine(named: Sequence[targets.Target]) -> tuple[list[Verdict], list[Supervised]]:
    found = await targets.look_at(named)
    verdicts = [
        # The number that a pool tells may be one of another machine.
        verdict(seen, _environ(target) if isinstance(target, int) else None)
        for target, seen in found
    ]
    # Whoever has not answered would not now, either, and takes its time for that.
    answer = dict.fromkeys(target for target, seen in found if seen.status in (ACTIVE, INACTIVE))
    supervised, _ = await pools.look([*answer]) if answer else ([], [])
    return verdicts, [each for each in supervised if each.pools]


def _environ(pid: int) -> dict[str, str] | None:
    try:
        return psutil.Process(pid).environ()
    except (psutil.Error, OSError):
        return None
