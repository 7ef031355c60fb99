"""Letting a sub-pool finish what it has begun, and begin nothing more.

Its main pool says so in the page that they share, which needs neither a socket nor the sub-pool's
loop: from then on requests are turned away unexecuted. A question over xoscar is answered when all
that was executed is with those who asked. What is lost on its connections after that has not been
executed: whatever comes later is turned away, whether anybody gets to read that or not.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterable
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
from .crash import PoolUnavailable
from .page import Page
from .subpool import Subpool

QUESTION = "xoscar_idle drain"

STEP = 0.02
"""Seconds between two looks at what is still in process."""

REQUESTS = (
    MessageType.send,
    MessageType.tell,
    MessageType.create_actor,
    MessageType.destroy_actor,
    MessageType.has_actor,
    MessageType.actor_ref,
)
"""What is turned away; control messages and cancellations are not."""

_OF_GENERATORS = ("__xoscar_next__", "__xoscar_destroy_generator__")
"""Methods by which xoscar goes on with a stream that has begun."""

_REASON = "it is about to be stopped, and has not executed this"


# -- the main pool's side ----------------------------------------------------------------------


def stop_admitting(found: Subpool) -> bool:
    """Let it execute nothing more; whether it can be told. In any thread."""
    page = found.page
    if page is None or page.writer() is None:
        return False
    page.tell(draining=1)
    return True


def admit(found: Subpool) -> None:
    """Undo that: it does not end after all."""
    if (page := found.page) is not None:
        page.tell(draining=0, drained=0)
        found.drained = False


async def drain(pool: Any, address: str, found: Subpool, seconds: float) -> bool:
    """Let it finish what it has begun; whether it has, within so many seconds."""
    if found.drained:
        return True
    if not stop_admitting(found):
        return False
    message = ControlMessage(new_message_id(), address, ControlMessageType.get_config, QUESTION)
    asking = asyncio.ensure_future(pool.call(address, message))
    until = time.monotonic() + seconds
    try:
        while (page := found.page) is not None and not found.death.told:
            if page.told().drained:
                found.drained = True
                return True
            if (left := until - time.monotonic()) <= 0:
                break
            # A failed question is as good as none: the page tells, or the time is up.
            await asyncio.wait([asking], timeout=min(STEP, left))
            if asking.done():
                await asyncio.sleep(min(STEP, left))
        return False
    finally:
        asking.cancel()
        with contextlib.suppress(asyncio.CancelledError, Exception):
            await asking


# -- the sub-pool's side -----------------------------------------------------------------------


def turned_away(pool: Any, message: Any) -> PoolUnavailable | None:
    """The error for a request that is not executed; None: it is, although nothing new is."""
    if message.message_type in (MessageType.send, MessageType.tell):
        content = message.content
        if type(content) is tuple and content and content[0] in _OF_GENERATORS:
            return None
        if message.actor_ref.uid == NOBODY:
            return None
    return PoolUnavailable.turning_away(pool.external_address, message.message_id, _REASON)


async def answer(page: Page, pool: Any, message: Any) -> ResultMessage:
    """Answer :data:`QUESTION` when the pool is drained, or is to admit again."""
    while page.draining and not _is_drained(page, pool):  # noqa: ASYNC110 - another process tells
        await asyncio.sleep(STEP)
    if page.draining:
        page.tell(drained=1)
    return ResultMessage(message.message_id, page.draining, protocol=message.protocol)


def _is_drained(page: Page, pool: Any) -> bool:
    # This question is in process, too.
    return (
        page.in_process == 0
        and accepted.outstanding() <= 1
        and not any(_generators(list(pool._actors.values())))
    )


def _generators(actors: Iterable[Any]) -> Iterable[Any]:
    return (getattr(each, "_generators", None) for each in actors)
