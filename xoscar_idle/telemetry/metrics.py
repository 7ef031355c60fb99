"""The figures of this process among the metrics that the program serves.

A metrics library that the program imports, before xoscar or after it, gets them in its default
registry. None is imported on our account, and nothing is counted here: a scrape reads
:mod:`.figures`.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import logging
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from ..import_hook import ImportHook
from ..locks import process_lock
from .figures import (
    HISTOGRAMS,
    METRICS,
    Distribution,
    Histogram,
    Labels,
    Metric,
    Moment,
    Samples,
    with_descriptors,
)

if TYPE_CHECKING:
    from prometheus_client.core import Metric as MetricFamily


logger = logging.getLogger("xoscar_idle")

T = TypeVar("T")

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
        now = Moment()
        # Its own process_open_fds and process_max_fds are read there.
        chosen = METRICS if os.path.isdir("/proc/self/fd") else with_descriptors()
        families = [_family(metric, now) for metric in chosen]
        families += [_histogram_family(histogram, now) for histogram in HISTOGRAMS]
        return [family for family in families if family.samples]


def _family(metric: Metric, now: Moment) -> MetricFamily:
    from prometheus_client.core import Metric as MetricFamily

    family = MetricFamily(metric.name.removesuffix("_total"), metric.text, metric.kind)
    for labels, value in _guarded(partial(metric.read, now)):
        family.add_sample(metric.name, labels, value)
    return family


def _histogram_family(histogram: Histogram, now: Moment) -> MetricFamily:
    from prometheus_client.core import Metric as MetricFamily

    name = histogram.name
    family = MetricFamily(name, histogram.text, "histogram")
    for each in _guarded(partial(histogram.read, now)):
        steps = [*((f"{bound}", count) for bound, count in each.below), ("+Inf", each.count)]
        for bound, count in steps:
            family.add_sample(f"{name}_bucket", {**each.labels, "le": bound}, count)
        family.add_sample(f"{name}_count", each.labels, each.count)
        family.add_sample(f"{name}_sum", each.labels, each.seconds)
    return family


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
    scrapes = _Scrapes()
    for metric in with_descriptors():
        collector = kinds[metric.kind](metric.name, metric.text)
        collector.get_all = partial(_guarded, partial(_samples, metric, scrapes))
        yield collector
    for histogram in HISTOGRAMS:
        collector = library.Histogram(histogram.name, histogram.text, buckets=histogram.bounds)
        collector.get_all = partial(_guarded, partial(_distributions, histogram, scrapes))
        yield collector


LONGEST_SCRAPE = 1.0
"""Seconds from the first metric that a scrape asks for to the last."""


class _Scrapes(threading.local):
    """Whose metrics are asked one by one, without a word of where a scrape begins.

    It begins with the metric that asks once more, and in each thread anew.
    """

    def __init__(self) -> None:
        self._moment = Moment()
        self._began = -math.inf
        self._asked: set[str] = set()

    def now(self, name: str) -> Moment:
        """The moment of the scrape to which the question for this metric belongs."""
        if name in self._asked or time.monotonic() - self._began > LONGEST_SCRAPE:
            self._moment, self._began = Moment(), time.monotonic()
            self._asked.clear()
        self._asked.add(name)
        return self._moment


def _samples(metric: Metric, scrapes: _Scrapes) -> Samples:
    return [(_escaped(labels), value) for labels, value in metric.read(scrapes.now(metric.name))]


def _distributions(
    histogram: Histogram, scrapes: _Scrapes
) -> list[tuple[Labels, dict[float | str, float]]]:
    found = histogram.read(scrapes.now(histogram.name))
    return [(_escaped(each.labels), _as_dictionary(each)) for each in found]


def _as_dictionary(each: Distribution) -> dict[float | str, float]:
    return {**dict(each.below), math.inf: each.count, "count": each.count, "sum": each.seconds}


def _escaped(labels: Labels) -> Labels:
    """As they are written out: aioprometheus does not do it."""
    return {
        name: value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
        for name, value in labels.items()
    }


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
