"""Calls that wait for a pool to be recovered, and are sent to it then.

What waits is a call that has never been executed, or one whose method may be executed twice. Who
knows when, and where to, is asked of :mod:`.losses`.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import logging
import time
from collections.abc import Callable, Coroutine, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any

from xoscar.backends.message import (
    HasActorMessage,
    MessageType,
    ResultMessage,
    new_message_id,
)
from xoscar.core import create_actor_ref

from .. import config
from ..periodic import spawn
from . import bounds, counters, losses
from .client import copy_error, settable
from .deadlines import method_of
from .failures import READING, REQUESTS, Failure, failure_of, may_wait, turned_away

logger = logging.getLogger("xoscar_idle")

SHORT, MOST_SHORT = 1.0, 3
"""Waits of less than that many seconds, so many of them in a row, that have led to a failure: the
pool is said to be there, but cannot be reached from here."""

FIRST_PAUSE, LONGEST_PAUSE = 0.05, 1.0
"""Seconds before a call that had waited and failed again is sent once more; twice each time."""

SAME_TIME = 0.05
"""Seconds by which the clock of who is asked may differ: uvloop's has milliseconds, and stands
still within a turn of the loop."""

_FOLLOWING = (MessageType.send, MessageType.tell, *READING)
"""What can go to the successor of a pool, if the actor is there."""


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
    if message.message_type not in REQUESTS:
        return False
    scope = _none.get()
    return scope is None or scope.ended


# -- the calls ---------------------------------------------------------------------------------

Send = Callable[[str, Any], Coroutine[Any, Any, Any]]
"""Sends a message to an address; the future of the reply to it."""


class Outcome(asyncio.Future[Any]):
    """The reply to a call that may wait, however often it is sent."""

    __slots__ = ("call",)

    call: Call | None
    """None when it is done: an answer, which may be large, is not to wait for a collection."""

    @property
    def arrivals(self) -> int:
        """As that of :class:`.client.Reply`, which knows its own connection."""
        return 0

    def expire(self, error: BaseException, arrivals: int) -> None:
        """The call's deadline has passed."""
        if self.call is not None:
            self.call.expire(error)

    def cancel(self, msg: Any | None = None) -> bool:
        """Cancel as any future does; what was sent is not waited for, what waits waits no more."""
        cancelled = super().cancel(msg)
        if cancelled and self.call is not None:
            self.call.drop()
        return cancelled


@dataclass(frozen=True)
class Held:
    """A call that waits."""

    address: str
    """Where it was sent last."""
    message: Any
    seconds: float
    """For which it has waited so far, each time that it did."""


