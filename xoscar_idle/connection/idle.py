"""Who is idle since when, and who has been idle for too long.

Plain bookkeeping: time is an argument, nothing is awaited and nothing is closed here.

Items with the same timeout share a :class:`Lane`, in which the order of falling idle is the order
of expiry. So falling idle and being used again are one dictionary operation each, and a look for
what has expired touches what has expired and nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from typing import Generic, TypeVar

T = TypeVar("T", bound=Hashable)


class Lane(Generic[T]):
    """The items that share one timeout (seconds; ``math.inf``: they never expire)."""

    __slots__ = ("_since", "evictable", "members", "timeout")

    def __init__(self, timeout: float, evictable: bool = True) -> None:
        self.timeout = timeout
        self.evictable = evictable
        self.members = 0
        self._since: dict[T, float] = {}

    def fell_idle(self, item: T, now: float) -> None:
        """Nobody uses ``item`` from ``now`` on."""
        self._since[item] = now

    def in_use(self, item: T) -> None:
        """Somebody uses ``item``, or it is gone: it does not expire."""
        self._since.pop(item, None)

    def since(self, item: T) -> float | None:
        """When ``item`` fell idle; None if it is not."""
        return self._since.get(item)

    def oldest(self) -> tuple[float, T] | None:
        """Who fell idle first, and when; None if nobody is idle."""
        return next(((since, item) for item, since in self._since.items()), None)

    def expired(self, item: T, now: float) -> bool:
        """Whether ``item`` has been idle for the timeout at ``now``."""
        since = self._since.get(item)
        return since is not None and since + self.timeout <= now

    def expire(self, now: float) -> list[T]:
        """Take out, oldest first, what has been idle for the timeout at ``now``."""
        done = []
        for item, since in self._since.items():
            if since + self.timeout > now:
                break
            done.append(item)
        for item in done:
            del self._since[item]
        return done

    def next_expiry(self, now: float) -> float:
        """No item can expire before this time: also none that falls idle after ``now``."""
        return next(iter(self._since.values()), now) + self.timeout


class IdleQueue(Generic[T]):
    """The lanes of one owner."""

    __slots__ = ("_lanes",)

    def __init__(self) -> None:
        self._lanes: dict[tuple[float, bool], Lane[T]] = {}

    def join(self, timeout: float, evictable: bool = True) -> Lane[T]:
        """The lane for a new item.

        Parameters
        ----------
        timeout
            Seconds; 0 means that the item never expires.
        evictable
            Whether :meth:`oldest` may name it.
        """
        key = timeout or math.inf, evictable
        lane = self._lanes.get(key)
        if lane is None:
            lane = self._lanes[key] = Lane(*key)
        lane.members += 1
        return lane

    def leave(self, lane: Lane[T], item: T) -> None:
        """``item`` is gone; a lane without members goes with its last one.

        A lane that is none of this queue's is left alone.
        """
        key = lane.timeout, lane.evictable
        if self._lanes.get(key) is not lane:
            return
        lane.in_use(item)
        lane.members -= 1
        if not lane.members:
            del self._lanes[key]

    def oldest(self) -> tuple[float, T] | None:
        """Who fell idle first of all that are evictable, and when; None if nobody is idle."""
        lanes = [lane for lane in self._lanes.values() if lane.evictable]
        heads = [head for lane in lanes if (head := lane.oldest()) is not None]
        return min(heads, key=lambda head: head[0], default=None)

    def expire(self, now: float) -> list[T]:
        """Take out whatever has been idle for its timeout at ``now``."""
        return [item for lane in self._lanes.values() for item in lane.expire(now)]

    def next_expiry(self, now: float) -> float:
        """No item can expire before this time; ``math.inf`` where none ever will."""
        return min((lane.next_expiry(now) for lane in self._lanes.values()), default=math.inf)
