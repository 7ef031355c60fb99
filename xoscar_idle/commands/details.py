"""Everything that ``stats`` says of a process."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from typing import Any

from ..telemetry.snapshot import ACTIVE, Snapshot
from .figures import by_reason, figure, total
from .listings import descriptors
from .names import of_pools
from .tables import cell, hanging, name_of, printable

WIDTH = 13
"""Of what a line is about."""

INDENT = " " * (2 + WIDTH)
"""Of what is behind the first line, where there is no room for it."""


def details(one: Snapshot, width: int = sys.maxsize) -> str:
    """As lines, the first of which names the process."""
    name = f"process {name_of(one.pid, one.address)}"
    command = printable(one.command)
    lines = [f"{name}: {command}" if command else name]
    lines += [f"  {about:{WIDTH}}{printable(text)}" for about, text in _told(one)]
    return "\n".join(each for line in lines for each in hanging(line, width, INDENT))


def _told(one: Snapshot) -> Iterator[tuple[str, str]]:
    if one.status != ACTIVE:
        yield "state", one.status
    for each in filter(None, map(str, of_pools(one))):
        yield "pool", each
    if one.statistics is not None:
        yield from _connections(one.statistics)
        yield from _calls(one.statistics)
        yield from _accepted(one.statistics)
        yield "settings", _settings(one.statistics)
    yield "descriptors", descriptors(one)
    if one.note:
        yield "note", one.note


def _connections(told: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield (
        "connections",
        f"{_of(told, 'open')} open: {_of(told, 'active')} active, {_of(told, 'idle')} idle, "
        f"{_of(told, 'retired')} retired; {_of(told, 'connecting')} connecting",
    )
    yield "opened", _of(told, "opened")
    yield "closed", _closed(told, "closed")
    yield (
        "connects",
        f"{_of(told, 'connects_failed')} failed, "
        f"{_seconds(told, 'connect_seconds')} spent connecting, "
        f"{_of(told, 'cap_exceeded')} over the cap",
    )


def _calls(told: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield "requests", f"{_of(told, 'requests_in_flight')} in flight"
    yield (
        "calls",
        f"{_of(told, 'calls')} answered, in {_seconds(told, 'calls_seconds')} of waiting; "
        f"{_of(told, 'deadlines_missed')} missed their deadline, {_of(told, 'resent')} were sent "
        f"again, {_of(told, 'lost')} lost their connection",
    )
    yield "probes", f"{_of(told, 'probes')}, {_of(told, 'probes_failed')} without an answer"


def _accepted(told: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield (
        "accepted",
        f"{_of(told, 'accepted_open')} open: {_of(told, 'accepted_active')} active, "
        f"{_of(told, 'accepted_idle')} idle; {_of(told, 'requests_in_process')} requests in "
        f"process; {_of(told, 'accepted')} so far, closed {_closed(told, 'accepted_closed')}",
    )


def _settings(told: Mapping[str, Any]) -> str:
    origins = told.get("origins", {})
    given = (
        f"{name}={value} ({origins[name]})"
        for name, value in told.get("settings", {}).items()
        if origins.get(name, "default") != "default"
    )
    return ", ".join(given) or "all by default"


def _of(told: Mapping[str, Any], name: str) -> str:
    return cell(figure(told, name))


def _seconds(told: Mapping[str, Any], name: str) -> str:
    value = figure(told, name)
    return "-" if value is None else f"{value:.3f} s"


def _closed(told: Mapping[str, Any], name: str) -> str:
    """How many, and why."""
    reasons = ", ".join(f"{n} {reason}" for reason, n in by_reason(told, name).items() if n)
    count = cell(total(told, name))
    return f"{count}: {reasons}" if reasons else count
