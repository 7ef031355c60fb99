"""Every :class:`ActorCaller` of this process: found by thread and event loop, ended with them.

xoscar gives each context and each pool one caller object, an *owner* here. What an owner has in
one thread hangs on the owner's ``threading.local``, so that it goes with the thread and with the
owner; within a thread there is one :class:`ActorCaller` per event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import weakref
from collections.abc import Callable
from typing import Any

from .caller import ActorCaller

_Callers = dict[asyncio.AbstractEventLoop, ActorCaller]

_lock = threading.RLock()  # reentrant: a finalizer may run wherever memory is allocated
_threads: list[_Callers] = []  # what each owner has in each thread
_watched: weakref.WeakSet[asyncio.AbstractEventLoop] = weakref.WeakSet()
_parents: list[ActorCaller] = []  # in a forked child: kept, since their destructors would act


def here(owner: Any) -> ActorCaller:
    """The caller of ``owner`` for this thread and the running event loop."""
    loop = asyncio.get_running_loop()
    try:
        caller: ActorCaller = owner._thread_local.idle_callers[loop]
    except (AttributeError, KeyError):
        caller = _create(owner._thread_local, loop)
    return caller


def of_this_thread(owner: Any) -> list[ActorCaller]:
    """The callers of ``owner`` in this thread, whatever their loops."""
    return list(getattr(owner._thread_local, "idle_callers", {}).values())


def everywhere() -> list[ActorCaller]:
    """All callers of this process."""
    with _lock:
        return [caller for callers in list(_threads) for caller in list(callers.values())]


class _Anchor:
    """Goes when its thread ends, or its owner."""

    __slots__ = ("__weakref__",)


def _create(local: threading.local, loop: asyncio.AbstractEventLoop) -> ActorCaller:
    _release_closed_loops()
    caller = ActorCaller()
    with _lock:
        if not hasattr(local, "idle_callers"):
            callers: _Callers = {}
            local.idle_callers, local.idle_anchor = callers, _Anchor()
            weakref.finalize(local.idle_anchor, _anchor_lost, callers).atexit = False
            _threads.append(callers)
        local.idle_callers[loop] = caller
    if loop not in _watched:
        # A loop says nobody when it is closed. One that takes no attributes is found closed
        # when the next caller is made.
        with contextlib.suppress(AttributeError, TypeError):
            loop.close = _CloseAndRelease(loop.close)  # type: ignore[method-assign]
            _watched.add(loop)
    return caller


class _CloseAndRelease:
    """A loop's ``close``, and the end of the connections that it leaves open."""

    def __init__(self, close: Callable[[], None]) -> None:
        self._close = close

    def __call__(self) -> None:
        self._close()
        _release_closed_loops()


def unwatch_loops() -> None:
    """Give all loops their own ``close`` back."""
    for loop in list(_watched):
        if isinstance(loop.close, _CloseAndRelease):
            del loop.close
    _watched.clear()


def _release_closed_loops() -> None:
    with _lock:
        closed = [
            callers.pop(loop)
            for callers in list(_threads)
            for loop in list(callers)
            if loop.is_closed()
        ]
    for caller in closed:
        caller.sever("loop")


def _anchor_lost(callers: _Callers) -> None:
    with _lock:
        _threads[:] = [other for other in _threads if other is not callers]
    for loop, caller in list(callers.items()):
        if loop.is_running():
            # The owner has gone, not the thread; or the loop has moved to another one.
            loop.call_soon_threadsafe(caller.close, "thread")
        else:
            caller.sever("thread")


def _forked() -> None:
    global _lock
    _lock = threading.RLock()
    for callers in _threads:
        for caller in callers.values():
            caller.disown()
            _parents.append(caller)
        callers.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
    router.disown_loose()
