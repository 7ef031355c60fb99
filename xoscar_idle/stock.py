"""Connections that xoscar opened before :func:`xoscar_idle.install` was called."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from typing import Any

from xoscar.backends.core import ActorCallerThreadLocal

from . import config


def holder(owner: Any, client: Any) -> ActorCallerThreadLocal | None:
    """What opened ``client``, if that was xoscar itself: a transfer may be using it still."""
    stock = getattr(owner._thread_local, "actor_caller", None)
    return stock if stock is not None and client in stock._clients else None


def drain() -> None:
    """Close, each on its own loop, what xoscar holds open as soon as it is no longer used."""
    for stock in [o for o in gc.get_objects() if type(o) is ActorCallerThreadLocal]:
        for client, listener in list(stock._clients.items()):
            loop = listener.get_loop()
            with contextlib.suppress(RuntimeError):  # closed: the loop, so nothing can be done
                loop.call_soon_threadsafe(_start, stock, client)


_draining: set[asyncio.Task[None]] = set()  # an event loop holds its tasks weakly


def _start(stock: ActorCallerThreadLocal, client: Any) -> None:
    task = asyncio.get_running_loop().create_task(_drain(stock, client))
    _draining.add(task)
    task.add_done_callback(_draining.discard)


async def _drain(stock: ActorCallerThreadLocal, client: Any) -> None:
    # Its calls are not counted, so use is sampled: a transfer that was under way is safe as long
    # as it sends a block per idle timeout.
    seen: set[bytes] | None = None
    while not client.closed and (timeout := config.current().idle_timeout):
        waiting = set(stock._client_to_message_futures.get(client, ()))
        if not waiting and seen == set():
            await client.close()
            return
        seen = waiting
        await asyncio.sleep(timeout)
