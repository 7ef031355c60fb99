"""Calls to actors that are being created again, in a process that already listens for them.

Its main pool says so in the page that they share, before the process begins, and until its recovery
has ended, however it has. What comes for an actor that is not there by then is told so, and that it
was not executed: whoever wants to can wait for the recovery.
"""

from __future__ import annotations

from typing import Any

from xoscar.backends.message import MessageType

from ..connection import accepted, deadlines
from ..connection.exchange import NOBODY
from .crash import ActorUnavailable
from .subpool import Subpool

_ASKED = (MessageType.send, MessageType.tell, MessageType.actor_ref)
"""Requests that need an actor, and raise where there is none."""


def begin(new: Subpool) -> None:
    """A process has been started in which actors are to be created again."""
    if new.page is not None:
        new.page.tell(recreating=1)


def end(new: Subpool) -> None:
    """What is not there now does not come any more."""
    if new.page is not None:
        new.page.tell(recreating=0)


def turned_away(pool: Any, message: Any) -> ActorUnavailable | None:
    """The error for a request that comes meanwhile; None: it is processed as ever."""
    if message.message_type not in _ASKED:
        return None
    uid = message.actor_ref.uid
    # What is asked by an actor that is being created itself could not wait for it.
    if uid in pool._actors or uid == NOBODY or accepted.is_from_here():
        return None
    return ActorUnavailable.turning_away(
        pool.external_address,
        message.message_id,
        f"it is being recovered, and actor {deadlines.actor_name(uid)} is not there again yet",
        "recovering",
    )
