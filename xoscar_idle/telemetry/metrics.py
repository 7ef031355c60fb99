"""The statistics of this process among the metrics that the program serves.

A metrics library that the program imports, before xoscar or after it, gets them in its default
registry. None is imported on our account, and nothing is counted here: a scrape reads
:mod:`xoscar_idle.connection.statistics` and :mod:`xoscar_idle.supervision.pools`.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import logging
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from operator import attrgetter
from typing import TYPE_CHECKING, Any, TypeVar

from .. import descriptors
from ..connection import counters, statistics
from ..import_hook import ImportHook
from ..locks import process_lock
from ..supervision import pools as supervised
from ..supervision.state import PoolInfo, State

if TYPE_CHECKING:
    from prometheus_client.core import Metric as MetricFamily


logger = logging.getLogger("xoscar_idle")

STATES = ("active", "idle", "retired", "connecting")
"""The states of connections, as :class:`xoscar_idle.Statistics` counts them."""

Samples = list[tuple[dict[str, str], float]]
T = TypeVar("T")


class Moment:
    """What metrics are read from: this process at one moment, each part of it read once."""

    @cached_property
    def statistics(self) -> statistics.Statistics:
        """Of its connections."""
        return statistics.statistics()

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


def _active(now: Moment) -> Samples:
    return [({}, int(now.statistics.in_force))]


def _closed(now: Moment) -> Samples:
    return [({"reason": reason}, count) for reason, count in now.statistics.closed.items()]


CAUSES = ("SIGABRT", "SIGKILL", "SIGSEGV", "SIGTERM", "exit code 1", "out of memory", "unknown")
"""Shown before there is a crash: of a series that begins with 1, Prometheus sees no increase."""

_causes: set[str] = set()  # those that are shown, from the first sub-pool on


def _crashes(now: Moment) -> Samples:
    if now.pools:
        _causes.update(CAUSES)
    _causes.update(now.crashes)
    return [({"cause": cause}, now.crashes.get(cause, 0)) for cause in sorted(_causes)]


def _pool(pool: PoolInfo) -> dict[str, str]:
    """Its lineage, not its address: a recovery can change that, and series would pile up."""
    return {"pool": f"{pool.lineage}", "label": pool.label or ""}


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


METRICS = (
    Metric(
        "xoscar_idle_active",
        "gauge",
        "Whether xoscar-idle is active in the process: 1 or 0.",
        _active,
    ),
    Metric("xoscar_connections", "gauge", "Connections, by state and transport.", _connections),
    Metric(
        "xoscar_requests_in_flight",
        "gauge",
        "Requests that wait for their reply.",
        lambda now: [({}, now.statistics.requests_in_flight)],
    ),
    Metric(
        "xoscar_connections_opened_total",
        "counter",
        "Connections opened.",
        lambda now: [({}, now.statistics.opened)],
    ),
    Metric("xoscar_connections_closed_total", "counter", "Connections closed, by reason.", _closed),
    Metric(
        "xoscar_connects_failed_total",
        "counter",
        "Connects that failed or were given up.",
        lambda now: [({}, now.statistics.connects_failed)],
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

CONNECT_SECONDS = ("xoscar_connect_seconds", "How long connects took, successful or not.")


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

_failed = False


def _guarded(read: Callable[[], list[T]]) -> list[T]:
    """What ``read`` gives; where it fails nothing, and one warning: the scrape is the program's."""
    global _failed
    try:
        return read()
    except Exception:
        if not _failed:
            _failed = True
            logger.warning("some metrics of xoscar cannot be read", exc_info=True)
        return []


# -- prometheus_client -------------------------------------------------------------------------


