"""The accepting side: keepalive on accepted connections, and closing those that stay idle."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import logging
import math
import select
import time
from collections.abc import Callable, Coroutine
from contextvars import ContextVar
from typing import Any

from xoscar.backends.communication.dummy import DummyChannel
from xoscar.backends.communication.socket import SocketChannel, _BaseSocketServer

from .. import config
from ..clock import Clock, monotonic
from ..periodic import Periodic
from . import frames, transports
from .age import AgeQueue
from .deadlines import clear as clear_deadline
from .idle import IdleQueue, Lane

logger = logging.getLogger("xoscar_idle")

_loops: dict[asyncio.AbstractEventLoop, Accepted] = {}


class Accepted(Periodic):
    """The accepted connections of one event loop, and how many requests each has in process.

    One that has none is looked at when it has been idle for the timeout. If a frame is under way
    then, or a reply, it is looked at again when that may have taken too long.
    """

    def __init__(self, clock: Clock = monotonic) -> None:
        super().__init__(clock)
        self.forgotten = False
        self.answer_lost = 0.0
        """When a connection was lost with a request in process, in monotonic time; 0: none was."""
        self._in_process: dict[Any, int] = {}
        self._lanes: dict[Any, Lane[Any]] = {}
        self._idle: IdleQueue[Any] = IdleQueue()
        self._again: AgeQueue[Any] = AgeQueue()

    def add(self, channel: Any) -> None:
        """``channel`` has been accepted."""
        if channel not in self._in_process:
            self._in_process[channel] = 0
            self._file(channel)
            self.ensure_check()

    def discard(self, channel: Any) -> None:
        """``channel`` is closed."""
        if channel in self._in_process:
            if self._in_process[channel]:
                self.answer_lost = time.monotonic()
            self._let_go(channel)
            self.ensure_check()
        if not self._in_process and _loops.get(self.loop) is self:
            del _loops[self.loop]

    def begin(self, channel: Any) -> None:
        """A request from ``channel`` is in process."""
        if channel in self._in_process:
            self._in_process[channel] += 1
            self._lanes[channel].in_use(channel)
            self._again.leave(channel)

    def end(self, channel: Any) -> None:
        """Its reply has been handed to the transport."""
        if channel in self._in_process:
            self._in_process[channel] -= 1
            if not self._in_process[channel]:
                self._lanes[channel].fell_idle(channel, self.clock())

    def in_process(self) -> dict[Any, int]:
        """The connections, and how many requests each has in process."""
        return dict(self._in_process)

    def apply_settings(self) -> None:
        """Let the settings in force hold for the connections there are."""
        for channel in list(self._in_process):
            self._unfile(channel)
            self._file(channel)
        self.ensure_check()

    def forget(self) -> None:
        """Have nothing to do with the connections there are any more."""
        for channel in list(self._in_process):
            self._let_go(channel)
        self.ensure_check()

    def sweep(self, now: float) -> None:
        """Close what has had no request in process, and no byte of one, for the timeout."""
        if self.forgotten:
            return
        for channel in [*self._idle.expire(now), *self._again.expire(now)]:
            try:
                at = self._patience_ends(channel, now)
            except Exception:  # of a transport that is not like others; the rest goes on
                self._let_go(channel)
                _unfiled(channel)
                continue
            if at > now:
                self._again.join(channel, at)
                continue
            received = channel.reader.unfinished
            why = f"no more than {received} bytes of a message came" if received else "idle"
            logger.debug("close an accepted connection of %s: %s", channel.local_address, why)
            channel.writer.transport.close()  # there is nothing to flush

    def next_expiry(self, now: float) -> float:
        """When the next connection can expire."""
        if self.forgotten:
            return math.inf
        return min(self._idle.next_expiry(now), self._again.next_expiry())

    def _patience_ends(self, channel: Any, now: float) -> float:
        """When to close a connection that has no request in process; it may be past."""
        timeout = self._lanes[channel].timeout
        transport = channel.writer.transport
        # A loop that was blocked may come here before it reads what has come in the meantime.
        waits = channel.reader.starving and not _readable(transport)
        if not waits or transport.get_write_buffer_size():
            return now + timeout
        at: float = channel.reader.patience_ends(timeout)
        return at

    def _file(self, channel: Any) -> None:
        """Put a connection into its lane; one that cannot be is served all the same."""
        try:
            chosen = config.current()
            transports.keep_alive(channel, chosen.keepalive)
            transports.limit_unacknowledged(channel)
            # NIXL writes into memory between two requests: what is idle there cannot be told here.
            timed = frames.watch(channel, self.clock)
            lane = self._idle.join(chosen.server_idle_timeout if timed else 0)
            self._lanes[channel] = lane
            if not self._in_process[channel]:
                lane.fell_idle(channel, self.clock())
        except Exception:
            self._let_go(channel)
            _unfiled(channel)

    def _unfile(self, channel: Any) -> None:
        self._again.leave(channel)
        if (lane := self._lanes.pop(channel, None)) is not None:
            self._idle.leave(lane, channel)

    def _let_go(self, channel: Any) -> None:
        del self._in_process[channel]
        self._unfile(channel)


def _readable(transport: Any) -> bool:
    """Whether bytes have come, or an end, that the event loop has not read yet."""
    sock = transport.get_extra_info("socket")
    descriptor = -1 if sock is None else sock.fileno()
    if descriptor < 0:
        return False
    if not hasattr(select, "poll"):  # Windows
        return bool(select.select([descriptor], [], [], 0)[0])
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(0))


_told = False


def _unfiled(channel: Any) -> None:
    global _told
    if not _told:
        _told = True
        logger.warning(
            "accepted connections of %s are served, but neither kept alive nor closed when idle",
            channel.local_address,
            exc_info=True,
        )


def serve(original: Callable[[Any, Any], Coroutine[Any, Any, None]]) -> Callable[..., Any]:
    """For ``on_new_channel`` of xoscar's pools: the whole life of an accepted connection."""

    @functools.wraps(original)
    async def on_new_channel(self: Any, channel: Any) -> None:
        clear_deadline()  # that of whoever made the pool, or connected within this process
        _from_here.set(isinstance(channel, DummyChannel))  # each connection has a task of its own
        if not isinstance(channel, SocketChannel):
            return await original(self, channel)
        accepted = _here()
        try:
            accepted.add(channel)
        except Exception:
            _unfiled(channel)
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
        accepted = _loops.get(asyncio.get_running_loop())
        if accepted is None:  # nothing that was accepted here is known
            return await original(self, message, channel)
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


