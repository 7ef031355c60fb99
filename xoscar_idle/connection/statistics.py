"""What the connections of this process do, told."""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .. import config, patching
from . import counters

if TYPE_CHECKING:
    from .accepted import Accepted, Served
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
    calls: int
    """Calls whose reply has come; 0 with ``call_metrics="off"``."""
    calls_seconds: float
    """How long they waited for it, all together."""
    deadlines_missed: int
    """Calls without a reply at their deadline."""
    resent: int
    """Calls that were sent once more, over another connection or to a recovered pool."""
    lost: int
    """Calls whose connection ended while they waited for their reply."""
    probes: int
    """Peers asked for a sign of life."""
    probes_failed: int
    """Those of them that gave none."""
    accepted_open: int
    """Connections that pools of this process have accepted, and that are not closed: ``accepted``
    less all ``accepted_closed``."""
    accepted_active: int
    """Those of them that have a request in process."""
    accepted_idle: int
    """Those of them that have none."""
    requests_in_process: int
    """Requests that came over them and are in process."""
    accepted: int
    """Connections accepted so far."""
    accepted_closed: dict[str, int]
    """Those of them that were closed, by reason: :data:`.counters.ACCEPTED_REASONS`."""
    in_force: bool
    """Whether xoscar is extended in this process; if not, nothing new is counted."""
    settings: config.Settings
    """The settings in force; where it is not active, the defaults."""
    origins: dict[str, str]
    """Where each setting came from: ``default``, ``environment``, ``code`` or ``operator``, from
    outside while it ran."""

    def __repr__(self) -> str:
        closed = ", ".join(f"{n} {reason}" for reason, n in self.closed.items() if n) or "none"
        return (
            f"<Statistics {self.open} open: {self.active} active, {self.idle} idle, "
            f"{self.retired} retired; {self.connecting} connecting, "
            f"{self.requests_in_flight} requests in flight; "
            f"{self.opened} opened, closed: {closed}; "
            f"{self.connects_failed} connects failed; {self.accepted_open} accepted, "
            f"{self.requests_in_process} requests in process>"
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
    local: str | None
    """``host:port`` on this side, as the other side sees it unless there is a NAT on the way; None:
    it is none of TCP."""

    def __repr__(self) -> str:
        use = f"{self.references} in use" if self.idle is None else f"idle {self.idle:.1f}s"
        return (
            f"<Connection {self.address} {self.state}, {use}, {self.calls} calls, "
            f"age {self.age:.1f}s, fd {self.descriptor}>"
        )


@dataclass(frozen=True)
class AcceptedInfo:
    """One connection that a pool of this process has accepted. Times are in seconds."""

    address: str
    """The address at which it was accepted."""
    peer: str
    """The other side: ``host:port``, or ``pid 4711`` over a unix socket, as far as it is known."""
    transport: str
    """``socket`` or ``unixsocket``."""
    thread: int
    """The identifier of the thread that serves it."""
    in_process: int
    """Requests in process."""
    requests: int
    """Requests so far."""
    age: float
    """Since it was accepted."""
    idle: float | None
    """Since its last request ended; None while there is one in process."""
    descriptor: int | None
    """The number of its file descriptor, while it has one."""

    def __repr__(self) -> str:
        use = f"{self.in_process} in process" if self.idle is None else f"idle {self.idle:.1f}s"
        return (
            f"<Accepted by {self.address} from {self.peer}, {use}, {self.requests} requests, "
            f"age {self.age:.1f}s, fd {self.descriptor}>"
        )


def callers() -> list[ActorCaller]:
    """All callers of this process, without importing xoscar where nothing has been connected."""
    if "xoscar_idle.connection.registry" not in sys.modules:
        return []
    from . import registry

    return registry.everywhere()


def serving() -> list[Accepted]:
    """What accepts in this process, by loop, without importing xoscar where nothing does."""
    if "xoscar_idle.connection.accepted" not in sys.modules:
        return []
    from . import accepted

    return accepted.everywhere()


def use(state: str, references: int) -> str:
    """``active`` or ``idle`` for a connection whose state is ``open``; else its state."""
    if state != "open":
        return state
    return "active" if references else "idle"


def statistics() -> Statistics:
    """The connections of this process; from any thread, and whether or not it is active."""
    # Not above: it imports asyncio, and two threads of a program that import asyncio and xoscar for
    # the first time can meet Python's own import deadlock.
    from . import cap, tally

    opened, closed, failed, seconds = counters.so_far()
    uses: Counter[str] = Counter()
    in_flight = connecting = 0
    for caller in callers():
        connecting += len(caller.connecting())
        for client in caller.connections():
            in_flight += client.in_flight
            uses[use(client.state.value, client.refs)] += 1
    events = counters.events()
    calls = tally.so_far().values()
    accepted_closed = counters.accepted_closed()
    served = [each for accepted in serving() for each in accepted.served()]
    in_process = [len(each.requests) for each in served]
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
        calls=sum(each.count for each in calls),
        calls_seconds=sum(each.seconds for each in calls),
        deadlines_missed=events["deadlines_missed"],
        resent=events["resent"],
        lost=events["lost"],
        probes=events["probes"],
        probes_failed=events["probes_failed"],
        accepted_open=events["accepted"] - sum(accepted_closed.values()),
        accepted_active=sum(1 for n in in_process if n),
        accepted_idle=sum(1 for n in in_process if not n),
        requests_in_process=sum(in_process),
        accepted=events["accepted"],
        accepted_closed=accepted_closed,
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
        descriptor=transports.descriptor(client.client.channel),
        local=transports.name(client.client.channel, "sockname"),
    )


def accepted() -> list[AcceptedInfo]:
    """A record of each connection that pools of this process have accepted, from any thread.

    There are those of xoscar's sockets, TCP and unix, since it was extended.
    """
    return [_accepted(loop, each) for loop in serving() for each in loop.served()]


def _accepted(loop: Accepted, served: Served) -> AcceptedInfo:
    from . import transports

    now, requests, address = loop.clock(), len(served.requests), served.channel.local_address
    return AcceptedInfo(
        address=address,
        peer=served.peer,
        transport=transports.transport(address),
        thread=loop.thread,
        in_process=requests,
        requests=served.served,
        age=now - served.opened,
        idle=None if requests else now - served.idle_since,
        descriptor=transports.descriptor(served.channel),
    )
