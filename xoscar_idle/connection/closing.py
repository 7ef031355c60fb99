"""Closing connections because an operator wants it: to a peer, on all loops and threads.

A connection in use takes no new calls and closes after those in flight, as ever; or it is closed at
once, and they fail. What is connecting is left alone. Each loop closes its own connections: one
that is blocked does so when it runs again.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import fnmatch
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from .. import values
from . import accepted, registry
from .accepted import Accepted, Served
from .caller import ActorCaller
from .client import CallerClient, State

logger = logging.getLogger("xoscar_idle")

PATIENCE = 0.5
"""Seconds for which loops are waited for, all together."""

NAMED = 5
"""So many peers are named where none of them is meant."""

LONGEST_PEER = 200
"""Characters. No address is so long."""

TOLD = "an operator closed the connection"
"""What calls in flight are told."""


class NoSuchPeer(LookupError):
    """No connection is to a peer that is meant; the message names those that there are."""


@dataclass(frozen=True)
class Closed:
    """What became of it."""

    closed: int
    draining: int
    """Those that are in use, take no new calls, and close after those in flight."""
    late: int
    """Loops that have not done it yet, and do it when they run again."""


def close(peer: str, now: bool = False, those_accepted: bool = False) -> Closed:
    """Close what this process has opened to a peer; from any thread that runs none of the loops.

    Parameters
    ----------
    peer
        The address of a pool or the route to it, or a pattern of them with ``*`` and ``?``.
    now
        In use or not: calls in flight raise ``ServerClosed``.
    those_accepted
        Close what pools of this process have accepted from a peer, ``host:port`` or ``pid 4711``,
        instead; without ``now`` as soon as it has no request in process.

    Raises
    ------
    ValueError
        ``peer`` is no address and no pattern.
    NoSuchPeer
        There is no connection to such a peer.
    """
    is_meant = _matcher(peer)
    found = list(_accepted(is_meant, now) if those_accepted else _opened(is_meant, now))
    meant = [
        each for each in found if any(is_meant(name) for names in each.peers for name in names)
    ]
    if not meant:
        raise NoSuchPeer(_none(peer, found, "accepted" if those_accepted else "open"))
    asked = [(each.loop, _on_its_loop(each)) for each in meant]
    concurrent.futures.wait([answer for _, answer in asked], PATIENCE)
    done = [answer.result() for _, answer in asked if answer.done() and answer.exception() is None]
    return Closed(
        closed=sum(closed for closed, _ in done),
        draining=sum(draining for _, draining in done),
        late=len({loop for loop, answer in asked if not answer.done() or answer.exception()}),
    )


def _matcher(peer: str) -> Callable[[str], bool]:
    """Whether a name is one of those that ``peer`` means. Brackets are those of IPv6 addresses."""
    if not peer or not peer.isprintable() or len(peer) > LONGEST_PEER:
        raise ValueError(
            f"the peer must be an address, or a pattern of addresses with * and ?, of at most "
            f"{LONGEST_PEER} printable characters, got {values.shown(peer)}"
        )
    pattern = re.compile(fnmatch.translate(peer.replace("[", "[[]")))
    return lambda name: name == peer or pattern.match(name) is not None


@dataclass(frozen=True)
class _Holder:
    """Who holds connections on a loop."""

    loop: asyncio.AbstractEventLoop
    peers: Sequence[tuple[str, ...]]
    """The names of each."""
    close: Callable[[], tuple[int, int]]
    """On its loop: how many it closes, and how many are draining."""


def _opened(is_meant: Callable[[str], bool], now: bool) -> Iterator[_Holder]:
    for caller in registry.everywhere():
        peers = [(each.address, each.route) for each in _open(caller)]
        yield _Holder(caller.loop, peers, partial(_close_opened, caller, is_meant, now))


def _open(caller: ActorCaller) -> list[CallerClient]:
    return [each for each in caller.connections() if each.state in (State.OPEN, State.RETIRED)]


def _close_opened(
    caller: ActorCaller, is_meant: Callable[[str], bool], now: bool
) -> tuple[int, int]:
    found = [each for each in _open(caller) if is_meant(each.address) or is_meant(each.route)]
    for each in found:
        if now:
            each.close("operator", TOLD)
        else:
            each.retire("operator")
    draining = sum(each.state is State.RETIRED for each in found)
    return len(found) - draining, draining


def _accepted(is_meant: Callable[[str], bool], now: bool) -> Iterator[_Holder]:
    def wanted(each: Served) -> bool:
        return is_meant(each.peer)

    for each in accepted.everywhere():
        peers = [(one.peer,) for one in each.served()]
        yield _Holder(each.loop, peers, partial(_close_accepted, each, wanted, now))


def _close_accepted(mine: Accepted, wanted: Callable[[Served], bool], now: bool) -> tuple[int, int]:
    closed = mine.close(wanted, now)
    return closed, 0 if now else mine.drain(wanted)


def _on_its_loop(holder: _Holder) -> concurrent.futures.Future[tuple[int, int]]:
    answer: concurrent.futures.Future[tuple[int, int]] = concurrent.futures.Future()

    def close() -> None:
        try:
            answer.set_result(holder.close())
        except Exception as error:
            logger.warning("connections could not be closed", exc_info=True)
            answer.set_exception(error)

    try:
        holder.loop.call_soon_threadsafe(close)
    except RuntimeError:  # it has just been closed, and they with it
        answer.set_result((0, 0))
    return answer


def _none(peer: str, found: list[_Holder], what: str) -> str:
    """Why nothing is done, and what could be meant."""
    there = sorted({names[0] for each in found for names in each.peers})
    if not there:
        return f"it has no connection {what}"
    named = ", ".join(there[:NAMED])
    more = f" and {len(there) - NAMED} more" if len(there) > NAMED else ""
    return f"it has no connection {what} with {values.shown(peer)}, but with {named}{more}"
