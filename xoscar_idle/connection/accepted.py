"""The accepting side: keepalive on accepted connections, and closing those that stay idle."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import math
import select
import threading
import time
from collections.abc import Callable, Coroutine
from contextvars import ContextVar
from typing import Any

from xoscar.backends.communication.dummy import DummyChannel
from xoscar.backends.communication.socket import SocketChannel, _BaseSocketServer
from xoscar.backends.pool import AbstractActorPool

from .. import config, descriptors
from ..clock import Clock, monotonic
from ..instances import instances
from ..logs import counted, one_line
from ..periodic import Periodic
from . import counters, frames, history, hosted, transports
from .age import AgeQueue
from .deadlines import clear as clear_deadline
from .exchange import is_question
from .idle import IdleQueue, Lane

logger = logging.getLogger("xoscar_idle")

LOOK_AGAIN = 0.5
"""Seconds between two looks at a connection that is to be closed, while a message comes over it."""

_loops: dict[asyncio.AbstractEventLoop, Accepted] = {}
_parents: list[Accepted] = []  # in a forked child: kept, since their destructors would act


class Served:
    """One accepted connection. Times are those of its loop's clock, in seconds."""

    __slots__ = (
        "channel",
        "idle_since",
        "lane",
        "leaving",
        "noted",
        "opened",
        "peer",
        "requests",
        "served",
        "why",
    )

    def __init__(self, channel: Any, now: float) -> None:
        self.channel = channel
        self.lane: Lane[Any] | None = None
        """None: it is not closed when idle."""
        self.opened = self.idle_since = now
        self.peer = _peer(channel)
        """``host:port``; of a unix socket ``pid 4711``, where the kernel tells."""
        self.requests: dict[int, tuple[float, Any]] = {}
        """Since when each message is in process, by its identity."""
        self.served = 0
        """Requests so far."""
        self.noted = False
        """Whether it is in the history: from its first request on, unless it is one of us who asks,
        as often as somebody looks."""
        self.leaving = False
        """Whether it is closed as soon as it has nothing in process."""
        self.why: str | None = None
        """The reason for which it is closed, of :data:`.counters.ACCEPTED_REASONS`, if it is us who
        do."""


def _peer(channel: Any) -> str:
    with contextlib.suppress(Exception):  # of a transport that is not like others
        if (name := transports.name(channel, "peername")) is not None:
            return name
        pid = descriptors.peer_process(channel.writer.get_extra_info("socket").fileno())
        if pid is not None:
            return f"pid {pid}"
    return "?"


