"""Calls that wait for a pool to be recovered, and are sent to it then.

What waits is a call that has never been executed, or one whose method may be executed twice. Who
knows when, and where to, is asked of :mod:`.losses`.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import fnmatch
import logging
import threading
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from xoscar.backends.message import (
    ErrorMessage,
    HasActorMessage,
    MessageType,
    ResultMessage,
    new_message_id,
)
from xoscar.core import create_actor_ref
from xoscar.errors import ServerClosed
from xoscar.serialization import serialize

from .. import config, values
from ..periodic import spawn
from . import losses
from .client import copy_error, settable
from .deadlines import method_of

logger = logging.getLogger("xoscar_idle")

MOST_CALLS = 10_000
"""Calls of a process that wait; more fail at once."""

MOST_BYTES = 256 << 20
"""Bytes of their messages."""

MOST_EXECUTIONS = 5
"""Times that a call may have been executed: one may be what its pool dies of."""

SHORT, MOST_SHORT = 1.0, 3
"""Waits of less than that many seconds, so many of them in a row, that have led to a failure: the
pool is said to be there, but cannot be reached from here."""

FIRST_PAUSE, LONGEST_PAUSE = 0.05, 1.0
"""Seconds before a call that had waited and failed again is sent once more; twice each time."""

_HELD = (
    MessageType.send,
    MessageType.tell,
    MessageType.create_actor,
    MessageType.destroy_actor,
    MessageType.has_actor,
    MessageType.actor_ref,
)
_READING = (MessageType.has_actor, MessageType.actor_ref)
"""Questions, which may be asked again whatever became of them."""

_FOLLOWING = (MessageType.send, MessageType.tell, *_READING)
"""What can go to the successor of a pool, if the actor is there."""


@dataclass(frozen=True)
class Failure:
    """Why a call has no answer, for which pool it could wait, and whether it may have run."""

    error: BaseException
    pool: str
    executed: bool


def failure_of(error: BaseException, address: str) -> Failure | None:
    """What an error says of a call to ``address``; None: nothing that a recovery would mend."""
    if getattr(error, "closed_here", False):  # by this process: there is nothing to wait for
        return None
    if isinstance(error, (ConnectionRefusedError, FileNotFoundError)):  # a unix socket has gone
        return Failure(error, address, executed=False)
    if isinstance(error, (ServerClosed, ConnectionError)):
        return Failure(error, address, executed=not getattr(error, "unexecuted", False))
    return None


def turned_away(message: Any, reply: Any) -> Failure | None:
    """The failure where a reply says that the pool has not executed exactly this message."""
    if not isinstance(reply, ErrorMessage):
        return None
    error = reply.error
    if getattr(error, "turned_away", None) != message.message_id:
        return None
    return Failure(error, error.address, executed=False)


def may_wait(
    failure: Failure, kind: MessageType, method: str | None, retry: tuple[str, ...], executions: int
) -> bool:
    """Whether a call that failed so can be sent again.

    Parameters
    ----------
    kind, method
        Of its message.
    retry
        The setting.
    executions
        How often it may have been executed, with this time.
    """
    if kind not in _HELD:
        return False
    # The state of a stream has gone with its pool; xoscar lets the caller's loop stand still while
    # it lets go of one.
    if method is not None and method.startswith("__xoscar_"):
        return False
    if not failure.executed:
        return True
    if executions >= MOST_EXECUTIONS:
        return False
    if kind in _READING:
        return True
    if kind not in (MessageType.send, MessageType.tell) or method is None:
        return False
    return any(
        fnmatch.fnmatchcase(method, pattern) for pattern in retry if pattern != values.UNSENT
    )


# -- whether calls wait at all -----------------------------------------------------------------


class _Scope:
    __slots__ = ("ended",)

    def __init__(self) -> None:
        self.ended = False


_none: ContextVar[_Scope | None] = ContextVar("xoscar_idle_holds_none", default=None)


@contextlib.contextmanager
def off() -> Iterator[None]:
    """No call in this block waits, nor in tasks that it starts: it is the recovery itself."""
    scope = _Scope()
    token = _none.set(scope)
    try:
        yield
    finally:
        scope.ended = True
        with contextlib.suppress(ValueError):
            _none.reset(token)


def is_on(message: Any) -> bool:
    """Whether a call with that message could wait, here and now."""
    if message.message_type not in _HELD:
        return False
    scope = _none.get()
    return scope is None or scope.ended


# -- how much waits ----------------------------------------------------------------------------


class Bounds:
    """What waits in this process, over all threads."""

    def __init__(self, calls: int = MOST_CALLS, size: int = MOST_BYTES) -> None:
        self._most_calls, self._most_bytes = calls, size
        self._lock = threading.Lock()
        self._by_pool: Counter[str] = Counter()
        self._bytes = 0
        self._told = False

    def take(self, pool: str, size: int) -> bool:
        """One more wants to wait, of so many bytes; whether there is room."""
        with self._lock:
            room = (
                sum(self._by_pool.values()) < self._most_calls
                and self._bytes + size <= self._most_bytes
            )
            if room:
                self._by_pool[pool] += 1
                self._bytes += size
        if not room and not self._told:
            self._told = True
            logger.warning(
                "calls to pool %s do not wait for its recovery: %d calls with messages of %d bytes "
                "do already, and no more than %d, or %d bytes, may",
                pool,
                sum(self._by_pool.values()),
                self._bytes,
                self._most_calls,
                self._most_bytes,
            )
        return room

    def leave(self, pool: str, size: int) -> None:
        """One waits no more."""
        with self._lock:
            self._by_pool[pool] -= 1
            self._bytes -= size
            if not self._by_pool[pool]:
                del self._by_pool[pool]

    def by_pool(self) -> dict[str, int]:
        """How many wait, by the address of the pool."""
        with self._lock:
            return dict(self._by_pool)


bounds = Bounds()
"""Those of the process."""


def after_fork() -> None:
    """In a forked child: what waits is the parent's."""
    global bounds
    bounds = Bounds()


