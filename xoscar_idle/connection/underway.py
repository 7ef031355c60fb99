"""Which calls are under way in this process; from any thread.

It reads the tables that the connections have anyway, without a lock, and without a cost for calls.
Calls of actors in the same process are awaited by xoscar directly, and are in none of them.
"""

from __future__ import annotations

import asyncio
import dataclasses
import heapq
import logging
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from ..logs import one_line
from ..versions import known_fields
from . import history, statistics
from .loops import BLOCKED, Asked

if TYPE_CHECKING:
    from .accepted import Accepted, Served
    from .caller import ActorCaller
    from .connecting import Connect

T = TypeVar("T")

logger = logging.getLogger("xoscar_idle")

CALLING, ACCEPTING = "calling", "accepting"
"""The sides of a call."""

IN_FLIGHT, HELD, CONNECTING = "in flight", "held", "connecting"
"""States of the calling side: its reply is waited for; it waits for a pool to be recovered; for a
connection."""

IN_PROCESS = "in process"
"""The state of the accepting side: from the request to its reply."""

MOST = 1000
"""How many calls one answer has, the oldest: it must be sent within two seconds, on one line."""

MOST_LOOPS = 100

LONGEST = 200
"""Characters of a name: those of actors and methods are the program's, and have any length."""

OURS = "xoscar_idle"
"""How the content of a control message begins that is a question of ours."""


@dataclass(frozen=True)
class Call:
    """One call, or a connect that calls wait for, in values that JSON has."""

    side: str
    """:data:`CALLING` or :data:`ACCEPTING`."""
    state: str
    seconds: float
    """How long it has been so; of one in flight since it was written."""
    kind: str
    """The kind of its message: ``send``, ``tell``, ``create_actor``, ``control get_config``..., or
    ``connect``."""
    peer: str
    """The other side: the address that is called, or as :attr:`.AcceptedInfo.peer` has it."""
    actor: str = ""
    """The actor that it is for; empty: none."""
    method: str = ""
    """Of the actor; empty: it is no call of one."""
    address: str = ""
    """That at which it was accepted."""
    via: str = ""
    """The address that passes it on to its peer, where that is another one."""
    thread: int = 0
    """The identifier of the thread of its event loop."""
    count: int = 1
    """Of a connect, how many calls wait for it."""

    @classmethod
    def from_dict(cls, given: Mapping[str, Any]) -> Call:
        """Of ``dataclasses.asdict`` of one, from a process with another version of us, too."""
        return cls(**known_fields(cls, given))


def told(_: str = "") -> dict[str, Any]:
    """What is under way in this process, as :class:`Call` and :class:`Loop` have it.

    ``left_out`` is how many calls more there are, younger ones. ``note`` says what could not be
    read. It waits for :data:`.loops.PATIENCE` where a loop is blocked, but never on a loop.
    """
    notes: list[str] = []
    callers, serving = statistics.callers(), statistics.serving()
    asked = {each.loop: each for each in _read(_asked, [*callers, *serving], notes)}
    found = [*_read(_calling, callers, notes), *_read(_accepting, serving, notes)]
    oldest = heapq.nlargest(MOST, found, key=lambda each: each[0])
    calls = _read(lambda each: [each[1]()], oldest, notes)
    if asyncio._get_running_loop() is None:
        for each in asked.values():
            each.wait()
    loops = _read(lambda each: [each.seen()], asked.values(), notes)
    loops.sort(key=lambda each: each.state != BLOCKED)
    return {
        "pid": os.getpid(),
        "process": history.journal.name,
        "calls": [dataclasses.asdict(each) for each in calls],
        "left_out": len(found) - len(oldest),
        "loops": [dataclasses.asdict(each) for each in loops[:MOST_LOOPS]],
        "note": "; ".join(dict.fromkeys(notes)),
    }


Found = tuple[float, Callable[[], Call]]
"""For how many seconds, and all the rest, which is wanted of the oldest alone."""


