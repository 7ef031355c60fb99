"""What cannot be seen by looking at the connections that are there, counted."""

from __future__ import annotations

import bisect
from collections import Counter
from dataclasses import dataclass, field

from ..locks import process_lock

REASONS = (
    "idle",
    "cap",
    "age",
    "silent",
    "peer",
    "error",
    "operator",
    "stop",
    "loop",
    "thread",
    "fork",
)
"""Why connections close: idle for their timeout; to make room; too old; nothing came until a call's
deadline, or after a probe; the other side, or an error, ended them; an operator wanted it; their
owner was stopped; their event loop, or their thread, ended; they are a parent's and this is a
forked child."""

ACCEPTED_REASONS = ("idle", "peer", "error", "operator", "stop", "fork")
"""Why accepted connections close: idle for ``server_idle_timeout``; the other side, or an error,
ended them; an operator wanted it; their pool was stopped, or xoscar is extended no more; they are a
parent's and this is a forked child."""

EVENTS = ("deadlines_missed", "resent", "lost", "probes", "probes_failed", "accepted")
"""What else is counted: calls without a reply at their deadline; sent once more, over another
connection or to a recovered pool; whose connection was lost while they waited; questions for a
sign of life, and those without an answer; connections accepted."""

CONNECT_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Upper bounds, in seconds, of the classes in which connects are counted."""


@dataclass
class _Counters:
    # All are there from the start: a finalizer may run wherever memory is allocated, but none runs
    # between reading one that is there and writing it.
    opened: int = 0
    closed: Counter[str] = field(default_factory=lambda: Counter(dict.fromkeys(REASONS, 0)))
    connects_failed: int = 0
    connect_seconds: float = 0.0
    connect_classes: list[int] = field(default_factory=lambda: [0] * (len(CONNECT_BUCKETS) + 1))
    accepted_closed: Counter[str] = field(
        default_factory=lambda: Counter(dict.fromkeys(ACCEPTED_REASONS, 0))
    )
    events: Counter[str] = field(default_factory=lambda: Counter(dict.fromkeys(EVENTS, 0)))


_counters = _Counters()
_lock = process_lock()


def count_open() -> None:
    """A connection is open."""
    with _lock:
        _counters.opened += 1


def count_close(reason: str) -> None:
    """A connection is no longer open, for one of :data:`REASONS`."""
    with _lock:
        _counters.closed[reason] += 1


def count_connect(seconds: float, failed: bool) -> None:
    """A connect has ended after so many seconds."""
    with _lock:
        _counters.connect_seconds += seconds
        _counters.connect_classes[bisect.bisect_left(CONNECT_BUCKETS, seconds)] += 1
        _counters.connects_failed += failed


def count(event: str, times: int = 1) -> None:
    """One of :data:`EVENTS` has happened."""
    with _lock:
        _counters.events[event] += times


def count_accepted_close(reason: str) -> None:
    """An accepted connection is no longer open, for one of :data:`ACCEPTED_REASONS`."""
    with _lock:
        _counters.accepted_closed[reason] += 1


def events() -> dict[str, int]:
    """How often each of :data:`EVENTS` has happened."""
    with _lock:
        return dict(_counters.events)


def accepted_closed() -> dict[str, int]:
    """Accepted connections closed, by reason."""
    with _lock:
        return dict(_counters.accepted_closed)


def connect_histogram() -> tuple[list[tuple[float, int]], int, float]:
    """Connects by duration: (upper bound, connects up to it) each, their number, their seconds."""
    with _lock:
        classes, total = list(_counters.connect_classes), _counters.connect_seconds
    sums = [sum(classes[: i + 1]) for i in range(len(CONNECT_BUCKETS))]
    return list(zip(CONNECT_BUCKETS, sums, strict=True)), sum(classes), total


def so_far() -> tuple[int, dict[str, int], int, float]:
    """Of one moment: connections opened; closed, by reason; connects failed; seconds connecting."""
    with _lock:
        return (
            _counters.opened,
            dict(_counters.closed),
            _counters.connects_failed,
            _counters.connect_seconds,
        )