def _size(message: Any) -> int:
    header, buffers = serialize(message)
    return sum(_nbytes(each) for each in (*buffers, *_flat(header)))


def _flat(header: Any) -> Iterator[Any]:
    """The bytes and texts of a header, which has all that is small."""
    if isinstance(header, (tuple, list)):
        for each in header:
            yield from _flat(each)
    elif isinstance(header, (bytes, str)):
        yield header


def _nbytes(buffer: Any) -> int:
    return int(getattr(buffer, "nbytes", None) or len(buffer))


# -- the calls ---------------------------------------------------------------------------------

Send = Callable[[str, Any], Coroutine[Any, Any, Any]]
"""Sends a message to an address; the future of the reply to it."""


class Outcome(asyncio.Future[Any]):
    """The reply to a call that may wait, however often it is sent."""

    __slots__ = ("call",)

    call: Call

    @property
    def arrivals(self) -> int:
        """As that of :class:`.client.Reply`, which knows its own connection."""
        return 0

    def expire(self, error: BaseException, arrivals: int) -> None:
        """The call's deadline has passed."""
        self.call.expire(error)

    def cancel(self, msg: Any | None = None) -> bool:
        """Cancel as any future does; what was sent is not waited for, what waits waits no more."""
        cancelled = super().cancel(msg)
        if cancelled:
            self.call.drop()
        return cancelled


