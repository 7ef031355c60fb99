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

from ..locks import process_lock
from . import routing
from .caller import ActorCaller


class _Held:
    """What one owner has in one thread."""

    def __init__(self, owner: Callable[[], threading.local | None]) -> None:
        self.owner = owner
        self.callers: dict[asyncio.AbstractEventLoop, ActorCaller] = {}
        self.orphaned = False
        """Their thread has ended; their loops have moved to others."""


_lock = process_lock()
_pid = os.getpid()
_threads: list[_Held] = []
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
        return [caller for held in list(_threads) for caller in list(held.callers.values())]


class _Anchor:
    """Goes when its thread ends, or its owner."""

    __slots__ = ("__weakref__",)


def _create(local: threading.local, loop: asyncio.AbstractEventLoop) -> ActorCaller:
    _release(_closed_unseen)
    # None is to go while the lock is held, since its end may wait for other locks.
    owners = [held.owner() for held in list(_threads)]
    with _lock:
        held: _Held | None = getattr(local, "idle_held", None)
        if held is None:
            # Without a callback: one that runs while Python destroys a threading.local is run over
            # by the garbage collector, which still finds the object (CPython 3.11, seen to crash).
            held = _Held(weakref.ref(local))
            local.idle_held, local.idle_callers = held, held.callers
            local.idle_anchor = _Anchor()
            weakref.finalize(local.idle_anchor, _anchor_lost, held).atexit = False
            _threads.append(held)
        caller = _moved(local, loop) or ActorCaller()
        held.callers[loop] = caller
    del owners
    _watch(loop)
    return caller


def _watch(loop: asyncio.AbstractEventLoop) -> None:
    if loop not in _watched:
        # A loop says nobody when it is closed. One that takes no attributes is found closed
        # when the next caller is made.
        with contextlib.suppress(AttributeError, TypeError):
            loop.close = _CloseAndRelease(loop)  # type: ignore[method-assign]
            _watched.add(loop)


def watch_loops() -> None:
    """Watch all loops that have callers: from before an :func:`unwatch_loops`, too."""
    for caller in everywhere():
        _watch(caller.loop)


def _moved(local: threading.local, loop: asyncio.AbstractEventLoop) -> ActorCaller | None:
    """What the owner had on ``loop`` while another thread ran it."""
    for held in list(_threads):  # looking may collect an owner, whose callers then go
        if held.owner() is local and loop in held.callers:
            caller = held.callers.pop(loop)
            caller.follow()
            _forget_orphans()
            return caller
    return None


def _forget_orphans() -> None:
    _threads[:] = [held for held in _threads if held.callers or not held.orphaned]


class _CloseAndRelease:
    """A loop's ``close``, and the end of the connections that it leaves open."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._close = loop.close
        self._loop = weakref.ref(loop)

    def __call__(self) -> None:
        self._close()
        if (loop := self._loop()) is not None:
            _release(lambda other: other is loop)


def unwatch_loops() -> None:
    """Give all loops their own ``close`` back."""
    for loop in list(_watched):
        if isinstance(loop.close, _CloseAndRelease):
            del loop.close
    _watched.clear()


def _release(closed: Callable[[asyncio.AbstractEventLoop], bool]) -> None:
    """Let go of what there is on loops that are closed."""
    with _lock:
        found = [
            held.callers.pop(loop)
            for held in list(_threads)
            for loop in list(held.callers)
            if closed(loop)
        ]
        _forget_orphans()
    for caller in found:
        caller.sever("loop")


def _closed_unseen(loop: asyncio.AbstractEventLoop) -> bool:
    # A loop that is watched is left to the thread that closes it, which may be in the middle of it.
    return loop.is_closed() and loop not in _watched


def _anchor_lost(held: _Held) -> None:
    """Their thread has ended, or their owner has gone."""
    if os.getpid() != _pid:
        # A child that is just being forked drops the threads that it does not have, before any of
        # our hooks runs there: all of this is the parent's, and the lock may be held for ever.
        return
    with _lock:
        held.orphaned = True
        # A loop that runs while its thread has ended runs in another thread, to which it has moved.
        # Its connections stay where the owner finds them, and are closed when idle as any.
        ended = [
            held.callers.pop(loop)
            for loop in list(held.callers)
            if held.owner() is None or not loop.is_running()
        ]
        _forget_orphans()
    for caller in ended:
        _end(caller)


def _end(caller: ActorCaller) -> None:
    if caller.loop.is_running():
        with contextlib.suppress(RuntimeError):  # closed just now
            caller.loop.call_soon_threadsafe(caller.close, "thread")
            return
    caller.sever("thread")


def after_fork() -> None:
    """In a forked child: give up the copies of the parent's connections."""
    global _pid
    _pid = os.getpid()
    for held in _threads:
        for caller in held.callers.values():
            caller.disown()
            _parents.append(caller)
        held.callers.clear()
    routing.disown_loose()
