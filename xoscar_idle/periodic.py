"""One task, asleep until something can expire; none where nothing can."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Coroutine
from typing import Any, TypeVar

from .clock import Clock

T = TypeVar("T")


def spawn(loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
    """A task of ours on ``loop``; whoever makes it keeps it.

    Not by the loop's own factory: an eager one (``asyncio.eager_task_factory``, Python 3.12) would
    run its first step here and now, before its maker has put anything in its place.
    """
    return asyncio.Task(work, loop=loop)


class Background:
    """Tasks that nobody waits for, kept until they have ended: a loop holds its tasks weakly."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def spawn(self, loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, None]) -> None:
        """Let ``work`` run on ``loop``."""
        task = spawn(loop, work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def tasks(self) -> list[asyncio.Task[None]]:
        """Those that have not ended."""
        return list(self._tasks)


class Periodic:
    """Calls :meth:`sweep` when :meth:`next_expiry` says so, on the loop that it was made on."""

    def __init__(self, clock: Clock) -> None:
        self.loop = asyncio.get_running_loop()
        self.clock = clock
        self._check: asyncio.Task[None] | None = None
        self._check_at = 0.0
        self._sweeping = False

    def sweep(self, now: float) -> None:
        """Deal with what has expired at ``now``."""
        raise NotImplementedError

    def next_expiry(self, now: float) -> float:
        """Nothing expires before this time; ``math.inf`` where nothing ever will."""
        raise NotImplementedError

    async def periodic_check(self) -> None:
        """Sweep, and sleep until something can expire; ends when nothing can any more."""
        while True:
            now = self.clock()
            self._sweeping = True
            try:
                self.sweep(now)
            finally:
                self._sweeping = False
            self._check_at = self.next_expiry(now)
            if self._check_at == math.inf:
                self._check = None
                return
            await asyncio.sleep(self._check_at - now)

    def ensure_check(self) -> None:
        """Let the check run, and wake it if it sleeps for too long."""
        if self._sweeping:
            return  # it looks for itself when it has swept, and is not to be ended meanwhile
        expiry = self.next_expiry(self.clock())
        if self._check is not None and not self._check.done():  # an error may have ended it
            if self._check_at <= expiry < math.inf:
                return
            self._check.cancel()
            self._check = None
        if expiry < math.inf:
            self._check_at = expiry
            self._check = spawn(self.loop, self.periodic_check())