class Call:
    """One call, from its first failure at the latest until it has an answer."""

    __slots__ = (
        "_executions",
        "_failure",
        "_held_at",
        "_holding",
        "_message",
        "_reply",
        "_send",
        "_sending",
        "_short",
        "_since",
        "_size",
        "_timer",
        "_waits",
        "address",
        "outcome",
    )

    def __init__(self, holding: Holding, send: Send, address: str, message: Any) -> None:
        self._holding = holding
        self._send = send
        self._message = message
        self.address = address
        """Where it was sent last."""
        self.outcome = Outcome(loop=holding.loop)
        self.outcome.call = self
        self._reply: Any = None  # the future of it, while it is on its way
        self._failure: Failure | None = None  # it waits, or has waited, because of that
        self._sending: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._since = 0.0  # when its time to wait began
        self._size: int | None = None
        self._executions = 0
        self._waits = self._short = 0
        self._held_at = 0.0

    async def begin(self) -> Outcome:
        """Send it; what fails in a way that it can wait for is not raised."""
        try:
            self._follow(await self._send(self.address, self._message))
        except Exception as error:
            failure = failure_of(error, self.address)
            if failure is None or not self._hold(failure):
                raise
        return self.outcome

    @property
    def waits(self) -> bool:
        """Whether it is not on its way."""
        return self._reply is None

    def tasks(self) -> list[asyncio.Task[None]]:
        """That which sends it, if one does."""
        return [] if self._sending is None else [self._sending]

    def expire(self, error: BaseException) -> None:
        """Its deadline has passed: while it waits, the error is that which it waits for."""
        if self.outcome.done():
            return
        if self._reply is not None:
            self._reply.expire(error, self._reply.arrivals)
        else:
            self.fail()

    def drop(self) -> None:
        """Nobody wants the answer any more."""
        self._settled()
        if self._reply is not None:
            self._reply.cancel()
        if self._sending is not None:
            self._sending.cancel()

    def send_to(self, there: str | None) -> None:
        """The pool that it waits for can be reached there; None: nowhere."""
        self._unfile()
        if self.outcome.done():
            return
        waited = self._holding.loop.time() - self._held_at
        self._short = self._short + 1 if waited < SHORT else 0
        if there is None:
            self.fail()
        else:
            self._sending = spawn(self._holding.loop, self._send_to(there))

    async def _send_to(self, there: str) -> None:
        failure = self._failure
        assert failure is not None
        try:
            if self._waits > 1:
                pause = FIRST_PAUSE * 2.0 ** min(self._waits - 2, 10)
                await asyncio.sleep(min(LONGEST_PAUSE, pause))
            message = self._message
            # What a main pool has passed on goes to the main pool again, which knows where to.
            if failure.pool == self.address and there != self.address:
                if not await self._is_there(there):
                    self.fail()
                    return
                message = copy.copy(message)
                message.actor_ref = create_actor_ref(there, message.actor_ref.uid)
                self.address, self._message = there, message
            self._follow(await self._send(self.address, message))
        except asyncio.CancelledError:
            self.outcome.cancel()  # if it is not done: the loop ends
        except Exception as error:
            self._failed(error)
        finally:
            self._sending = None

    async def _is_there(self, there: str) -> bool:
        if self._message.message_type not in _FOLLOWING:
            return False
        ref = create_actor_ref(there, self._message.actor_ref.uid)
        reply = await (await self._send(there, HasActorMessage(new_message_id(), ref)))
        return getattr(reply, "result", False) is True

    def _follow(self, reply: Any) -> None:
        self._reply = reply
        reply.add_done_callback(self._replied)

    def _replied(self, reply: Any) -> None:
        """Its answer has come, or its connection has gone."""
        self._reply = None
        if self.outcome.done():
            return
        if reply.cancelled():
            self.outcome.cancel()
        elif (error := reply.exception()) is not None:
            self._failed(error)
        else:
            failure = turned_away(self._message, reply.result())
            if failure is None or not self._hold(failure):
                self._settled()
                self.outcome.set_result(reply.result())

    def _failed(self, error: BaseException) -> None:
        if self.outcome.done():
            return
        failure = failure_of(error, self.address)
        if failure is None or not self._hold(failure):
            self._settled()
            self.outcome.set_exception(settable(error))
            self.outcome.exception()  # whoever sent without waiting does not want to know

    def _hold(self, failure: Failure) -> bool:
        """Let it wait, if it may."""
        chosen, now = config.current(), self._holding.loop.time()
        message, executed = self._message, failure.executed
        self._executions += executed
        kind, method = message.message_type, method_of(message)
        if not chosen.recovery_timeout:
            return False
        if not may_wait(failure, kind, method, chosen.retry, self._executions):
            return False
        if executed or not self._since:
            self._since = now  # it was on its way meanwhile
        if self._short >= MOST_SHORT:
            return False
        left = self._since + chosen.recovery_timeout - now
        if self._size is None:
            self._size = _size(message)
        if left <= 0 or not bounds.take(failure.pool, self._size):
            return False
        self._failure, self._held_at = failure, now
        self._waits += 1
        self._timer = self._holding.loop.call_later(left, self.fail)
        self._holding.join(failure.pool, self, message.message_id, now + left)
        return True

    def fail(self) -> None:
        """It has waited for nothing."""
        failure = self._failure
        self._settled()
        if not self.outcome.done() and failure is not None:
            self.outcome.set_exception(settable(copy_error(failure.error)))
            self.outcome.exception()
        if self._sending is not None:
            self._sending.cancel()

    def _unfile(self) -> None:
        if self._timer is not None and self._failure is not None:
            self._timer.cancel()
            self._timer = None
            self._holding.leave(self._failure.pool, self)
            bounds.leave(self._failure.pool, self._size or 0)

    def _settled(self) -> None:
        self._unfile()
        self._holding.forget(self._message.message_id)


