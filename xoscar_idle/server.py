"""The accepting side: keepalive on accepted connections, and closing those that stay idle."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import logging
from collections.abc import Callable, Coroutine
from typing import Any

from xoscar.backends.communication.socket import SocketChannel, _BaseSocketServer

from . import config, wire
from .client import Clock, monotonic
from .deadlines import clear as clear_deadline
from .idle import IdleQueue, Lane
from .periodic import Periodic

logger = logging.getLogger("xoscar_idle")

_loops: dict[asyncio.AbstractEventLoop, Accepted] = {}


class Accepted(Periodic):
    """The accepted connections of one event loop, and how many requests each has in process."""

    def __init__(self, clock: Clock = monotonic) -> None:
        super().__init__(clock)
        self._in_process: dict[Any, int] = {}
        self._lanes: dict[Any, Lane[Any]] = {}
        self._idle: IdleQueue[Any] = IdleQueue()

    def add(self, channel: Any) -> None:
        """``channel`` has been accepted."""
        if channel not in self._in_process:
            self._in_process[channel] = 0
            self._file(channel)
            self.ensure_check()

    def discard(self, channel: Any) -> None:
        """``channel`` is closed."""
        if self._in_process.pop(channel, None) is not None:
            self._idle.leave(self._lanes.pop(channel), channel)
            self.ensure_check()
        if not self._in_process:
            _loops.pop(self.loop, None)

    def begin(self, channel: Any) -> None:
        """A request from ``channel`` is in process."""
        if channel in self._in_process:
            self._in_process[channel] += 1
            self._lanes[channel].in_use(channel)

    def end(self, channel: Any) -> None:
        """Its reply has been handed to the transport."""
        if channel in self._in_process:
            self._in_process[channel] -= 1
            if not self._in_process[channel]:
                self._lanes[channel].fell_idle(channel, self.clock())

    def apply_settings(self) -> None:
        """Let the settings in force hold for the connections there are."""
        for channel in self._in_process:
            self._idle.leave(self._lanes[channel], channel)
            self._file(channel)
        self.ensure_check()

    def sweep(self, now: float) -> None:
        """Close what has had no request in process for the timeout."""
        for channel in self._idle.expire(now):
            if channel.reader._buffer:  # a request is being received
                self._lanes[channel].fell_idle(channel, now)
                continue
            logger.debug("close an accepted connection of %s: idle", channel.local_address)
            transport = channel.writer.transport
            transport.close()  # flushes first, for as long as that is the peer's fault
            self.loop.call_later(wire.CLOSE_TIMEOUT, transport.abort)

    def next_expiry(self, now: float) -> float:
        """When the next connection can expire."""
        return self._idle.next_expiry(now)

    def _file(self, channel: Any) -> None:
        chosen = config.current()
        wire.keep_alive(channel, chosen.keepalive)
        wire.limit_unacknowledged(channel)
        # NIXL writes into memory between two requests: what is idle there cannot be told here.
        timed = type(channel) is SocketChannel
        lane = self._idle.join(chosen.server_idle_timeout if timed else 0)
        self._lanes[channel] = lane
        if not self._in_process[channel]:
            lane.fell_idle(channel, self.clock())


def serve(original: Callable[[Any, Any], Coroutine[Any, Any, None]]) -> Callable[..., Any]:
    """For ``on_new_channel`` of xoscar's pools: the whole life of an accepted connection."""

    @functools.wraps(original)
    async def on_new_channel(self: Any, channel: Any) -> None:
        clear_deadline()  # that of whoever made the pool, or connected within this process
        if not isinstance(channel, SocketChannel):
            return await original(self, channel)
        accepted = _here()
        accepted.add(channel)
        try:
            await original(self, channel)
        except OSError as error:
            # xoscar expects a peer to hang up, not the kernel to find that it is gone.
            logger.debug("an accepted connection of %s is dead: %s", channel.local_address, error)
        finally:
            accepted.discard(channel)

    return on_new_channel


def process(original: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., Any]:
    """For ``process_message`` of xoscar's pools: from a request to its reply."""

    @functools.wraps(original)
    async def process_message(self: Any, message: Any, channel: Any) -> None:
        clear_deadline()
        accepted = _here()
        accepted.begin(channel)
        try:
            await original(self, message, channel)
        finally:
            accepted.end(channel)

    return process_message


def _here() -> Accepted:
    loop = asyncio.get_running_loop()
    accepted = _loops.get(loop)
    if accepted is None:
        for other in [other for other in _loops if other.is_closed()]:
            del _loops[other]
        accepted = _loops[loop] = Accepted()
    return accepted


def apply_settings() -> None:
    """Let the settings in force hold on all loops."""
    for loop, accepted in list(_loops.items()):
        with contextlib.suppress(RuntimeError):  # it has just been closed
            loop.call_soon_threadsafe(accepted.apply_settings)


def adopt() -> None:
    """Keep alive what pools accepted before :func:`xoscar_idle.install`.

    Whether a request is in process there is not known, so they are not closed when idle.
    """
    # Not isinstance: proxies among all these objects act when they are asked for their class.
    for server in [o for o in gc.get_objects() if _BaseSocketServer in type(o).__mro__]:
        for channel in list(server._channels):
            wire.keep_alive(channel, config.current().keepalive)
