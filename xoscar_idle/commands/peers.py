"""Who holds connections to whom: the connections of all processes, added up by peer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..connection.statistics import use
from ..telemetry.snapshot import Snapshot
from .figures import figure
from .names import Name, Names

ESTABLISHED = "established"
"""The state of a connection where the kernel was asked, which does not know its use."""


@dataclass
class Peer:
    """A destination, and what all processes together hold to it."""

    address: str
    name: Name | None = None
    """Who is behind it, if it is known."""
    processes: int = 0
    """How many hold a connection to it."""
    open: int = 0
    """Connections that are neither closed nor being closed, be they active, idle or retired."""
    active: int | None = None
    """So many of them; None, here and below: none of the processes tells."""
    idle: int | None = None
    retired: int | None = None
    requests_in_flight: int | None = None
    """Requests that wait for their reply."""
    calls: int | None = None
    """Requests so far, over the connections that there are."""

    def to_dict(self) -> dict[str, Any]:
        """In values that JSON has."""
        name = self.name or Name()
        named = {"pid": name.pid, "index": name.index, "label": name.label}
        fields = {key: value for key, value in vars(self).items() if key not in ("address", "name")}
        return {"address": self.address, **named, "actors": list(name.actors), **fields}


def peers(snapshots: Sequence[Snapshot], names: Names) -> list[Peer]:
    """Those that anybody is connected to, the one with most connections first."""
    found: dict[str, Peer] = {}
    for one in snapshots:
        held = [each for each in one.connections if state(each) != "closing"]
        for each in held:
            address = destination(each)
            peer = found.setdefault(address, Peer(address, name_of(each, names)))
            _add(peer, each)
        for address in {destination(each) for each in held}:
            found[address].processes += 1
    return sorted(found.values(), key=lambda each: (-each.open, each.address))


def _add(peer: Peer, connection: dict[str, Any]) -> None:
    told = state(connection)
    peer.open += 1
    if told != ESTABLISHED:
        peer.active = (peer.active or 0) + (told == "active")
        peer.idle = (peer.idle or 0) + (told == "idle")
        peer.retired = (peer.retired or 0) + (told == "retired")
    peer.requests_in_flight = _sum(peer.requests_in_flight, figure(connection, "in_flight"))
    peer.calls = _sum(peer.calls, figure(connection, "calls"))


def _sum(before: int | None, more: float | None) -> int | None:
    return before if more is None else (before or 0) + int(more)


def state(connection: dict[str, Any]) -> str:
    """``active`` or ``idle`` of one that takes calls, else what it is besides."""
    # The kernel, where it was asked, knows no references.
    return use(str(connection.get("state")), connection.get("references", 0))


def destination(connection: dict[str, Any]) -> str:
    """The address, as calls know it; that of the other side where the kernel was asked."""
    return str(connection.get("address") or connection.get("route"))


def name_of(connection: dict[str, Any], names: Names) -> Name | None:
    """Who is at the other side of a connection."""
    return names.get(destination(connection)) or names.get(str(connection.get("route")))
