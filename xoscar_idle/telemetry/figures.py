"""What metrics tell of this process, and how it is read; no metrics library is known here.

Nothing is counted here, but in :mod:`xoscar_idle.connection` and
:mod:`xoscar_idle.supervision.pools`. No label has an address, or anything else of which there may
be any number: what has gone would leave series behind.
"""

from __future__ import annotations

import functools
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from operator import attrgetter

from .. import __version__, config, descriptors, patching
from ..connection import counters, statistics, tally
from ..supervision import pools as supervised
from ..supervision.state import PoolInfo, State

STATES = ("active", "idle", "retired", "connecting")
"""The states of connections, as :class:`xoscar_idle.Statistics` counts them."""

LONGEST = 100
"""Characters of the value of a label; what is longer is cut off."""

Labels = dict[str, str]
Samples = list[tuple[Labels, float]]


class Moment:
    """What metrics are read from: this process at one moment, each part of it read once."""

    @cached_property
    def statistics(self) -> statistics.Statistics:
        """Of its connections."""
        return statistics.statistics()

    @cached_property
    def calls(self) -> dict[str, tally.Latencies]:
        """How long its calls took, by method."""
        return tally.so_far()

    @cached_property
    def pools(self) -> list[PoolInfo]:
        """The sub-pools of its main pools."""
        return supervised.pools()

    @cached_property
    def crashes(self) -> dict[str, int]:
        """Their deaths so far, by cause."""
        return supervised.crashes()


@dataclass(frozen=True)
class Metric:
    """A counter or a gauge: ``read`` gives its labels and values."""

    name: str
    kind: str
    text: str
    read: Callable[[Moment], Samples]


@dataclass(frozen=True)
class Distribution:
    """The series of a histogram that have the same labels."""

    labels: Labels
    below: list[tuple[float, int]]
    """(upper bound, how many up to it) each."""
    count: int
    seconds: float


@dataclass(frozen=True)
class Histogram:
    """Durations, in seconds, by classes up to ``bounds``; ``read`` gives what there is of them."""

    name: str
    text: str
    bounds: tuple[float, ...]
    read: Callable[[Moment], list[Distribution]]


def _value(text: str) -> str:
    """``text`` as the value of a label: not long, and nothing that UTF-8 does not have."""
    text = text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."
    return text.encode("utf-8", "replace").decode()


# -- connections and calls -------------------------------------------------------------------------


def _of_statistics(name: str) -> Callable[[Moment], Samples]:
    return lambda now: [({}, getattr(now.statistics, name))]


def _by_reason(name: str) -> Callable[[Moment], Samples]:
    return lambda now: [
        ({"reason": reason}, count) for reason, count in getattr(now.statistics, name).items()
    ]


_transports = {"socket"}  # those that have been seen: series that come and go leave gaps


def _connections(_: Moment) -> Samples:
    found: Counter[tuple[str, str]] = Counter()
    # Not statistics.connections(), which finds out much more of each than is needed here.
    for caller in statistics.callers():
        from ..connection import transports  # it imports xoscar, which is there if a caller is

        for client in caller.connections():
            state = statistics.use(client.state.value, client.refs)
            found[state, transports.transport(client.route)] += 1
        for route in caller.connecting():
            found["connecting", transports.transport(route)] += 1
    _transports.update(transport for _, transport in found)
    return [
        ({"state": state, "transport": transport}, found[state, transport])
        for transport in sorted(_transports)
        for state in STATES
    ]


def _accepted(now: Moment) -> Samples:
    return [
        ({"state": "active"}, now.statistics.accepted_active),
        ({"state": "idle"}, now.statistics.accepted_idle),
    ]


def _active(now: Moment) -> Samples:
    return [({}, int(now.statistics.in_force))]


def _connect_seconds(_: Moment) -> list[Distribution]:
    return [Distribution({}, *counters.connect_histogram())]


