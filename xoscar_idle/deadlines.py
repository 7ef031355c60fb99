"""Until when a call may wait: ``with xoscar_idle.deadline(seconds):`` and the default."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from xoscar.backends.message import MessageType

from . import config


class CallTimeout(TimeoutError):
    """A call had no reply by its deadline. It may have had its effect all the same."""


@dataclass(frozen=True)
class Limit:
    """The deadline of one call: ``at``, in the loop's time, ``seconds`` after it was set."""

    at: float
    seconds: float

    def error(self, address: str, message: Any) -> CallTimeout:
        """The error that tells who did not answer what, and for how long."""
        return CallTimeout(f"{_describe(message)} at {address}: no reply in {self.seconds:g} s")


_scope: ContextVar[Limit | None] = ContextVar("xoscar_idle_deadline", default=None)


def _now() -> float:
    try:
        return asyncio.get_running_loop().time()
    except RuntimeError:  # no loop is running; asyncio's and uvloop's have the same clock
        return time.monotonic()


@contextlib.contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """Let calls in this block, and in tasks it starts, raise :class:`CallTimeout` in time.

    Of nested deadlines the earliest counts. A call that misses it is cancelled on the other side,
    in the background, and a late reply is dropped; the connection's other calls go on. Each item
    of a remote generator is a call of its own. Calls to actors in the same process are awaited
    directly by xoscar and know no deadline.

    Parameters
    ----------
    seconds
        From now on; above 0.

    Raises
    ------
    ValueError
        ``seconds`` is no such number.
    """
    try:
        seconds = config.seconds(seconds)
        if not seconds:
            raise ValueError("must be above zero")
    except ValueError as error:
        raise ValueError(f"deadline {error}, got {seconds!r}") from None
    limit = Limit(_now() + seconds, seconds)
    outer = _scope.get()
    token = _scope.set(limit if outer is None or limit.at < outer.at else outer)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):  # garbage of a closed loop, in no context of it
            _scope.reset(token)


def limit_of(message: Any) -> Limit | None:
    """Until when the call that sends ``message`` may wait; None: for ever.

    ``call_timeout`` is for calls of actors' methods. What xoscar does beside, like creating an
    actor, may take as long as it takes, unless it is within :func:`deadline`.
    """
    scope = _scope.get()
    default = config.current().call_timeout
    if default and message.message_type in (MessageType.send, MessageType.tell):
        limit = Limit(_now() + default, default)
        return limit if scope is None or limit.at < scope.at else scope
    return scope


def clear() -> None:
    """Let this task, and those it starts, know no deadline: what it does is not for one call."""
    _scope.set(None)


def _describe(message: Any) -> str:
    actor = getattr(message, "actor_ref", None)
    content = getattr(message, "content", None)
    # xoscar sends (method, kind of call, arguments, keyword arguments).
    method = content[0] if isinstance(content, tuple) and content else None
    if actor is not None and isinstance(method, str):
        return f"{method}() of actor {_text(actor.uid)}"
    if actor is not None:
        return f"{message.message_type.name} of actor {_text(actor.uid)}"
    return f"{message.message_type.name}"


def _text(uid: Any) -> str:
    return uid.decode(errors="backslashreplace") if isinstance(uid, bytes) else str(uid)
