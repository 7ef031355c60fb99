"""What the connections of this process do, counted and told."""

from __future__ import annotations

import bisect
import os
import sys
import threading
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from .. import config

if TYPE_CHECKING:
    from .caller import ActorCaller
    from .client import CallerClient

REASONS = ("idle", "cap", "age", "silent", "peer", "error", "stop", "loop", "thread", "fork")
"""Why connections close: idle for their timeout; to make room; too old; nothing came until a call's
deadline, or after a probe; the other side, or an error, ended them; their owner was stopped; their
event loop, or their thread, ended; they are a parent's and this is a forked child."""

CONNECT_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Upper bounds, in seconds, of the classes in which connects are counted."""


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
    """Connections closed so far, by reason: :data:`REASONS`."""
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


@dataclass
class _Counters:
    """What cannot be seen by looking at the connections that are there."""

    # Reentrant: a finalizer may run wherever memory is allocated. For the same reason all counts
    # are there from the start: none runs between reading one that is there and writing it.
    lock: threading.RLock = field(default_factory=threading.RLock)
    opened: int = 0
    closed: Counter[str] = field(default_factory=lambda: Counter(dict.fromkeys(REASONS, 0)))
    connects_failed: int = 0
    connect_seconds: float = 0.0
    connect_classes: list[int] = field(default_factory=lambda: [0] * (len(CONNECT_BUCKETS) + 1))


_counters = _Counters()


def _forked() -> None:
    _counters.lock = threading.RLock()  # the thread that held it may not exist here


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)


def count_open() -> None:
    """A connection is open."""
    with _counters.lock:
        _counters.opened += 1


def count_close(reason: str) -> None:
    """A connection is no longer open, for one of :data:`REASONS`."""
    with _counters.lock:
        _counters.closed[reason] += 1


def count_connect(seconds: float, failed: bool) -> None:
    """A connect has ended after so many seconds."""
    with _counters.lock:
        _counters.connect_seconds += seconds
        _counters.connect_classes[bisect.bisect_left(CONNECT_BUCKETS, seconds)] += 1
        _counters.connects_failed += failed


def connect_histogram() -> tuple[list[tuple[float, int]], int, float]:
    """Connects by duration: (upper bound, connects up to it) each, their number, their seconds."""
    with _counters.lock:
        classes, total = list(_counters.connect_classes), _counters.connect_seconds
    sums = [sum(classes[: i + 1]) for i in range(len(CONNECT_BUCKETS))]
    return list(zip(CONNECT_BUCKETS, sums, strict=True)), sum(classes), total


def callers() -> list[ActorCaller]:
    """All callers of this process, without importing xoscar where nothing has been connected."""
    if "xoscar_idle.connections.registry" not in sys.modules:
        return []
    from . import registry

    return registry.everywhere()


def statistics() -> Statistics:
    """The connections of this process; from any thread, and whether or not it is active."""
    from ..activation import is_active
    from . import cap

    with _counters.lock:
        opened, closed = _counters.opened, Counter(_counters.closed)
        failed, seconds = _counters.connects_failed, _counters.connect_seconds
    active = idle = retired = in_flight = connecting = 0
    for caller in callers():
        connecting += len(caller.connecting())
        for client in caller.connections():
            in_flight += client.in_flight
            state = client.state.value
            if state == "retired":
                retired += 1
            elif state == "open" and client.refs:
                active += 1
            elif state == "open":
                idle += 1
    return Statistics(
        open=opened - sum(closed.values()),
        active=active,
        idle=idle,
        retired=retired,
        connecting=connecting,
        requests_in_flight=in_flight,
        opened=opened,
        closed={reason: closed[reason] for reason in REASONS},
        connects_failed=failed,
        connect_seconds=seconds,
        cap_exceeded=cap.process.exceeded,
        in_force=is_active(),
        settings=config.current(),
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
