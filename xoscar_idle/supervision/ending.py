"""Ending the process of a sub-pool, with all that it has started."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import time
from collections.abc import Callable, Coroutine
from typing import Any

import psutil

from .. import config
from . import draining, subpool
from .subpool import Subpool

logger = logging.getLogger("xoscar_idle")

BOUND = 30.0
"""Seconds in which a process has ended that was asked to, terminated and killed, as xoscar does."""

STOP_TIMEOUT = 2.0
"""Seconds that xoscar gives a sub-pool to stop, where nobody says otherwise."""

STACKS = 1.0
"""Seconds that a process has to write its stacks before it is killed."""

_LOOK_EVERY = 0.02


async def end(pool: Any, address: str, found: Subpool, why: str) -> None:
    """End a living process as its main pool does; that is no crash.

    Parameters
    ----------
    why
        What callers are told, who are cut off.
    """
    found.requested = found.requested or why
    await pool.stop_sub_pool(address, found.process)


async def kill(found: Subpool, why: str) -> None:
    """Kill a process that hangs, when it has told its stacks; that is a crash.

    Parameters
    ----------
    why
        What callers and its record tell.
    """
    if found.killed or found.death.told:
        return
    found.killed = why
    children = _children(found.pid)
    found.ask_stacks()
    until = time.monotonic() + STACKS
    while found.asked_stacks and not found.doing() and time.monotonic() < until:  # noqa: ASYNC110
        await asyncio.sleep(_LOOK_EVERY)
    found.keep_stacks()
    if not found.death.told:
        with contextlib.suppress(ProcessLookupError):
            found.process.kill()
    _kill(children)


def stopped(original: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., Any]:
    """For ``stop_sub_pool`` of xoscar's main pools: no crash, and with ``act`` no loss either."""

    @functools.wraps(original)
    async def stop_sub_pool(
        self: Any, address: str, process: Any, timeout: float | None = None, force: bool = False
    ) -> None:
        found = subpool.of_any(process)
        if found is None:
            return await original(self, address, process, timeout=timeout, force=force)
        found.requested = found.requested or "it was stopped by its main pool"
        if config.current().supervise != "act":
            return await original(self, address, process, timeout=timeout, force=force)
        children = _children(found.pid)
        try:
            if not force and not found.drained:
                patience = STOP_TIMEOUT if timeout is None else timeout
                await draining.drain(self, address, found, patience)
            return await original(self, address, process, timeout=timeout, force=force)
        finally:
            if not _lives(found):
                _kill(children)

    return stop_sub_pool


def _lives(found: Subpool) -> bool:
    return not (found.death.told or found.has_ended() or found.is_ending())


def _children(pid: int) -> list[psutil.Process]:
    """All that a process has started, and they; psutil knows them from others of that number."""
    try:
        found: list[psutil.Process] = psutil.Process(pid).children(recursive=True)
        return found
    except psutil.Error:
        return []


def _kill(processes: list[psutil.Process]) -> None:
    """Kill those that still live: nobody else would end them."""
    for each in processes:
        with contextlib.suppress(psutil.Error):
            logger.debug("kill process %d, which a sub-pool has left", each.pid)
            each.kill()
