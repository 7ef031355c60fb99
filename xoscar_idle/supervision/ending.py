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
from ..periodic import Background
from . import draining, subpool
from .subpool import Subpool

logger = logging.getLogger("xoscar_idle")

BOUND = 30.0
"""Seconds in which a process has ended that was asked to, terminated and killed, as xoscar does."""

STOP_TIMEOUT = 2.0
"""Seconds that xoscar gives a sub-pool to stop, where nobody says otherwise."""

STACKS = 1.0
"""Seconds that a process has to write its stacks before it is killed."""

CHILDREN = 1.0
"""Seconds that what it has started has to end after it, as helpers do that tidy up."""

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
    if found.is_being_killed or found.death.told:
        return
    found.is_being_killed = True
    children = Children(found.pid)
    found.ask_stacks()
    until = time.monotonic() + STACKS
    while found.asked_stacks and not found.doing() and time.monotonic() < until:  # noqa: ASYNC110
        await asyncio.sleep(_LOOK_EVERY)
    if not found.death.told and not found.is_ending():  # else it is what it has died of
        found.keep_stacks()
        found.killed = why
        children.look()
        # First: it could start others in their place.
        with contextlib.suppress(ProcessLookupError):
            found.process.kill()
    await children.end()


def stopped(original: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., Any]:
    """For ``stop_sub_pool`` of xoscar's main pools: no crash, and with ``act`` no loss either."""

    @functools.wraps(original)
    async def stop_sub_pool(
        self: Any, address: str, process: Any, timeout: float | None = None, force: bool = False
    ) -> None:
        stop = functools.partial(original, self, address, process, timeout=timeout, force=force)
        found = subpool.known(process)
        if found is None:
            await stop()
            return
        found.requested = found.requested or "it was stopped by its main pool"
        if config.current().supervise != "act":
            await stop()
            return
        children = Children(found.pid)
        try:
            if not force:
                await _drain(self, address, found, STOP_TIMEOUT if timeout is None else timeout)
        except asyncio.CancelledError:
            # Whoever has not waited for it wants it to end all the same.
            _background.spawn(asyncio.get_running_loop(), _stop(stop, found, children))
            raise
        children.look()  # again: what was in process may have started more
        await _stop(stop, found, children)

    return stop_sub_pool


async def _drain(pool: Any, address: str, found: Subpool, seconds: float) -> None:
    if found.drain_is_over:  # somebody has been patient before
        return
    if not await draining.drain(pool, address, found, seconds) and not found.drain_is_over:
        found.drain_is_over = True
        found.requested += draining.undone(found, seconds)


async def _stop(
    stop: Callable[[], Coroutine[Any, Any, None]], found: Subpool, children: Children
) -> None:
    try:
        await stop()
    finally:
        if found.death.told or found.has_ended() or found.is_ending():
            await children.end()
        else:
            draining.admit(found)


_background = Background()


class Children:
    """All that a process has started, and they, as far as they were there when it was looked.

    psutil knows them from others that get their numbers.
    """

    def __init__(self, pid: int) -> None:
        self._parent = pid
        self._found: dict[int, psutil.Process] = {}
        self.look()

    def look(self) -> None:
        """See who has come since."""
        self._add(self._parent)

    def _add(self, parent: int) -> None:
        with contextlib.suppress(psutil.Error):
            for each in psutil.Process(parent).children(recursive=True):
                self._found.setdefault(each.pid, each)

    async def end(self) -> None:
        """The parent has ended: kill those that do not follow it by themselves."""
        until = time.monotonic() + CHILDREN
        while (living := self._living()) and time.monotonic() < until:  # noqa: ASYNC110
            await asyncio.sleep(_LOOK_EVERY)
        for each in living:
            self._add(each.pid)  # what has come meanwhile, while it is known whose it is
        for each in self._living():  # parents first, as above
            with contextlib.suppress(psutil.Error):
                logger.debug("kill process %d, which a sub-pool has left", each.pid)
                each.kill()

    def _living(self) -> list[psutil.Process]:
        return [each for each in self._found.values() if _lives(each)]


def _lives(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False
