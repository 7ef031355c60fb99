"""How long calls wait for their replies, counted.

Each :class:`~.caller.ActorCaller` has a tally of its own, which its thread alone writes: a call
takes no lock. Whoever reads adds them up, and those of callers that have gone.
"""

from __future__ import annotations

import weakref
from bisect import bisect_left
from typing import Any

from ..locks import process_lock

BUCKETS = (
    *(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0),
)
"""Upper bounds, in seconds, of the classes in which calls are counted. Models take minutes."""

MOST_METHODS = 50
"""So many methods are told apart; all that come later are one."""

ALL = ""
"""The method of calls that are not counted by method."""

OTHERS = "(others)"
"""That of methods that came after the first :data:`MOST_METHODS`."""


class Latencies:
    """Calls by how long their replies took."""

    __slots__ = ("classes", "seconds")

    def __init__(self) -> None:
        self.classes = [0] * (len(BUCKETS) + 1)
        self.seconds = 0.0

    @property
    def count(self) -> int:
        """How many there are."""
        return sum(self.classes)

    def merge(self, other: Latencies) -> None:
        """Those of ``other``, too."""
        self.classes = [a + b for a, b in zip(self.classes, other.classes, strict=True)]
        self.seconds += other.seconds

    def cumulative(self) -> list[tuple[float, int]]:
        """(upper bound, calls up to it) each."""
        return [(bound, sum(self.classes[: i + 1])) for i, bound in enumerate(BUCKETS)]


class Tally:
    """The calls of one caller, in one by method or all together."""

    __slots__ = ("__weakref__", "_method_of", "all", "by_method", "methods")

    def __init__(self) -> None:
        from .deadlines import method_of  # it imports xoscar, which who reads may not have done

        self._method_of = method_of
        self.all = Latencies()
        self.by_method = False
        self.methods: dict[str, Latencies] = {}

    def add(self, seconds: float, message: Any) -> None:
        """The reply to ``message`` has come after so long."""
        found = self._of(message) if self.by_method else self.all
        found.classes[bisect_left(BUCKETS, seconds)] += 1
        found.seconds += seconds

    def _of(self, message: Any) -> Latencies:
        method = self._method_of(message) or f"({message.message_type.name})"
        found = self.methods.get(method)
        if found is None:
            method = method if _is_told_apart(method) else OTHERS
            found = self.methods.setdefault(method, Latencies())
        return found

    def merge_into(self, total: dict[str, Latencies]) -> None:
        """Add what there is to ``total``, by method."""
        for method, found in [(ALL, self.all), *list(self.methods.items())]:
            total.setdefault(method, Latencies()).merge(found)


_lock = process_lock()
_tallies: list[tuple[weakref.ref[Any], Tally]] = []
_gone: dict[str, Latencies] = {}
_methods: set[str] = set()  # of the whole process: labels stay bounded, however many callers


def _is_told_apart(method: str) -> bool:
    with _lock:
        if method in _methods or len(_methods) < MOST_METHODS:
            _methods.add(method)
            return True
        return False


def tally_of(caller: Any) -> Tally:
    """A new one, for a new caller."""
    made = Tally()
    with _lock:
        for each in [each for each in _tallies if each[0]() is None]:
            _tallies.remove(each)
            each[1].merge_into(_gone)
        _tallies.append((weakref.ref(caller), made))
    return made


def so_far() -> dict[str, Latencies]:
    """The calls of this process, by method; those that were not counted by method as :data:`ALL`.

    The parts of a histogram that is written meanwhile may differ by a call.
    """
    total: dict[str, Latencies] = {ALL: Latencies()}
    with _lock:
        for method, found in _gone.items():
            total.setdefault(method, Latencies()).merge(found)
        for _, each in list(_tallies):
            each.merge_into(total)
    return total
