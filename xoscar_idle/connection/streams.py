"""Remote generators that nobody reads any more.

xoscar lets go of one when Python finds that it is garbage: the finalizer starts a thread, which
tells the actor, and waits for it. Finalizers run wherever memory is allocated. So an event loop
would stand still until the pool answers, for ever if it does not; and what is interrupted may hold
a lock which the thread needs, so that each waits for the other. Here it is waited for as long as it
takes where all is well, and at the end of the process.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import functools
import logging
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from . import bounds, holding

logger = logging.getLogger("xoscar_idle")

PATIENCE = 0.1
"""Seconds for which an event loop stands still at most, once for each pool that does not answer."""

AT_END = 1.0
"""Seconds for which a process waits at its end for pools to be told."""

_under_way: dict[threading.Thread, str] = {}
"""Who tells, and the address of the pool."""


def let_go(original: Callable[[Any], None]) -> Callable[[Any], None]:
    """For ``__del__`` of xoscar's remote generators: what it begins is not waited for for ever."""

    @functools.wraps(original)
    def __del__(self: Any) -> None:
        # Somebody else has it; or no thread can be started any more, before Python 3.12 without
        # an error.
        if not self._gc_destroy or sys.is_finalizing():
            return
        patience = 0.0 if self._actor_addr in list(_under_way.values()) else PATIENCE
        telling = threading.Thread(target=_tell, args=(self,), daemon=True)
        _under_way[telling] = self._actor_addr
        try:
            telling.start()
            telling.join(patience)
        except RuntimeError as error:  # there are too many threads
            _under_way.pop(telling, None)
            logger.debug("a remote generator is not let go of: %s", error)

    return __del__


def hand_on(original: Callable[[Any], dict[str, Any]]) -> Callable[[Any], dict[str, Any]]:
    """For ``__getstate__`` of them: they stay whose they are where that is not for sending them."""

    @functools.wraps(original)
    def __getstate__(self: Any) -> dict[str, Any]:
        before = self._gc_destroy
        state = original(self)
        if bounds.is_measuring():
            self._gc_destroy = before
        return state

    return __getstate__


def _tell(stream: Any) -> None:
    try:
        with holding.off():  # one whose pool has died has died with it
            asyncio.run(stream.destroy())
    except Exception as error:
        logger.debug("a remote generator is not let go of: %r", error)
    finally:
        _under_way.pop(threading.current_thread(), None)


def wait(seconds: float = AT_END) -> None:
    """Wait until all pools have been told, within so many seconds."""
    until = time.monotonic() + seconds
    for each in list(_under_way):
        with contextlib.suppress(RuntimeError):  # not started yet
            each.join(max(0.0, until - time.monotonic()))


atexit.register(wait)