class Accepted(Periodic):
    """The accepted connections of one event loop, and the requests that each has in process.

    One that has none is looked at when it has been idle for the timeout. If a frame is under way
    then, or a reply, it is looked at again when that may have taken too long.
    """

    def __init__(self, clock: Clock = monotonic) -> None:
        super().__init__(clock)
        self.forgotten = False
        self.answer_lost = 0.0
        """When a connection was lost with a request in process, in monotonic time; 0: none was."""
        self.thread = threading.get_ident()
        """The one that runs the loop, as far as is known."""
        self._served: dict[Any, Served] = {}
        self._idle: IdleQueue[Any] = IdleQueue()
        self._again: AgeQueue[Any] = AgeQueue()

    def served(self) -> list[Served]:
        """The connections; from any thread."""
        return list(self._served.values())

    def add(self, channel: Any) -> None:
        """``channel`` has been accepted."""
        if channel not in self._served:
            self.thread = threading.get_ident()
            each = self._served[channel] = Served(channel, self.clock())
            counters.count("accepted")
            self._file(each)
            self.ensure_check()

    def discard(self, channel: Any, why: str = "peer", error: str = "") -> None:
        """``channel`` is closed, for a reason and because of an error, unless it was us."""
        if channel in self._served:
            each = self._served[channel]
            if each.requests:
                self.answer_lost = time.monotonic()
            self._let_go(each, each.why or why, "" if each.why else error)
            self.ensure_check()
        if not self._served and _loops.get(self.loop) is self:
            del _loops[self.loop]

    def begin(self, channel: Any, message: Any) -> None:
        """A request from ``channel`` is in process."""
        each = self._served.get(channel)
        if each is not None:
            if not each.requests:
                if each.lane is not None:
                    each.lane.in_use(channel)
                self._again.leave(channel)
            if not each.served and not is_question(message):
                each.noted = True
                history.note("accepted", each.peer)
            each.served += 1
            each.requests[id(message)] = (self.clock(), message)

    def end(self, channel: Any, message: Any) -> None:
        """Its reply has been handed to the transport."""
        each = self._served.get(channel)
        if each is None or each.requests.pop(id(message), None) is None:
            return  # it began before we counted
        if not each.requests:
            each.idle_since = self.clock()
            if each.lane is not None:
                each.lane.fell_idle(channel, each.idle_since)
            if each.leaving:
                self._look_soon(each)

    def in_process(self) -> dict[Any, int]:
        """The connections, and how many requests each has in process."""
        return {channel: len(each.requests) for channel, each in self._served.items()}

    def close(self, wanted: Callable[[Served], bool], now: bool) -> int:
        """Close what is wanted and has no request in process, or else all of it; how many.

        One over which a message comes just now has none yet, and is left alone all the same.
        """
        found = [each for each in self.served() if wanted(each) and (now or _rests(each))]
        for each in found:
            transport = each.channel.writer.transport
            if now and each.why is not None:  # it is being closed, and its peer does not read
                transport.abort()
            each.why = "operator"
            # What has been written is flushed.
            transport.close()
        return len(found)

    def drain(self, wanted: Callable[[Served], bool]) -> int:
        """Close what is wanted as soon as it has nothing in process; how many that are.

        Those are not counted that are being closed already.
        """
        found = [each for each in self.served() if wanted(each) and each.why is None]
        for each in found:
            each.leaving = True
            if not each.requests:
                self._look_soon(each)
        return len(found)

    def _look_soon(self, each: Served) -> None:
        self._again.join(each.channel, self.clock())
        self.ensure_check()

    def apply_settings(self) -> None:
        """Let the settings in force hold for the connections there are."""
        for each in self.served():
            self._unfile(each)
            self._file(each)
        self.ensure_check()

    def forget(self) -> None:
        """Have nothing to do with the connections there are any more."""
        for each in self.served():
            self._let_go(each, "stop")
        self.ensure_check()

    def give_up(self, why: str) -> None:
        """None is open any more: their loop is closed, or another process's."""
        while self._served:
            self._served.popitem()
            counters.count_accepted_close(why)

    def sweep(self, now: float) -> None:
        """Close what has had no request in process, and no byte of one, for the timeout."""
        if self.forgotten:
            return
        for channel in [*self._idle.expire(now), *self._again.expire(now)]:
            each = self._served[channel]
            if each.leaving and _rests(each):
                logger.debug("close an accepted connection of %s: drained", channel.local_address)
                each.why = "operator"
                channel.writer.transport.close()
                continue
            try:
                at = self._patience_ends(each, now)
            except Exception:  # of a transport that is not like others; the rest goes on
                self._unfile(each)
                _unfiled(channel)
                continue
            if at > now:
                self._again.join(channel, min(at, now + LOOK_AGAIN) if each.leaving else at)
                continue
            received = channel.reader.unfinished
            why = f"no more than {received} bytes of a message came" if received else "idle"
            logger.debug("close an accepted connection of %s: %s", channel.local_address, why)
            each.why = "idle"
            channel.writer.transport.close()  # there is nothing to flush

    def next_expiry(self, now: float) -> float:
        """When the next connection can expire."""
        if self.forgotten:
            return math.inf
        return min(self._idle.next_expiry(now), self._again.next_expiry())

    def _patience_ends(self, each: Served, now: float) -> float:
        """When to close a connection that has no request in process; it may be past."""
        timeout = math.inf if each.lane is None else each.lane.timeout
        reader, transport = each.channel.reader, each.channel.writer.transport
        # A loop that was blocked may come here before it reads what has come in the meantime.
        waits = reader.starving and not _readable(transport)
        if not waits or transport.get_write_buffer_size():
            return now + timeout
        at: float = reader.patience_ends(timeout)
        return at

    def _file(self, each: Served) -> None:
        """Put a connection into its lane; one that cannot be is served all the same."""
        channel = each.channel
        try:
            chosen = config.current()
            transports.keep_alive(channel, chosen.keepalive)
            transports.limit_unacknowledged(channel)
            # NIXL writes into memory between two requests: what is idle there cannot be told here.
            timed = frames.watch(channel, self.clock)
            each.lane = self._idle.join(chosen.server_idle_timeout if timed else 0)
            if not each.requests:
                each.lane.fell_idle(channel, self.clock())
                if each.leaving:
                    self._again.join(channel, self.clock())
        except Exception:
            self._unfile(each)
            _unfiled(channel)

    def _unfile(self, each: Served) -> None:
        self._again.leave(each.channel)
        lane, each.lane = each.lane, None
        if lane is not None:
            self._idle.leave(lane, each.channel)

    def _let_go(self, each: Served, why: str, error: str = "") -> None:
        del self._served[each.channel]
        self._unfile(each)
        counters.count_accepted_close(why)
        if each.served and not each.noted:
            return
        if not each.served:  # the host alone: who looks whether the port is open has a new one
            host = each.peer.rpartition(":")[0] or each.peer
            history.note("unused", host, f"a connection without a request: {error or why}")
            return
        requests = counted(each.served, "request")
        told = f"{why}, after {self.clock() - each.opened:.1f} s and {requests}"
        if each.requests:
            told += f", {len(each.requests)} of them in process"
        history.note("hung up", each.peer, f"{told}: {error}" if error else told)


