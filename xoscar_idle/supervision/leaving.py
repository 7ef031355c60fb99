"""The end of a main pool's process when one of its sub-pools is degraded, if that is asked for.

Whoever has started it, systemd or Kubernetes, is to take over: it sees an exit status of its own.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import functools
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from .sentinels import sentinels

logger = logging.getLogger("xoscar_idle")

STATUS = 76
"""That exit status. xoscar's own are 1 and 233, signals are from 128 on."""

PATIENCE = 10.0
"""Seconds after which the process has ended, be its main pools stopped or not."""

_lock = threading.Lock()


def leave(
    pools: Sequence[tuple[Any, asyncio.AbstractEventLoop]], why: str, tell: Callable[[], None]
) -> None:
    """Stop main pools on their loops, and end this process; in a thread of its own, once.

    ``tell`` lets the files that tell what is down be as things are now.
    """
    if _lock.acquire(blocking=False):
        # Two, since what the one does may never return: it writes to the program's log, too. The
        # interpreter waits for both: main pools that stop are what programs end with.
        for work in (functools.partial(_leave, pools, why, tell), _end_in_time):
            threading.Thread(target=work, name="xoscar-idle-leaving", daemon=False).start()


def _end_in_time() -> None:
    time.sleep(PATIENCE)
    os._exit(STATUS)


def _leave(
    pools: Sequence[tuple[Any, asyncio.AbstractEventLoop]], why: str, tell: Callable[[], None]
) -> None:
    try:
        tell()
        sentinels.freeze()
        logger.error(
            "%s: this process ends with exit status %d, as XOSCAR_EXIT_ON_DEGRADED asks for",
            why,
            STATUS,
        )
        stops = []
        for pool, loop in pools:
            with contextlib.suppress(RuntimeError):  # it is closed
                stops.append(asyncio.run_coroutine_threadsafe(pool.stop(), loop))
        concurrent.futures.wait(stops)
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()
    finally:
        os._exit(STATUS)
