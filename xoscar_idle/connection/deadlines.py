"""Until when a call may wait: ``with xoscar_idle.deadline(seconds):`` and the default."""

from __future__ import annotations

import asyncio
import contextlib
import fnmatch
import functools
import time
from collections.abc import Callable, Coroutine, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, TypeVar

from xoscar.backends.message import ForwardMessage, MessageType

from .. import config, patching, values
from . import counters, history

T = TypeVar("T")


class CallTimeout(TimeoutError):
    """A call had no reply by its deadline. It may have had its effect all the same."""


@dataclass(frozen=True)
class Limit:
    """The deadline of one call: ``at``, in the loop's time, ``seconds`` after it was set."""

    at: float
    seconds: float

    def error(self, address: str, message: Any) -> CallTimeout:
        """The error that tells who did not answer what, and for how long."""
        return CallTimeout(f"{describe(message)} at {address}: no reply in {self.seconds:g} s")

    def passed(self, address: str, message: Any) -> CallTimeout:
        """The error of a call that is begun too late, and not sent."""
        return CallTimeout(
            f"{describe(message)} at {address} was not sent: "
            f"its deadline of {self.seconds:g} s had passed"
        )


class _Scope:
    """A block with a deadline, for what is within it; what outlives the block is without it."""

    __slots__ = ("ended", "limit", "outer")

    def __init__(self, limit: Limit, outer: _Scope | None) -> None:
        self.limit = limit
        self.outer = outer
        self.ended = False


_scope: ContextVar[_Scope | None] = ContextVar("xoscar_idle_deadline", default=None)


def _innermost() -> _Scope | None:
    """The innermost block that has not ended: tasks inherit the variable, and outlive blocks."""
    scope = _scope.get()
    while scope is not None and scope.ended:
        scope = scope.outer
    return scope


def _now() -> float:
    try:
        return asyncio.get_running_loop().time()
    except RuntimeError:  # no loop is running; asyncio's and uvloop's have the same clock
        return time.monotonic()


@contextlib.contextmanager
def deadline(seconds: float, *, required: bool = True) -> Iterator[None]:
    """Let calls in this block, and in tasks it starts, raise :class:`CallTimeout` in time.

    Of nested deadlines the earliest counts. A call that misses it is cancelled on the other side,
    in the background, and a late reply is dropped; the connection's other calls go on. One that is
    begun later is not sent. Each item of a remote generator is a call of its own. What outlives the
    block, a pool that is made in it or a task, is without the deadline from its end on. Calls to
    actors in the same process are awaited directly by xoscar and know no deadline.

    Parameters
    ----------
    seconds
        From now on; above 0.
    required
        False: where xoscar is not extended in this process, the block runs without a deadline.

    Raises
    ------
    ValueError
        ``seconds`` is no such number.
    RuntimeError
        xoscar is not extended in this process, so that no deadline would hold.
    """
    seconds = values.positive_seconds("deadline", seconds)
    if required and (why := patching.why_inactive()):
        raise RuntimeError(
            f"a deadline of {seconds:g} s would not hold, since xoscar_idle is not active here: "
            f"{why}. Set XOSCAR_IDLE_TIMEOUT or call xoscar_idle.install(); "
            "deadline(..., required=False) runs without one where it is not active"
        )
    scope = _Scope(Limit(_now() + seconds, seconds), _innermost())
    token = _scope.set(scope)
    try:
        yield
    finally:
        scope.ended = True
        with contextlib.suppress(ValueError):  # garbage of a closed loop, in no context of it
            _scope.reset(token)


def limit_of(message: Any) -> Limit | None:
    """Until when the call that sends ``message`` may wait; None: for ever.

    ``call_timeout`` is for calls of actors' methods. What xoscar does beside, like creating an
    actor, may take as long as it takes, unless it is within :func:`deadline`.
    """
    earliest = None
    scope = _scope.get()
    while scope is not None:
        if not scope.ended and (earliest is None or scope.limit.at < earliest.at):
            earliest = scope.limit
        scope = scope.outer
    chosen = config.current()
    default = chosen.call_timeout
    if default and message.message_type in (MessageType.send, MessageType.tell):
        limit = Limit(_now() + default, default)
        if (earliest is None or limit.at < earliest.at) and not (
            chosen.call_timeout_except
            and _is_excepted(method_of(message), chosen.call_timeout_except)
        ):
            return limit
    return earliest