class Call:
    """One call, until it has an answer."""

    __slots__ = (
        "_arrivals",
        "_executions",
        "_failure",
        "_has_room",
        "_held_at",
        "_holding",
        "_is_filed",
        "_message",
        "_reply",
        "_send",
        "_sending",
        "_short",
        "_size",
        "_timer",
        "_waited",
        "_waits",
        "address",
        "is_wanted",
        "outcome",
        "waits",
    )

    def __init__(self, holding: Holding, send: Send, address: str, message: Any) -> None:
        self._holding = holding
        self._send = send
        self._message = message
        self.address = address
        """Where it was sent last."""
        self.outcome = Outcome(loop=holding.loop)
        self.outcome.call = self
        self.waits = False
        """Whether it is not on its way."""
        self.is_wanted = True
        """Whether it may wait again: its deadline has not passed, and nobody has cancelled it."""
        self._reply: Any = None  # the future of it, while it is on its way and written
        self._arrivals = 0  # what had come on its connection when it was written
        self._failure: Failure | None = None  # it waits, or has waited, because of that
        self._sending: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._is_filed = self._has_room = False
        self._size: int | None = None
        self._executions = 0
        self._waits = self._short = 0
        self._waited = 0.0  # seconds, before it waits as it does now
        self._held_at = 0.0

    async def begin(self) -> Outcome:
        """Send it; what fails in a way that it can wait for is not raised."""
        self._holding.add(self._message.message_id, self)
        try:
            self._follow(await self._send(self.address, self._message))
        except BaseException as error:
            failure = failure_of(error, self.address)
            if failure is None or not self._hold(failure):
                self._settled()
                raise
        return self.outcome

    @property
    def is_being_written(self) -> bool:
        """Whether it is on its way to be sent once more, and not with its pool for certain."""
        return self._sending is not None and self._reply is None

    def held(self) -> Held:
        """What it is, while it waits; from any thread."""
        # That is the clock of loops, which are not asked from other threads.
        return Held(self.address, self._message, self._waited + time.monotonic() - self._held_at)

    def tasks(self) -> list[asyncio.Task[None]]:
        """That which sends it, if one does."""
        return [] if self._sending is None else [self._sending]

    def expire(self, error: BaseException) -> None:
        """Its deadline has passed: while it waits, the error is that which it waits for."""
        self.is_wanted = False
        if self.waits:
            self.fail()
        elif self._reply is not None:
            self._reply.expire(error, self._arrivals)
        else:  # it is just being written again
            self._raise(error)

    def drop(self) -> None:
        """Nobody wants the answer any more."""
        self._settled()
        if self._reply is not None:
            self._reply.cancel()

    def send_to(self, there: str | None) -> None:
        """The pool that it waits for can be reached there; None: nowhere."""
        self._unfile()
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
            # What a main pool has passed on goes to the main pool again, which knows where to.
            if failure.pool == self.address and there != self.address:
                is_there = await self._is_there(there)
                if not is_there:
                    if is_there is False or not self._hold(replace(failure, executed=False)):
                        self.fail()
                    return
                message = copy.copy(self._message)
                message.actor_ref = create_actor_ref(there, message.actor_ref.uid)
                self.address, self._message = there, message
            self._depart()
            counters.count("resent")
            self._follow(await self._send(self.address, self._message))
        except asyncio.CancelledError:
            self.outcome.cancel()  # if it is not done: the loop ends
        except Exception as error:
            self._failed(error)
        finally:
            self._sending = None

    async def _is_there(self, there: str) -> bool | None:
        """Whether the actor is; None: who is asked has gone, too."""
        if self._message.message_type not in _FOLLOWING:
            return False
        ref = create_actor_ref(there, self._message.actor_ref.uid)
        question = HasActorMessage(new_message_id(), ref)
        try:
            reply = await (await self._send(there, question))
        except Exception as error:
            logger.debug("whether %s is at %s is not known: %r", ref.uid, there, error)
            return None
        if turned_away(question, reply, there) is not None:
            return None
        return getattr(reply, "result", False) is True

    def _follow(self, reply: Any) -> None:
        self._reply, self._arrivals = reply, reply.arrivals
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
            answer = reply.result()
            failure = turned_away(self._message, answer, self.address)
            if failure is None or not self._hold(failure):
                self._settled()
                self.outcome.set_result(answer)

    def _failed(self, error: BaseException) -> None:
        if self.outcome.done():
            return
        failure = failure_of(error, self.address)
        if failure is None or not self._hold(failure):
            self._raise(error)

    def _hold(self, failure: Failure) -> bool:
        """Let it wait, if it may."""
        chosen, now = config.current(), self._holding.loop.time()
        message, executed = self._message, failure.executed
        self._executions += executed
        kind, method = message.message_type, method_of(message)
        if not (chosen.recovery_timeout and self.is_wanted and self._holding.is_on):
            return False
        if not may_wait(failure, kind, method, chosen.retry, self._executions):
            return False
        if self._short >= MOST_SHORT:
            return False
        if self.waits:
            self._depart()
        if executed:
            self._waited = 0.0
        left = chosen.recovery_timeout - self._waited
        if self._size is None:
            self._size = bounds.size_of(message)
        if left <= 0 or self._size is None or not bounds.process.take(failure.pool, self._size):
            return False
        # Again: a main pool that passes a call on to itself has two of one id.
        self._holding.add(message.message_id, self)
        self._failure, self._held_at = failure, now
        self.waits = self._is_filed = self._has_room = True
        self._waits += 1
        self._timer = self._holding.loop.call_later(left, self.fail)
        self._holding.join(failure.pool, self, now + left)
        return True

    def fail(self) -> None:
        """It has waited for nothing."""
        if self._failure is not None:
            self._raise(copy_error(self._failure.error))

    def _raise(self, error: BaseException) -> None:
        self._settled()
        if not self.outcome.done():
            self.outcome.set_exception(settable(error))
            self.outcome.exception()  # whoever sent without waiting does not want to know

    def give_room(self) -> None:
        """It takes none of the bounds any more. In any thread, with its loop at rest."""
        if self._has_room and self._failure is not None:
            self._has_room = False
            bounds.process.leave(self._failure.pool, self._size or 0)

    def _unfile(self) -> None:
        """It does not wait for its pool any more."""
        self.give_room()
        if self._is_filed and self._failure is not None:
            self._is_filed = False
            self._holding.leave(self._failure.pool, self)

    def _depart(self) -> None:
        """It waits no more."""
        self._unfile()
        if self.waits:
            self.waits = False
            self._waited += self._holding.loop.time() - self._held_at
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _settled(self) -> None:
        """It has come to its end."""
        self._holding.forget(self._message.message_id, self)
        self.outcome.call = None
        if self._failure is not None:  # it has waited
            self._depart()
            if self._sending is not None:
                self._sending.cancel()


