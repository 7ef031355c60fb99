"""Connections that xoscar opened before :func:`xoscar_idle.install` was called."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import weakref
from collections.abc import Callable
from typing import Any

from xoscar.backends.core import ActorCallerThreadLocal

from .. import config
from ..instances import instances
from ..periodic import spawn
from .deadlines import clear as clear_deadline


def holder(owner: Any, client: Any) -> ActorCallerThreadLocal | None:
    """What opened ``client``, if that was xoscar itself: a transfer may be using it still."""
    stock = getattr(owner._thread_local, "actor_caller", None)
    return stock if stock is not None and client in stock._clients else None


_draining: dict[Any, asyncio.Task[None]] = {}  # by client; an event loop holds its tasks weakly
_leaving: weakref.WeakSet[asyncio.Task[None]] = weakref.WeakSet()
_stopped = True


def drain() -> None:
    """Close, each on its own loop, what xoscar holds open as soon as it is no longer used."""
    global _stopped
    _stopped = False
    for stock in instances(ActorCallerThreadLocal):
        for client, listener in list(stock._clients.items()):
            with contextlib.suppress(RuntimeError):  # closed: the loop, so nothing can be done
                listener.get_loop().call_soon_threadsafe(_start, stock, client)


def stop() -> None:
    """Leave to xoscar what is still open."""
    global _stopped
    _stopped = True
    for task in list(_draining.values()):
        with contextlib.suppress(RuntimeError):  # its loop is closed
            task.get_loop().call_soon_threadsafe(_leave, task)


def _leave(task: asyncio.Task[None]) -> None:
    _leaving.add(task)
    task.add_done_callback(_leaving.discard)
    task.cancel()


def listen(original: Callable[[Any, Any], None]) -> Callable[[Any, Any], None]:
    """For ``_listen_client`` of xoscar's own callers: a connect that was under way has ended."""

    @functools.wraps(original)
    def _listen_client(self: ActorCallerThreadLocal, client: Any) -> None:
        original(self, client)
        _start(self, client)

    return _listen_client


def _start(stock: ActorCallerThreadLocal, client: Any) -> None:
    if _stopped:
        return
    if (before := _draining.get(client)) is not None:
        if before in _leaving:  # uninstall(), and install() before it has ended
            before.add_done_callback(lambda _: _start(stock, client))
        return
    task = _draining[client] = spawn(asyncio.get_running_loop(), _drain(stock, client))
    task.add_done_callback(lambda _: _draining.pop(client, None))


async def _drain(stock: ActorCallerThreadLocal, client: Any) -> None:
    # Its calls are not counted, so use is sampled: a transfer that was under way is safe as long
    # as it sends a block per idle timeout.
    clear_deadline()
    seen: set[bytes] | None = None
    while not client.closed and (timeout := config.current().idle_timeout):
        waiting = set(stock._client_to_message_futures.get(client, ()))
        if not waiting and seen == set():
            await client.close()
            return
        seen = waiting
        await asyncio.sleep(timeout)