class Holding:
    """The calls of one caller that wait, or have waited; it belongs to the caller's loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._calls: dict[bytes, Call] = {}  # by the id of their message
        self._waiting: dict[str, dict[Call, float]] = {}  # by pool: until when
        self._tasks: dict[str, asyncio.Task[None]] = {}

    @property
    def is_busy(self) -> bool:
        """Whether a call waits, or has waited and has no answer yet."""
        return bool(self._calls)

    def call(
        self, send: Send, address: str, message: Any
    ) -> Coroutine[Any, Any, asyncio.Future[Any]]:
        """Send ``message`` to ``address``; the future of the reply, which may wait."""
        return Call(self, send, address, message).begin()

    def cancel(self, request: Any) -> tuple[Any, str | None]:
        """What xoscar's request to cancel a call means for one that waits, or has been moved.

        Returns
        -------
        The reply to it, where that is known; else where it has to be sent, if not where it was
        to be sent.
        """
        call = self._calls.get(request.cancel_message_id)
        if call is None:
            return None, None
        if not call.waits:
            return None, call.address
        call.outcome.cancel()
        return ResultMessage(request.message_id, True, protocol=request.protocol), None

    def join(self, pool: str, call: Call, message_id: bytes, until: float) -> None:
        """A call waits for a pool."""
        self._calls[message_id] = call
        self._waiting.setdefault(pool, {})[call] = until
        if pool not in self._tasks:
            self._tasks[pool] = task = spawn(self.loop, self._wait(pool))
            task.add_done_callback(lambda _: self._ended(pool, task))

    def leave(self, pool: str, call: Call) -> None:
        """It waits no more."""
        waiting = self._waiting.get(pool, {})
        waiting.pop(call, None)
        if not waiting:
            self._waiting.pop(pool, None)
            if (task := self._tasks.pop(pool, None)) is not None:
                task.cancel()  # if it does not end anyway

    def forget(self, message_id: bytes) -> None:
        """A call has its answer."""
        self._calls.pop(message_id, None)

    def give_up(self) -> None:
        """Let all that waits fail."""
        for call in list(self._calls.values()):
            if call.waits:
                call.fail()

    def tasks(self) -> list[asyncio.Task[None]]:
        """Those of all that is under way here."""
        return [*self._tasks.values(), *(t for c in self._calls.values() for t in c.tasks())]

    async def _wait(self, pool: str) -> None:
        """Ask when the pool can be reached, as long as there are calls that want to know."""
        logger.info("calls wait for the recovery of pool %s", pool)
        while waiting := self._waiting.get(pool):
            asked, until = self.loop.time(), max(waiting.values())
            try:
                there = await losses.recovered(
                    pool, until - asked, lambda: len(self._waiting.get(pool, ()))
                )
            except Exception as error:
                logger.debug("when pool %s can be reached is not known: %r", pool, error)
                there = None
            if there is None and self.loop.time() >= until:
                await asyncio.sleep(0)  # the time of those that it was asked for is up
                if self._waiting.get(pool):
                    continue
                return
            logger.info(
                "%d calls to pool %s %s",
                len(waiting),
                pool,
                "have waited for nothing" if there is None else f"go to pool {there}",
            )
            # Not cancelled by the last that leaves: nothing is awaited from here on.
            self._tasks.pop(pool, None)
            for call in list(waiting):
                call.send_to(there)
            return

    def _ended(self, pool: str, task: asyncio.Task[None]) -> None:
        if self._tasks.get(pool) is task:
            del self._tasks[pool]
