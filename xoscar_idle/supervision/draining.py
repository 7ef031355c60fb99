"""Letting a sub-pool finish what it has begun, and begin nothing more.

Its main pool says so in the page that they share, which needs neither a socket nor the sub-pool's
loop: from then on requests are turned away unexecuted. The sub-pool tells there when all that was
executed is with those who asked. What is lost on its connections after that has not been executed:
the sub-pool's loop looks at the page before each request, in one step with what it then does, and
it was on that loop that all had ended while the page said so.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import Any

from xoscar.backends.message import (
    ControlMessage,
    ControlMessageType,
    MessageType,
    ResultMessage,
    new_message_id,
)

from ..connection import accepted
from ..connection.exchange import NOBODY
from ..connection.settling import Settling
from ..periodic import spawn
from .crash import PoolUnavailable
from .page import Page
from .subpool import Subpool

REQUEST = "xoscar_idle drain"
"""In a request for the configuration: look at the page, and tell there when all has ended."""

STEP = 0.02
"""Seconds between two looks at what has not ended yet."""

STALE = 5.0
"""Seconds after which nobody asks any more what became of a connection that was lost."""

_NEXT, _DESTROY = "__xoscar_next__", "__xoscar_destroy_generator__"
"""Methods by which xoscar goes on with a stream, and lets go of one that may have ended."""

_REASON = "it is about to be stopped, and has not executed this"


# -- the main pool's side ----------------------------------------------------------------------


def stop_admitting(found: Subpool) -> bool:
    """Let it begin nothing more; whether it can be told. In any thread."""
    page = found.page
    if page is None or page.writer() is None:
        return False
    page.drain()
    return True


def admit(found: Subpool) -> None:
    """Undo that: it does not end after all."""
    found.drained = False
    if (page := found.page) is not None:
        page.tell(draining=0)


async def drain(pool: Any, address: str, found: Subpool, seconds: float) -> bool:
    """Let it finish what it has begun; whether it has, within so many seconds."""
    if not stop_admitting(found):
        return False
    message = ControlMessage(new_message_id(), address, ControlMessageType.get_config, REQUEST)
    asking = asyncio.ensure_future(pool.call(address, message))
    until = time.monotonic() + seconds
    try:
        while (page := found.page) is not None and not found.death.told:
            told = page.told()
            if told.is_drained:
                found.drained = not told.answer_lost
                return True
            # Who has no loop that answers may have one later; who does not understand never will.
            left = until - time.monotonic()
            if left <= 0 or not told.draining or (asking.done() and not _is_understood(asking)):
                break
            await asyncio.sleep(min(STEP, left))
        return False
    finally:
        asking.cancel()
        with contextlib.suppress(asyncio.CancelledError, Exception):
            await asking


def undone(found: Subpool, seconds: float) -> str:
    """What is to be said where it has not, after so many seconds."""
    if found.page is None or found.page.writer() is None:
        return ", without a drain, since it tells nothing of itself"
    if not (left := found.in_process()):
        return f", with answers on their way or generators open after {seconds:g} s"
    many = "" if left == 1 else "s"
    return f", with {left} request{many} in process after {seconds:g} s"


def _is_understood(asked: asyncio.Future[Any]) -> bool:
    return (
        not asked.cancelled()
        and asked.exception() is None
        and getattr(asked.result(), "result", None) is True
    )


# -- the sub-pool's side -----------------------------------------------------------------------


def turned_away(page: Page, pool: Any, message: Any) -> PoolUnavailable | None:
    """The error for a request that comes while it drains; None: it is admitted all the same."""
    uid = message.actor_ref.uid if message.message_type != MessageType.create_actor else None
    # A question of ours; or nothing, of which xoscar makes its caller's loop wait for the answer.
    if uid == NOBODY or (method := _method(message)) == _DESTROY:
        return None
    # What has begun may ask for more, and those who read its streams do; they look up the actor
    # before the first item.
    has_begun = (
        accepted.is_from_here()
        or method == _NEXT
        or (message.message_type == MessageType.actor_ref and _has_streams(pool._actors.get(uid)))
    )
    if has_begun and not page.told().is_drained:
        return None
    return PoolUnavailable.turning_away(
        pool.external_address, message.message_id, _REASON, "stopping"
    )


def _method(message: Any) -> Any:
    if message.message_type not in (MessageType.send, MessageType.tell):
        return None
    content = message.content
    return content[0] if type(content) is tuple and content else None


_telling: asyncio.Task[None] | None = None


def begin(page: Page, pool: Any, message: Any) -> ResultMessage:
    """Answer :data:`REQUEST`: from now on it is told when all has ended."""
    global _telling
    if _telling is None or _telling.done():
        _telling = spawn(asyncio.get_running_loop(), _tell(page, pool))
    return ResultMessage(message.message_id, True, protocol=message.protocol)


async def _tell(page: Page, pool: Any) -> None:
    since = time.monotonic()
    begun, settling = page.begun, Settling()
    while number := page.draining:
        if page.begun != begun:  # something was admitted, and its answer has to arrive, too
            begun, settling = page.begun, Settling()
        if not page.in_process and settling.look() and not _streams(pool):
            # Whoever has lost an answer is not to be told that nothing was executed.
            lost = settling.lost or accepted.answer_lost() > since - STALE
            page.tell(answer_lost=int(lost), drained=number)
            return
        await asyncio.sleep(STEP)


def _streams(pool: Any) -> bool:
    return any(map(_has_streams, list(pool._actors.values())))


def _has_streams(actor: Any) -> bool:
    return bool(getattr(actor, "_generators", None))
