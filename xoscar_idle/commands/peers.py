"""Who holds connections to whom: those of all processes, added up by who is at the other side."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..connection.statistics import use
from ..telemetry.snapshot import Snapshot
from . import names as who
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
        return {"address": self.address, **_named(self.name), **_figures(self, "address")}


def _named(name: Name | None) -> dict[str, Any]:
    found = name or Name()
    named = {"pid": found.pid, "index": found.index, "label": found.label}
    return {**named, "actors": list(found.actors)}


def _figures(row: object, key: str) -> dict[str, Any]:
    return {name: value for name, value in vars(row).items() if name not in (key, "name")}


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


@dataclass
class Client:
    """Who has connected, and what all pools together have accepted from there."""

    host: str
    """The other side, without its port; ``pid 4711`` of a unix socket."""
    name: Name | None = None
    """The process there, if it is known: one row each. All others of a host are one."""
    pools: int = 0
    """To how many it is connected."""
    open: int = 0
    active: int | None = None
    """So many of them have a request in process; None, here and below: no process tells."""
    idle: int | None = None
    in_process: int | None = None
    """Requests in process."""
    requests: int | None = None
    """Requests so far, over the connections that there are."""

    def to_dict(self) -> dict[str, Any]:
        """In values that JSON has."""
        named = _named(self.name)
        if unix := re.fullmatch(r"pid ([0-9]{1,10})", self.host):
            named["pid"] = int(unix[1])
        return {"host": self.host, **named, **_figures(self, "host")}


def clients(snapshots: Sequence[Snapshot], names: Names) -> list[Client]:
    """Those from whom anybody has accepted a connection, the one with most of them first."""
    found: dict[tuple[str, Name | None], Client] = {}
    pools: defaultdict[tuple[str, Name | None], set[tuple[int, str]]] = defaultdict(set)
    for place, one in enumerate(snapshots):
        for each in one.accepted:
            peer, name = str(each.get("peer") or "-"), who.of_peer(each, names)
            key = _host(peer), name
            client = found.setdefault(key, Client(*key))
            pools[key].add((place, str(each.get("address"))))
            client.pools = len(pools[key])
            client.open += 1
            if (told := accepted_state(each)) != ESTABLISHED:
                client.active = (client.active or 0) + (told == "active")
                client.idle = (client.idle or 0) + (told == "idle")
            client.in_process = _sum(client.in_process, figure(each, "in_process"))
            client.requests = _sum(client.requests, figure(each, "requests"))
    return sorted(found.values(), key=lambda each: (-each.open, each.host, str(each.name)))


def _host(peer: str) -> str:
    host, colon, port = peer.rpartition(":")
    return host if colon and port.isdecimal() else peer


def accepted_state(connection: dict[str, Any]) -> str:
    """``active`` or ``idle`` of one that was accepted; ``established`` where the kernel was asked,
    which does not know."""
    if "in_process" not in connection:
        return ESTABLISHED
    return "active" if connection.get("idle") is None else "idle"


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
