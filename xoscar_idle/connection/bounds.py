"""How much may wait in this process, over all threads and loops."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

from xoscar.serialization import serialize

logger = logging.getLogger("xoscar_idle")

MOST_CALLS = 10_000
"""Calls of a process that wait; more fail at once."""

MOST_BYTES = 256 << 20
"""Bytes of their messages."""


class Bounds:
    """What waits in this process, over all threads."""

    def __init__(self, calls: int = MOST_CALLS, size: int = MOST_BYTES) -> None:
        self._most_calls, self._most_bytes = calls, size
        # Reentrant: a finalizer may run wherever memory is allocated.
        self._lock = threading.RLock()
        self._by_pool: Counter[str] = Counter()
        self._bytes = 0
        self._told = False

    def take(self, pool: str, size: int) -> bool:
        """One more wants to wait, of so many bytes; whether there is room."""
        with self._lock:
            room = (
                sum(self._by_pool.values()) < self._most_calls
                and self._bytes + size <= self._most_bytes
            )
            if room:
                self._by_pool[pool] += 1
                self._bytes += size
        if not room and not self._told:
            self._told = True
            logger.warning(
                "calls to pool %s do not wait for its recovery: %d calls with messages of %d bytes "
                "do already, and no more than %d, or %d bytes, may",
                pool,
                sum(self._by_pool.values()),
                self._bytes,
                self._most_calls,
                self._most_bytes,
            )
        return room

    def leave(self, pool: str, size: int) -> None:
        """One waits no more."""
        with self._lock:
            self._by_pool[pool] -= 1
            self._bytes -= size
            if not self._by_pool[pool]:
                del self._by_pool[pool]

    def by_pool(self) -> dict[str, int]:
        """How many wait, by the address of the pool."""
        with self._lock:
            return dict(self._by_pool)


process = Bounds()
"""Those of this process."""


def after_fork() -> None:
    """In a forked child: what waits is the parent's."""
    global process
    process = Bounds()


def size_of(message: Any) -> int | None:
    """Bytes that it takes; None: that is not known, since it cannot be written."""
    token = _measuring.set(True)
    try:
        header, buffers = serialize(message)
        return sum(_nbytes(each) for each in (*buffers, *_flat(header)))
    except Exception:
        return None
    finally:
        _measuring.reset(token)


def is_measuring() -> bool:
    """Whether what is serialized here and now is not sent."""
    return _measuring.get()


_measuring: ContextVar[bool] = ContextVar("xoscar_idle_measuring", default=False)


def _flat(header: Any) -> Iterator[Any]:
    """The bytes and texts of a header, which has all that is small."""
    if isinstance(header, (tuple, list)):
        for each in header:
            yield from _flat(each)
    elif isinstance(header, (bytes, str)):
        yield header


def _nbytes(buffer: Any) -> int:
    return int(getattr(buffer, "nbytes", None) or len(buffer))
