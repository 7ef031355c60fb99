"""What the views of ``top`` list: columns, and what their rows are about."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..telemetry.snapshot import Snapshot
from . import names, peers
from .figures import figure, total
from .names import Name, Names
from .peers import Peer
from .rates import Look, Rates, identity, rates
from .tables import Column, cell, duration

ORDER = ("active", "idle", "retired", "closing")
"""In which connections of a process are listed: what is in use first."""


@dataclass(frozen=True)
class Seen:
    """Processes at one moment, and what follows from them."""

    snapshots: Sequence[Snapshot] = ()
    rates: Mapping[Hashable, Rates] = field(default_factory=dict)
    names: Names = field(default_factory=dict)

    @classmethod
    def of(cls, now: Look, before: Look | None = None) -> Seen:
        """A look, and the one before."""
        return cls(now.snapshots, rates(before, now), names.names(now.snapshots))


@dataclass(frozen=True)
class Process:
    """A row about a process."""

    seen: Snapshot
    rates: Rates
    pools: Sequence[Name]
    """Those in it."""


@dataclass(frozen=True)
class Connection:
    """A row about a connection, opened or accepted."""

    pid: int | None
    told: dict[str, Any]
    peer: Name | None
    """Who is at the other side, if it is known."""
    own: str = ""
    """The address at which it was accepted."""


@dataclass(frozen=True)
class Listing:
    """A table with a row for each of something."""

    columns: Sequence[Column]
    about: Callable[[Seen], Sequence[Any]]
    """What the rows are about, in the order in which they are listed by default."""
    wide: int
    """The number of the column that takes what room is left: it begins with an address."""
    named: bool = True
    """Whether columns that can be spared are left out for a name behind it, too."""

    @property
    def headers(self) -> list[str]:
        """Those of its columns."""
        return [each.header for each in self.columns]


# Cells


def _number(
    header: str,
    value: Callable[[Any], float | None],
    shown: Callable[[Any], str] = cell,
    spare: int = 0,
) -> Column:
    """A column of numbers, some of which may not be known."""
    return Column(header, lambda about: shown(value(about)), spare=spare, value=value)


def _statistic(header: str, name: str, spare: int = 0) -> Column:
    return _number(header, lambda about: figure(about.seen.statistics, name), spare=spare)


def _told(header: str, name: str, shown: Callable[[Any], str] = cell, spare: int = 0) -> Column:
    """A figure of a connection."""
    return _number(header, lambda about: figure(about.told, name), shown, spare)


def _rate(header: str, name: str, spare: int) -> Column:
    def value(about: Process) -> float | None:
        found: float | None = getattr(about.rates, name)
        return found

    return _number(header, value, per_second, spare)


def per_second(value: float | None) -> str:
    """As short as a table needs it."""
    return "-" if value is None else f"{value:.1f}" if value < 99.95 else f"{value:.0f}"


def with_name(address: str, name: Name | None) -> str:
    """An address, and who is behind it."""
    return f"{address} ({name})" if name is not None and str(name) else address


def _process(about: Process) -> str:
    one = about.seen
    pools = "; ".join(filter(None, map(str, about.pools)))
    parts = [one.address or "", f"({pools})" if pools else "", names.program(one.command)]
    return " ".join(filter(None, parts)) or "-"


def _descriptors(about: Process) -> str:
    return descriptors(about.seen)


def descriptors(one: Snapshot) -> str:
    """How many a process has in use, and may have."""
    if one.descriptors is None and one.descriptor_limit is None:
        return "-"
    count = "?" if one.descriptors is None else f"{one.descriptors}"
    return count if one.descriptor_limit is None else f"{count}/{one.descriptor_limit}"


def _to(about: Connection) -> str:
    """Who is connected to; and over which route, where that is not the same."""
    address, route = peers.destination(about.told), about.told.get("route")
    named = with_name(address, about.peer)
    return named if route in (None, address) else f"{named} via {route}"


def _from(about: Connection) -> str:
    return with_name(str(about.told.get("peer") or "-"), about.peer)


# What rows are about


def _processes(seen: Seen) -> list[Process]:
    def process(one: Snapshot) -> Process:
        pools = [*names.of_pools(one)] or [*names.of_address(one.address, seen.names)]
        return Process(one, seen.rates.get(identity(one), Rates()), pools)

    return [process(each) for each in seen.snapshots]


def _connections(seen: Seen) -> list[Connection]:
    def order(connection: dict[str, Any]) -> tuple[int, str]:
        state = peers.state(connection)
        rank = ORDER.index(state) if state in ORDER else len(ORDER)
        return rank, peers.destination(connection)

    return [
        Connection(one.pid, each, peers.name_of(each, seen.names))
        for one in seen.snapshots
        for each in sorted(one.connections, key=order)
    ]


def _peers(seen: Seen) -> list[Peer]:
    return peers.peers(seen.snapshots, seen.names)


def _accepted(seen: Seen) -> list[Connection]:
    def order(connection: dict[str, Any]) -> tuple[str, str]:
        return peers.accepted_state(connection), str(connection.get("peer"))

    def of(one: Snapshot) -> Iterator[Connection]:
        # A unix socket is known by a number, and its pool by its address.
        known = {pool.get("route"): pool.get("address") for pool in one.pools if pool.get("here")}
        for each in sorted(one.accepted, key=order):
            at, who = each.get("address"), names.of_peer(each, seen.names)
            yield Connection(one.pid, each, who, str(known.get(at) or at or ""))

    return [row for one in seen.snapshots for row in of(one)]


PROCESSES = Listing(
    (
        _number("PID", lambda about: about.seen.pid),
        Column("PROCESS", _process, text=True),
        Column("STATE", lambda about: about.seen.status, text=True),
        _statistic("OPEN", "open"),
        _statistic("ACTIVE", "active", spare=8),
        _statistic("IDLE", "idle", spare=9),
        _statistic("CONN", "connecting", spare=3),
        _statistic("REQS", "requests_in_flight", spare=7),
        _statistic("ACC", "accepted_open", spare=6),
        _statistic("OPENED", "opened", spare=1),
        _number("CLOSED", lambda about: total(about.seen.statistics, "closed"), spare=2),
        _rate("OPEN/s", "opened", spare=4),
        _rate("CLOSE/s", "closed", spare=4),
        _rate("CALLS/s", "calls", spare=5),
        Column("FDS", _descriptors, value=lambda about: about.seen.descriptors),
    ),
    _processes,
    wide=1,
    named=False,
)
"""A row is about a :class:`Process`."""

CONNECTIONS = Listing(
    (
        _number("PID", lambda about: about.pid),
        Column("CONNECTION TO", _to, text=True),
        Column("STATE", lambda about: peers.state(about.told), text=True),
        _told("REQS", "in_flight"),
        _told("CALLS", "calls", spare=3),
        _told("AGE", "age", duration, spare=2),
        _told("IDLE", "idle", duration),
        _told("FD", "descriptor", spare=1),
    ),
    _connections,
    wide=1,
)
"""A row is about a :class:`Connection` that was opened."""

PEERS = Listing(
    (
        Column("PEER", lambda peer: with_name(peer.address, peer.name), text=True),
        _number("PROCESSES", lambda peer: peer.processes),
        _number("OPEN", lambda peer: peer.open),
        _number("ACTIVE", lambda peer: peer.active),
        _number("IDLE", lambda peer: peer.idle),
        _number("RETIRED", lambda peer: peer.retired, spare=1),
        _number("REQS", lambda peer: peer.requests_in_flight, spare=3),
        _number("CALLS", lambda peer: peer.calls, spare=2),
    ),
    _peers,
    wide=0,
)
"""A row is about a :class:`Peer`."""

CLIENTS = Listing(
    (
        Column("FROM", lambda client: with_name(client.host, client.name), text=True),
        _number("POOLS", lambda client: client.pools),
        _number("OPEN", lambda client: client.open),
        _number("ACTIVE", lambda client: client.active),
        _number("IDLE", lambda client: client.idle),
        _number("REQS", lambda client: client.in_process, spare=2),
        _number("REQUESTS", lambda client: client.requests, spare=1),
    ),
    lambda seen: peers.clients(seen.snapshots, seen.names),
    wide=0,
)
"""A row is about a :class:`Client`."""

ACCEPTED = Listing(
    (
        _number("PID", lambda about: about.pid),
        Column("PEER", _from, text=True),
        Column("TO", lambda about: about.own or "-", text=True, spare=4),
        Column("STATE", lambda about: peers.accepted_state(about.told), text=True),
        _told("REQS", "in_process"),
        _told("REQUESTS", "requests", spare=3),
        _told("AGE", "age", duration, spare=2),
        _told("IDLE", "idle", duration),
        _told("FD", "descriptor", spare=1),
    ),
    _accepted,
    wide=1,
)
"""A row is about a :class:`Connection` that was accepted."""

VIEWS: Mapping[str, Sequence[Listing]] = {
    "processes": (PROCESSES, CONNECTIONS),
    "connections": (CONNECTIONS,),
    "peers": (PEERS, CLIENTS),
    "accepted": (ACCEPTED,),
}
"""What each view lists, one below the other."""


def headers(view: str) -> list[str]:
    """Those by which a view can be sorted, each once."""
    return list(dict.fromkeys(each for one in VIEWS[view] for each in one.headers))