async def in_time(
    limit: Limit,
    sending: Coroutine[Any, Any, Any],
    address: str,
    message: Any,
    cancel: Callable[[], None],
    wait: bool,
) -> Any:
    """Send, and see to it that sending and reply fail at the deadline.

    Parameters
    ----------
    sending
        Sends ``message`` to ``address``; the future of the reply to it, a
        :class:`~.client.Reply` or what can do the same.
    cancel
        Lets the other side stop working on it.
    wait
        Whether to return the reply, or the future of it.
    """
    loop = asyncio.get_running_loop()
    if limit.at <= loop.time():
        sending.close()
        _missed(limit, address, message)
        raise limit.passed(address, message)
    task = loop.create_task(sending)
    timeout = loop.call_at(limit.at, task.cancel)
    try:
        # Not wait_for: before Python 3.12 it swallows a cancellation that comes at the end.
        await asyncio.wait([task])
    except asyncio.CancelledError:
        task.add_done_callback(_abandon)
        task.cancel()
        raise
    finally:
        timeout.cancel()
    if task.cancelled():
        cancel()
        _missed(limit, address, message)
        raise limit.error(address, message)
    reply = task.result()
    arrivals = reply.arrivals

    def expire() -> None:
        cancel()  # first: it is to know where the call is
        _missed(limit, address, message)
        reply.expire(limit.error(address, message), arrivals)

    timer = loop.call_at(limit.at, expire)
    reply.add_done_callback(lambda _: timer.cancel())
    return await reply if wait else reply


def _missed(limit: Limit, address: str, message: Any) -> None:
    counters.count("deadlines_missed")
    text = f"{describe(message)}: no reply in {limit.seconds:g} s"
    history.note("deadline missed", address, text)


def _abandon(sending: asyncio.Task[Any]) -> None:
    """Whoever sent has been cancelled; so is a request that went out all the same."""
    if not sending.cancelled() and sending.exception() is None:
        sending.result().cancel()


@functools.lru_cache(maxsize=1024)
def _is_excepted(method: str | None, patterns: tuple[str, ...]) -> bool:
    return method is not None and any(fnmatch.fnmatchcase(method, each) for each in patterns)


def without(work: Callable[..., Coroutine[Any, Any, T]]) -> Callable[..., Coroutine[Any, Any, T]]:
    """``work`` as it is where no deadline is inherited, from whoever made its task."""

    @functools.wraps(work)
    async def without_deadline(*args: Any, **kwargs: Any) -> T:
        clear()
        return await work(*args, **kwargs)

    return without_deadline


def clear() -> None:
    """Let this task, and those it starts, know no deadline: what it does is not for one call."""
    _scope.set(None)


def describe(message: Any) -> str:
    """The method and the actor that a message calls, or else what it is."""
    message = _within(message)
    actor, method = getattr(message, "actor_ref", None), method_of(message)
    if actor is not None and method is not None:
        return f"{method}() of actor {actor_name(actor.uid)}"
    if actor is not None:
        return f"{message.message_type.name} of actor {actor_name(actor.uid)}"
    return f"{message.message_type.name}"


def _within(message: Any) -> Any:
    """What a proxy is to send on; else the message itself."""
    return message.raw_message if isinstance(message, ForwardMessage) else message


def method_of(message: Any) -> str | None:
    """The name of the actor's method that it calls; None: it calls none."""
    content = getattr(_within(message), "content", None)
    # xoscar sends (method, kind of call, arguments, keyword arguments).
    method = content[0] if isinstance(content, tuple) and content else None
    return method if isinstance(method, str) else None


def actor_name(uid: Any) -> str:
    """The id of an actor for people, on one line.

    xoscar gives one that has no name 32 random bytes for an id: the first eight, in hexadecimal.
    """
    if not isinstance(uid, bytes):
        return " ".join(str(uid).split())
    try:
        return " ".join(uid.decode().split())
    except UnicodeDecodeError:
        return uid[:8].hex()