def _call_seconds(now: Moment) -> list[Distribution]:
    """Each call in the series under which it was counted.

    So no series ever jumps or loses what it had when ``call_metrics`` changes: one without the
    label ends where those with it begin, and their sum is right all the while.
    """
    chosen = config.current().call_metrics
    if chosen == "off":
        return []
    found = {tally.ALL: tally.Latencies()}
    if chosen == "method":
        found[tally.OTHERS] = tally.Latencies()  # from the start on
    for method, calls in now.calls.items():
        found.setdefault(_value(method), tally.Latencies()).merge(calls)
    return [
        Distribution(
            {"method": method} if method else {}, calls.cumulative(), calls.count, calls.seconds
        )
        for method, calls in sorted(found.items())
    ]


# -- versions and settings -------------------------------------------------------------------------


@functools.cache
def _versions() -> Labels:
    import platform

    return {
        "version": __version__,
        "xoscar": patching.version(),
        "python": platform.python_version(),
    }


def _info(_: Moment) -> Samples:
    return [(_versions(), 1)]


PLACES = ("supervise_dir", "health_address")
"""Settings of which only is told whether they are set: processes that are alike may differ in them,
and one has an address."""


def _setting_info(now: Moment) -> Samples:
    told, settings = now.statistics, vars(now.statistics.settings)
    if not told.in_force:
        return []
    return [
        ({"setting": name, "value": _setting(name, value), "origin": told.origins[name]}, 1)
        for name, value in settings.items()
    ]


def _setting(name: str, value: object) -> str:
    """What its variable would be."""
    text = config.as_variable(name, value)
    if text is None:
        return "default"
    return "set" if name in PLACES else _value(text)


# -- sub-pools -------------------------------------------------------------------------------------

CAUSES = ("SIGABRT", "SIGKILL", "SIGSEGV", "SIGTERM", "exit code 1", "out of memory", "unknown")
"""Shown before there is a crash: of a series that begins with 1, Prometheus sees no increase."""

_causes: set[str] = set()  # those that are shown, from the first sub-pool on


def _crashes(now: Moment) -> Samples:
    if now.pools:
        _causes.update(CAUSES)
    _causes.update(now.crashes)
    return [({"cause": cause}, now.crashes.get(cause, 0)) for cause in sorted(_causes)]


def _pool(pool: PoolInfo) -> Labels:
    """Its lineage, not its address: a recovery can change that, and series would pile up."""
    return {"pool": f"{pool.lineage}", "label": _value(pool.label or "")}


def _states(now: Moment) -> Samples:
    return [
        ({**_pool(pool), "state": state.value}, int(pool.state == state))
        for pool in now.pools
        for state in State
    ]


def _of_pools(figure: Callable[[PoolInfo], float | None]) -> Callable[[Moment], Samples]:
    """A figure of each sub-pool, where it is known."""
    return lambda now: [
        (_pool(pool), value) for pool in now.pools if (value := figure(pool)) is not None
    ]


# -- all of them -----------------------------------------------------------------------------------