class Holding:
    """The calls of one caller that wait, or have waited; it belongs to the caller's loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._calls: dict[bytes, Call] = {}  # by the id of their message
        self._waiting: dict[str, dict[Call, float]] = {}  # by pool: until when
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self.is_on = True
        """Whether calls may wait here."""

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
        call.is_wanted = False
        if not call.waits:
            if call.is_being_written:  # else it could overtake it
                call.outcome.cancel()
            return None, call.address
        call.outcome.cancel()
        return ResultMessage(request.message_id, True, protocol=request.protocol), None

    def whereabouts(self, message: Any, address: str) -> str | None:
        """Where a call is that was sent to ``address``; None: nowhere, since it waits."""
        call = self._calls.get(message.message_id)
        if call is None:
            return address
        return None if call.waits else call.address

    def add(self, message_id: bytes, call: Call) -> None:
        """A call begins."""
        self._calls[message_id] = call

    def join(self, pool: str, call: Call, until: float) -> None:
        """A call waits for a pool."""
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

    def forget(self, message_id: bytes, call: Call) -> None:
        """A call has its answer."""
        if self._calls.get(message_id) is call:  # a main pool may pass a call on to itself
            del self._calls[message_id]

    def give_up(self) -> None:
        """Let all that waits fail."""
        for call in self._all():
            if call.waits:
                call.fail()

    def retire(self) -> None:
        """Let all that waits fail, and nothing wait from now on."""
        self.is_on = False
        self.give_up()

    def resume(self) -> None:
        """Undo :meth:`retire` for what comes."""
        self.is_on = True

    def sever(self) -> None:
        """Take no room any more; the loop is closed or may never run again."""
        for call in self._all():
            call.give_room()

    def _all(self) -> list[Call]:
        # Of two with one id, the table has one.
        waiting = (call for calls in self._waiting.values() for call in calls)
        return list(dict.fromkeys((*self._calls.values(), *waiting)))

    def waiting(self) -> list[Held]:
        """Those that wait; from any thread."""
        known = list(self._calls.values())
        for calls in list(self._waiting.values()):
            known += list(calls)
        return [each.held() for each in dict.fromkeys(known) if each.waits]

    def tasks(self) -> list[asyncio.Task[None]]:
        """Those of all that is under way here."""
        return [*self._tasks.values(), *(t for c in self._calls.values() for t in c.tasks())]

    async def _wait(self, pool: str) -> None:
        """Ask when the pool can be reached, as long as there are calls that want to know."""
        logger.info("calls wait for the recovery of pool %s", pool)
        while waiting := self._waiting.get(pool):
            asked, until = self.loop.time(), max(waiting.values())
            via = next(iter(waiting)).address
            try:
                there = await losses.recovered(
                    pool, until - asked, lambda: len(self._waiting.get(pool, ())), via
                )
            except Exception as error:
                logger.debug("when pool %s can be reached is not known: %r", pool, error)
                there = None
            if self._tasks.get(pool) is not asyncio.current_task():
                return  # the last has left, just as the answer came; others have their own
            if there is None and self.loop.time() >= until - SAME_TIME:
                # The time of those that it was asked for is up. Others have come meanwhile.
                await asyncio.sleep(max(0.0, until - self.loop.time()))
                continue
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