def _read(read: Callable[[Any], Iterable[T]], those: Iterable[Any], notes: list[str]) -> list[T]:
    """All that is to be read of those; the program goes on while that is done."""
    found: list[T] = []
    for each in those:
        try:
            found += read(each)
        except Exception as error:
            logger.debug("what is under way cannot be read", exc_info=True)
            notes.append(f"something could not be read: {one_line(error)}")
    return found


# -- calls -----------------------------------------------------------------------------------------


def _calling(caller: ActorCaller) -> list[Found]:
    thread = caller.thread
    found: list[Found] = []
    for client in caller.connections():
        now, address = client.now(), client.address
        for reply in client.waiting():
            message = reply.message
            if reply.since and message is not None and not _is_ours(message):
                seconds = now - reply.since
                described = partial(_sent, IN_FLIGHT, seconds, message, address, thread)
                found.append((seconds, described))
    for held in caller._holding.waiting():
        described = partial(_sent, HELD, held.seconds, held.message, held.address, thread)
        found.append((held.seconds, described))
    for connect in list(caller._connects.all):
        seconds = caller.clock() - connect.started
        if waiters := sum(not each.done() for each in list(connect.waiters)):
            found.append((seconds, partial(_dialed, connect, seconds, waiters, thread)))
    return found


def _accepting(accepted: Accepted) -> list[Found]:
    now = accepted.clock()
    return [
        (now - since, partial(_received, now - since, message, each, accepted.thread))
        for each in accepted.served()
        for since, message in list(each.requests.values())
        if not _is_ours(message)
    ]


def _sent(state: str, seconds: float, message: Any, address: str, thread: int) -> Call:
    kind, actor, method = _what(message)
    there = message.address if hasattr(message, "raw_message") else address
    via = "" if there == address else _short(address)
    peer = _short(there)
    return Call(CALLING, state, _rounded(seconds), kind, peer, actor, method, "", via, thread)


def _dialed(connect: Connect, seconds: float, waiters: int, thread: int) -> Call:
    from . import routing

    peer = _short(routing.known_as(connect.router, connect.route))
    how_long = _rounded(seconds)
    return Call(CALLING, CONNECTING, how_long, "connect", peer, thread=thread, count=waiters)


def _received(seconds: float, message: Any, served: Served, thread: int) -> Call:
    kind, actor, method = _what(message)
    peer, own = _short(served.peer), _short(served.channel.local_address)
    how_long = _rounded(seconds)
    return Call(ACCEPTING, IN_PROCESS, how_long, kind, peer, actor, method, own, "", thread)


def _is_ours(message: Any) -> bool:
    """Whether it is a question of ours, and no call of the program's."""
    from .exchange import is_question  # it imports xoscar, which has been where there is a message

    content = getattr(message, "content", None)
    return (isinstance(content, str) and content.startswith(OURS)) or is_question(message)


def _what(message: Any) -> tuple[str, str, str]:
    """What a message is, the actor that it is for, and the method that it calls."""
    from .deadlines import actor_name, method_of

    message = getattr(message, "raw_message", message)  # where one is passed on
    kind = message.message_type.name
    if (control := getattr(message, "control_message_type", None)) is not None:
        kind = f"{kind} {control.name}"
    actor = getattr(message, "actor_ref", None)
    uid = getattr(message, "actor_id", None) if actor is None else actor.uid
    name = "" if uid is None else actor_name(uid)
    return kind, _short(name), _short(method_of(message) or "")


def _short(text: object) -> str:
    told = str(text)
    return told if len(told) <= LONGEST else f"{told[: LONGEST - 3]}..."


def _rounded(seconds: float) -> float:
    return round(max(0.0, seconds), 3)


def _asked(owner: ActorCaller | Accepted) -> list[Asked]:
    """The loop of one with connections is asked whether it runs."""
    return [] if owner.loop.is_closed() else [Asked(owner)]