def in_process() -> dict[Any, int]:
    """The connections that the running loop has accepted, and how many requests each has."""
    accepted = _loops.get(asyncio.get_running_loop())
    return {} if accepted is None else accepted.in_process()


def answer_lost() -> float:
    """When a connection to the running loop was lost with a request in process; 0: none was."""
    accepted = _loops.get(asyncio.get_running_loop())
    return 0.0 if accepted is None else accepted.answer_lost


_from_here: ContextVar[bool] = ContextVar("xoscar_idle_from_here", default=False)


def is_from_here() -> bool:
    """Whether the request that is being processed was sent by this process itself."""
    return _from_here.get()


def apply_settings() -> None:
    """Let the settings in force hold on all loops."""
    for loop, accepted in list(_loops.items()):
        with contextlib.suppress(RuntimeError):  # it has just been closed
            loop.call_soon_threadsafe(accepted.apply_settings)


def forget() -> None:
    """Leave what has been accepted to xoscar, from any thread.

    Requests that begin while xoscar is not extended are not counted: so these connections are not
    closed when idle by a later :func:`xoscar_idle.install` either.
    """
    for loop, accepted in list(_loops.items()):
        accepted.forgotten = True  # at once, also where the loop is blocked
        _loops.pop(loop, None)
        with contextlib.suppress(RuntimeError):  # it has just been closed
            loop.call_soon_threadsafe(accepted.forget)


def adopt() -> None:
    """Keep alive what pools accepted before :func:`xoscar_idle.install`.

    Whether a request is in process there is not known, so they are not closed when idle.
    """
    # Not isinstance: proxies among all these objects act when they are asked for their class.
    for server in [o for o in gc.get_objects() if _BaseSocketServer in type(o).__mro__]:
        for channel in list(server._channels):
            transports.keep_alive(channel, config.current().keepalive)