METRICS = (
    Metric(
        "xoscar_idle_active",
        "gauge",
        "Whether xoscar-idle is active in the process: 1 or 0.",
        _active,
    ),
    Metric(
        "xoscar_idle_info",
        "gauge",
        "Always 1: the versions of xoscar-idle, xoscar and Python.",
        _info,
    ),
    Metric(
        "xoscar_idle_setting_info",
        "gauge",
        "Always 1: a setting in force, its value, and where it came from.",
        _setting_info,
    ),
    Metric("xoscar_connections", "gauge", "Connections, by state and transport.", _connections),
    Metric(
        "xoscar_requests_in_flight",
        "gauge",
        "Requests that wait for their reply.",
        _of_statistics("requests_in_flight"),
    ),
    Metric(
        "xoscar_connections_opened_total",
        "counter",
        "Connections opened.",
        _of_statistics("opened"),
    ),
    Metric(
        "xoscar_connections_closed_total",
        "counter",
        "Connections closed, by reason.",
        _by_reason("closed"),
    ),
    Metric(
        "xoscar_connects_failed_total",
        "counter",
        "Connects that failed or were given up.",
        _of_statistics("connects_failed"),
    ),
    Metric(
        "xoscar_cap_exceeded_total",
        "counter",
        "Connects that went ahead over the cap, since all connections were in use.",
        _of_statistics("cap_exceeded"),
    ),
    Metric(
        "xoscar_deadlines_missed_total",
        "counter",
        "Calls without a reply at their deadline.",
        _of_statistics("deadlines_missed"),
    ),
    Metric(
        "xoscar_calls_resent_total",
        "counter",
        "Calls sent once more, over another connection or to a recovered pool.",
        _of_statistics("resent"),
    ),
    Metric(
        "xoscar_calls_lost_total",
        "counter",
        "Calls whose connection ended while they waited for their reply.",
        _of_statistics("lost"),
    ),
    Metric(
        "xoscar_probes_total",
        "counter",
        "Peers asked for a sign of life.",
        _of_statistics("probes"),
    ),
    Metric(
        "xoscar_probes_failed_total",
        "counter",
        "Peers that gave none.",
        _of_statistics("probes_failed"),
    ),
    Metric(
        "xoscar_accepted_connections",
        "gauge",
        "Accepted connections, by state.",
        _accepted,
    ),
    Metric(
        "xoscar_accepted_connections_opened_total",
        "counter",
        "Connections accepted.",
        _of_statistics("accepted"),
    ),
    Metric(
        "xoscar_accepted_connections_closed_total",
        "counter",
        "Accepted connections closed, by reason.",
        _by_reason("accepted_closed"),
    ),
    Metric(
        "xoscar_accepted_requests_in_process",
        "gauge",
        "Requests that came over accepted connections and are in process.",
        _of_statistics("requests_in_process"),
    ),
    Metric(
        "xoscar_pool_state",
        "gauge",
        "The state of a sub-pool: 1 for the one that it is in, 0 for all others.",
        _states,
    ),
    Metric(
        "xoscar_pool_restarts_total",
        "counter",
        "Processes of a sub-pool that replaced one that had ended.",
        _of_pools(attrgetter("restarts")),
    ),
    Metric(
        "xoscar_pool_requests_in_process",
        "gauge",
        "Requests that a sub-pool has in process.",
        _of_pools(attrgetter("in_process")),
    ),
    Metric(
        "xoscar_pool_oldest_request_seconds",
        "gauge",
        "How long the oldest of them has been in process.",
        _of_pools(attrgetter("oldest_request")),
    ),
    Metric(
        "xoscar_pool_loop_lag_seconds",
        "gauge",
        "How long the event loop of a sub-pool took to answer last, or has not answered.",
        _of_pools(attrgetter("loop_lag")),
    ),
    Metric(
        "xoscar_pool_resident_bytes",
        "gauge",
        "Resident memory of a sub-pool.",
        _of_pools(attrgetter("rss")),
    ),
    Metric(
        "xoscar_pool_held_calls",
        "gauge",
        "Calls that wait for the recovery of a sub-pool.",
        _of_pools(attrgetter("held")),
    ),
    Metric(
        "xoscar_crashes_total",
        "counter",
        "Sub-pools that died without having been asked to, by cause.",
        _crashes,
    ),
)

HISTOGRAMS = (
    Histogram(
        "xoscar_connect_seconds",
        "How long connects took, successful or not.",
        counters.CONNECT_BUCKETS,
        _connect_seconds,
    ),
    Histogram(
        "xoscar_call_seconds",
        "How long calls waited for their reply.",
        tally.BUCKETS,
        _call_seconds,
    ),
)


def _open_descriptors(_: Moment) -> Samples:
    import psutil

    return [({}, descriptors.count(psutil.Process()))]


def _most_descriptors(_: Moment) -> Samples:
    limit, _hard = descriptors.limits()
    return [({}, float("inf") if limit is None else limit)]


DESCRIPTORS = (
    Metric(
        "xoscar_process_open_fds",
        "gauge",
        "Open file descriptors of the process.",
        _open_descriptors,
    ),
    Metric(
        "xoscar_process_max_fds",
        "gauge",
        "Most file descriptors that the process may have.",
        _most_descriptors,
    ),
)
"""For registries without metrics of their own for these; Windows has no such descriptors."""


def with_descriptors() -> tuple[Metric, ...]:
    """All counters and gauges, for a registry that has none of its own for descriptors."""
    return METRICS if sys.platform == "win32" else METRICS + DESCRIPTORS