class PrometheusCollector:
    """A collector of prometheus_client, for a registry of the program's own.

    It can be made and registered whether xoscar is extended or not, and before it is imported.
    """

    def collect(self) -> list[MetricFamily]:
        """All metrics, as of one moment."""
        return _guarded(self._families)

    def _families(self) -> list[MetricFamily]:
        from prometheus_client.core import HistogramMetricFamily
        from prometheus_client.core import Metric as MetricFamily

        families = []
        now = Moment()
        # Its own process_open_fds and process_max_fds are read there.
        chosen = METRICS if os.path.isdir("/proc/self/fd") else METRICS + _descriptors()
        for metric in chosen:
            family = MetricFamily(metric.name.removesuffix("_total"), metric.text, metric.kind)
            for labels, value in _guarded(partial(metric.read, now)):
                family.add_sample(metric.name, labels, value)
            if family.samples:
                families.append(family)
        buckets, count, seconds = counters.connect_histogram()
        name, text = CONNECT_SECONDS
        steps = [(str(bound), float(below)) for bound, below in buckets]
        families.append(HistogramMetricFamily(name, text, [*steps, ("+Inf", count)], seconds))
        return families


def _add_to_prometheus_client(library: Any) -> Callable[[], None]:
    collector = PrometheusCollector()
    library.REGISTRY.register(collector)

    def remove() -> None:
        with contextlib.suppress(KeyError):  # the program has removed it
            library.REGISTRY.unregister(collector)

    return remove


# -- aioprometheus, which Xinference uses ------------------------------------------------------


def _add_to_aioprometheus(library: Any) -> Callable[[], None]:
    def remove(collector: Any) -> None:
        with contextlib.suppress(KeyError):  # the program has removed it
            if library.REGISTRY.get(collector.name) is collector:
                library.REGISTRY.deregister(collector.name)

    with contextlib.ExitStack() as undo:
        for collector in _aioprometheus_collectors(library):
            undo.callback(remove, collector)
        return undo.pop_all().close


def _aioprometheus_collectors(library: Any) -> Iterator[Any]:
    """Its own collectors, which register themselves, with values that are read when asked for."""
    kinds = {"counter": library.Counter, "gauge": library.Gauge}
    for metric in METRICS + _descriptors():
        collector = kinds[metric.kind](metric.name, metric.text)
        collector.get_all = partial(_guarded, partial(_samples, metric))
        yield collector
    collector = library.Histogram(*CONNECT_SECONDS, buckets=counters.CONNECT_BUCKETS)
    collector.get_all = partial(_guarded, _connect_seconds)
    yield collector


def _samples(metric: Metric) -> Samples:
    return metric.read(Moment())


def _connect_seconds() -> list[tuple[dict[str, str], dict[float | str, float]]]:
    buckets, count, seconds = counters.connect_histogram()
    return [({}, {**dict(buckets), float("inf"): count, "count": count, "sum": seconds})]


def _descriptors() -> tuple[Metric, ...]:
    return () if sys.platform == "win32" else DESCRIPTORS


# -- which library, and when -------------------------------------------------------------------

_LIBRARIES: dict[str, Callable[[Any], Callable[[], None]]] = {
    "prometheus_client": _add_to_prometheus_client,
    "aioprometheus": _add_to_aioprometheus,
}

_lock = process_lock()
_hooks: dict[str, ImportHook] = {}
_registered: dict[str, Callable[[], None]] = {}  # by library: how to remove ours from it


def arm() -> None:
    """Register with the libraries that the program has imported, and with others once it does."""
    for name in _LIBRARIES:
        if sys.modules.get(name) is not None:
            _register(name)
            continue
        with _lock:
            if name not in _hooks:
                _hooks[name] = ImportHook(name, partial(_register, name), _unable(name))
                _hooks[name].arm()


def disarm() -> None:
    """Undo :func:`arm` and :func:`register`."""
    with _lock:
        while _hooks:
            _hooks.popitem()[1].disarm()
    unregister()


def register() -> None:
    """Register with the libraries that are installed, be they imported already or not."""
    for name in _LIBRARIES:
        if importlib.util.find_spec(name) is not None:
            _register(name)


def unregister() -> None:
    """Take the metrics out of the registries again."""
    with _lock:
        while _registered:
            _registered.popitem()[1]()


def _register(name: str) -> None:
    """Register with one library, once; a failure is logged and spares the program's import."""
    try:
        # Without the lock: it may wait for another thread, whose import of it waits for us.
        library = importlib.import_module(name)
        with _lock:
            if name not in _registered:
                _registered[name] = _LIBRARIES[name](library)
    except Exception:
        logger.warning(_unable(name), exc_info=True)


def _unable(name: str) -> str:
    return f"the metrics of xoscar connections could not be added to those of {name}"