def _rests(each: Served) -> bool:
    """Whether it has no request in process, and nothing of one has come."""
    if each.requests:
        return False
    reader, transport = each.channel.reader, each.channel.writer.transport
    try:
        return reader.starving and not reader.unfinished and not _readable(transport)
    except Exception:  # of a transport that is not like others
        return True


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
        why, error = "stop", ""  # it is cancelled, unless it ends
        try:
            await original(self, channel)
            why, error = _end_of(self, channel)
        except OSError as dead:
            # xoscar expects a peer to hang up, not the kernel to find that it is gone.
            logger.debug("an accepted connection of %s is dead: %s", channel.local_address, dead)
            why, error = "error", one_line(dead)
        except Exception as broken:  # what came is no message
            why, error = "error", one_line(broken)
            raise
        finally:
            accepted.discard(channel, why, error)

    return on_new_channel


def _end_of(pool: Any, channel: Any) -> tuple[str, str]:
    """Why a connection that was served has ended, if it was not us; and the error, if any."""
    if pool._stopped.is_set():
        return "stop", ""
    with contextlib.suppress(AttributeError):  # a reader that is not like others
        if channel.reader.refused:
            return "error", channel.reader.refused
        if (error := channel.reader.exception()) is not None:
            return "error", one_line(error)
    return "peer", ""


def process(original: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., Any]:
    """For ``process_message`` of xoscar's pools: from a request to its reply."""

    @functools.wraps(original)
    async def process_message(self: Any, message: Any, channel: Any) -> None:
        clear_deadline()
        accepted = _loops.get(asyncio.get_running_loop())
        if accepted is None:  # nothing that was accepted here is known
            return await original(self, message, channel)
        accepted.begin(channel, message)
        try:
            await original(self, message, channel)
        finally:
            accepted.end(channel, message)

    return process_message


def _here() -> Accepted:
    loop = asyncio.get_running_loop()
    accepted = _loops.get(loop)
    if accepted is None:
        for other in [other for other in _loops if other.is_closed()]:
            _loops.pop(other).give_up("stop")
        accepted = _loops[loop] = Accepted()
    return accepted


def everywhere() -> list[Accepted]:
    """Those of all loops; from any thread."""
    return list(_loops.values())


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


def after_fork() -> None:
    """In a forked child: what has been accepted is the parent's."""
    while _loops:
        _, accepted = _loops.popitem()
        accepted.give_up("fork")
        _parents.append(accepted)


def adopt() -> None:
    """Know the pools from before :func:`xoscar_idle.install`, and keep alive what they accepted.

    Whether a request is in process there is not known, so they are not closed when idle.
    """
    for each in instances(AbstractActorPool, _BaseSocketServer):
        if isinstance(each, AbstractActorPool):
            hosted.add(each)
        else:
            for channel in list(each._channels):
                transports.keep_alive(channel, config.current().keepalive)
