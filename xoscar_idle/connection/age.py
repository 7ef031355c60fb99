"""Who has reached the age at which it is to be replaced.

Plain bookkeeping, as in :mod:`xoscar_idle.connection.idle`: time is an argument.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Hashable
from typing import Generic, TypeVar

T = TypeVar("T", bound=Hashable)


class AgeQueue(Generic[T]):
    """Items by the time at which they retire."""

    # Those that leave before their time stay in the heap until they reach its top, or until they
    # are the most of it: so joining and leaving cost the logarithm of what is there.

    __slots__ = ("_heap", "_order", "_times")

    def __init__(self) -> None:
        self._times: dict[T, float] = {}
        self._heap: list[tuple[float, int, T]] = []
        self._order = itertools.count()

    def join(self, item: T, time: float) -> None:
        """``item`` retires at ``time``; ``math.inf`` means never."""
        self.leave(item)
        if time < math.inf:
            self._times[item] = time
            heapq.heappush(self._heap, (time, next(self._order), item))

    def leave(self, item: T) -> None:
        """``item`` is gone."""
        if self._times.pop(item, None) is not None and len(self._heap) > 2 * len(self._times) + 16:
            self._heap = [entry for entry in self._heap if self._times.get(entry[2]) == entry[0]]
            heapq.heapify(self._heap)

    def expire(self, now: float) -> list[T]:
        """Take out, oldest first, what has reached its time."""
        done = []
        while self._heap and self._heap[0][0] <= now:
            time, _, item = heapq.heappop(self._heap)
            if self._times.get(item) == time:
                del self._times[item]
                done.append(item)
        return done

    def next_expiry(self) -> float:
        """Nothing reaches its time before this; ``math.inf`` where nothing ever will."""
        while self._heap and self._times.get(self._heap[0][2]) != self._heap[0][0]:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else math.inf
