"""Calls that have failed: which of them may be sent again, once their pool has been recovered."""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass
from typing import Any

from xoscar.backends.message import ErrorMessage, MessageType
from xoscar.errors import ServerClosed
from xoscar.utils import fix_all_zero_ip

from .. import values

MOST_EXECUTIONS = 5
"""Times that a call may have been executed: one may be what its pool dies of."""

REQUESTS = (
    MessageType.send,
    MessageType.tell,
    MessageType.create_actor,
    MessageType.destroy_actor,
    MessageType.has_actor,
    MessageType.actor_ref,
)
"""What executes something or asks for an actor; what goes on beside does not wait."""

READING = (MessageType.has_actor, MessageType.actor_ref)
"""Questions, which may be asked again whatever became of them."""


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
    if getattr(error, "is_answer", False):  # it comes of reading what was answered
        return None
    unexecuted = getattr(error, "unexecuted", False)
    if isinstance(error, FileNotFoundError) and not unexecuted:  # else a unix socket has gone
        return None
    if isinstance(error, (ServerClosed, ConnectionError, FileNotFoundError)):
        return Failure(error, address, executed=not unexecuted)
    return None


def turned_away(message: Any, reply: Any, address: str) -> Failure | None:
    """The failure where a reply from ``address`` says that exactly this was not executed."""
    if not isinstance(reply, ErrorMessage):
        return None
    error = reply.error
    if getattr(error, "turned_away", None) != message.message_id:
        return None
    return Failure(error, fix_all_zero_ip(error.address, address), executed=False)


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
    if kind not in REQUESTS:
        return False
    # The state of a stream has gone with its pool.
    if method is not None and method.startswith("__xoscar_"):
        return False
    if not failure.executed:
        return True
    if executions >= MOST_EXECUTIONS:
        return False
    if kind in READING:
        return True
    if kind not in (MessageType.send, MessageType.tell) or method is None:
        return False
    return any(
        fnmatch.fnmatchcase(method, pattern) for pattern in retry if pattern != values.UNSENT
    )
