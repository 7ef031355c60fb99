"""What the connections of this process do, told."""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .. import config, patching
from . import counters

if TYPE_CHECKING:
    from .caller import ActorCaller
    from .client import CallerClient


@dataclass(frozen=True)
class Statistics:
    """The connections of one process at one moment, and since it was started."""

    open: int
    """Connections that are neither closed nor being closed: ``opened`` less all ``closed``."""
    active: int
    """Those of them that take calls and are in use."""
    idle: int
    """Those of them that nobody uses."""
    retired: int
    """Those of them that take no new calls and close after those in flight."""
    connecting: int
    """Connects under way."""
    requests_in_flight: int
    """Requests that wait for their reply."""
    opened: int
    """Connections opened so far."""
    closed: dict[str, int]
    """Connections closed so far, by reason: :data:`.counters.REASONS`."""
    connects_failed: int
    """Connects that failed or were given up."""
    connect_seconds: float
    """Time spent connecting, successfully or not."""
    cap_exceeded: int
    """Connects that went ahead over ``max_connections``, since all connections were in use."""
    in_force: bool
    """Whether xoscar is extended in this process; if not, nothing new is counted."""
    settings: config.Settings
    """The settings in force; where it is not active, the defaults."""
    origins: dict[str, str]
    """Where each setting came from: ``default``, ``environment`` or ``code``."""

    def __repr__(self) -> str:
        closed = ", ".join(f"{n} {reason}" for reason, n in self.closed.items() if n) or "none"
        return (
            f"<Statistics {self.open} open: {self.active} active, {self.idle} idle, "
            f"{self.retired} retired; {self.connecting} connecting, "
            f"{self.requests_in_flight} requests in flight; "
            f"{self.opened} opened, closed: {closed}; "
            f"{self.connects_failed} connects failed>"
        )


@dataclass(frozen=True)
class ConnectionInfo:
    """One connection at one moment. Times are in seconds."""

    address: str
    """The address of the pool, as calls know it."""
    route: str
    """The resolved address under which calls find the connection."""
    transport: str
    """``socket``, ``unixsocket``, ``dummy``, ``ucx``, ``nixl``..."""
    thread: int
    """The identifier of the thread it belongs to."""
    state: str
    """``open``, ``retired``, ``closing`` or ``closed``."""
    references: int
    """Requests in flight and leases."""
    in_flight: int
    """Requests that wait for their reply."""
    calls: int
    """Requests made so far."""
    age: float
    """Since it was opened."""
    idle: float | None
    """Since it was last used; None while it is in use."""
    descriptor: int | None
    """The number of its file descriptor, where it has one."""

    def __repr__(self) -> str:
        use = f"{self.references} in use" if self.idle is None else f"idle {self.idle:.1f}s"
        return (
            f"<Connection {self.address} {self.state}, {use}, {self.calls} calls, "
            f"age {self.age:.1f}s, fd {self.descriptor}>"
        )


def callers() -> list[ActorCaller]:
    """All callers of this process, without importing xoscar where nothing has been connected."""
    if "xoscar_idle.connection.registry" not in sys.modules:
        return []
    from . import registry

    return registry.everywhere()


def use(state: str, references: int) -> str:
    """``active`` or ``idle`` for a connection whose state is ``open``; else its state."""
    if state != "open":
        return state
    return "active" if references else "idle"


def statistics() -> Statistics:
    """The connections of this process; from any thread, and whether or not it is active."""
    # Not above: it imports asyncio, and two threads of a program that import asyncio and xoscar for
    # the first time can meet Python's own import deadlock.
    from . import cap

    opened, closed, failed, seconds = counters.so_far()
    uses: Counter[str] = Counter()
    in_flight = connecting = 0
    for caller in callers():
        connecting += len(caller.connecting())
        for client in caller.connections():
            in_flight += client.in_flight
            uses[use(client.state.value, client.refs)] += 1
    return Statistics(
        open=opened - sum(closed.values()),
        active=uses["active"],
        idle=uses["idle"],
        retired=uses["retired"],
        connecting=connecting,
        requests_in_flight=in_flight,
        opened=opened,
        closed=closed,
        connects_failed=failed,
        connect_seconds=seconds,
        cap_exceeded=cap.process.exceeded,
        in_force=patching.is_active(),
        settings=config.current().without_secrets(),
        origins=config.origins(),
    )


def connections() -> list[ConnectionInfo]:
    """A record of each connection of this process that is not closed; from any thread."""
    return [_info(client) for caller in callers() for client in caller.connections()]


def _info(client: CallerClient) -> ConnectionInfo:
    from . import transports

    now, since = client.now(), client.idle_since
    return ConnectionInfo(
        address=client.address,
        route=client.route,
        transport=transports.transport(client.route),
        thread=client.thread,
        state=client.state.value,
        references=client.refs,
        in_flight=client.in_flight,
        calls=client.calls,
        age=now - client.opened,
        idle=None if since is None else now - since,
        descriptor=transports.descriptor(client.client),
    )
