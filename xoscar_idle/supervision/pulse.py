"""Whether the event loop of a main pool answers, seen from another thread."""

from __future__ import annotations

import asyncio
import contextlib
import time

from ..connection.loops import stack_of as stack_of
from . import health


class Pulse:
    """Asks a loop for a sign, one at a time. Times are monotonic, in seconds."""

    def __init__(self, loop: asyncio.AbstractEventLoop, thread: int) -> None:
        self._loop = loop
        self._thread = thread
        self._asked = 0.0  # 0: no sign is waited for
        self._took = 0.0

    def ask(self, now: float) -> None:
        """Ask for a sign, unless one is waited for."""
        if self._loop.is_closed():  # the pool has ended, and what was asked is never answered
            self._asked = 0.0
        elif not self._asked:
            self._asked = now
            with contextlib.suppress(RuntimeError):  # it has been closed just now
                self._loop.call_soon_threadsafe(self._answer)

    def _answer(self) -> None:
        self._took, self._asked = time.monotonic() - self._asked, 0.0

    def lag(self, now: float) -> float:
        """How long the loop took to answer last, or has not answered now."""
        asked = self._asked
        return max(self._took, now - asked) if asked else self._took

    def is_busy(self, now: float) -> bool:
        """Whether it has been silent for too long."""
        asked = self._asked
        return bool(asked) and now - asked >= health.BUSY

    def doing(self) -> str:
        """The stack of its thread, the innermost call first."""
        return stack_of(self._thread)
