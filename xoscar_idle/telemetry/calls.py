"""Which calls are under way in processes: told by these, or else by their main pools."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import psutil

from .. import side_channel
from ..connection.loops import BLOCKED, LONGEST_STACK, RUNNING, Loop
from ..connection.underway import ACCEPTING, IN_PROCESS, Call
from ..supervision.state import PoolInfo, State
from . import asking, kernel, pools, snapshot, targets
from .asking import Question
from .snapshot import Snapshot, Unobservable
from .targets import Target

logger = logging.getLogger("xoscar_idle")

CALLS = Question("xoscar_idle calls", "", "calls")
SUB_POOLS = Question(pools.QUESTION, "", "sub-pools")

AT_ONCE = 128
"""How many are asked over xoscar: each takes a descriptor."""


@dataclass(frozen=True)
class Underway:
    """A process, and what is under way in it."""

    seen: Snapshot
    calls: Sequence[Call] = ()
    left_out: int = 0
    """How many calls more there are, younger ones."""
    loops: Sequence[Loop] = ()
    told_by: Target | None = None
    """Who knows of it: its main pool's process, or the address of that. None: it does itself."""
    note: str = ""
    """What could not be read of it."""
    complaint: str = ""
    """Why nobody tells; one line for the user."""

    @property
    def blocked(self) -> list[Loop]:
        """Its event loops that do not run."""
        return [each for each in self.loops if each.state == BLOCKED]

    @property
    def is_blocked(self) -> bool:
        """Whether one of its event loops does not run, or all of it does not."""
        return self.seen.status == snapshot.BLOCKED or bool(self.blocked)


async def look(named: Sequence[Target]) -> tuple[list[Underway], list[str]]:
    """Those that are named, or else all that offer a monitor; complaints.

    Of a pool all processes are asked, each once. One that does not answer over xoscar is asked over
    its side channel, where it is of this machine, and its main pool is asked where that fails.
    """
    offered = [] if named else await asyncio.to_thread(side_channel.offered)
    seen = await targets.look_at(named or offered)
    if not named:  # those that have gone have ended just now
        seen = [each for each in seen if each[1].status != snapshot.GONE]
    if not seen:
        return [], [targets.nobody()]
    asks = _Asking(seen)
    try:
        underway = await asyncio.gather(*(asks.look(*each) for each in seen))
    finally:
        asks.close()
    complaints = [each.complaint for each in underway if each.complaint]
    return underway, list(dict.fromkeys(complaints))


def exit_status(underway: Sequence[Underway]) -> int:
    """3 if one of them is blocked, else 1 if nobody tells of one, else 0."""
    if any(each.is_blocked for each in underway):
        return 3
    return 1 if not underway or any(each.complaint for each in underway) else 0


class _Asking:
    """Asks processes that have been looked at."""

    def __init__(self, seen: Sequence[tuple[Target, Snapshot]]) -> None:
        self._seen = seen
        self._at_once = asyncio.Semaphore(AT_ONCE)
        # Not those of asyncio, which are few: one that is stopped takes its time.
        self._threads = ThreadPoolExecutor(targets.PROCESSES_AT_ONCE, "xoscar-idle-ask")
        self._known: dict[Target, asyncio.Task[list[PoolInfo]]] = {}

    def close(self) -> None:
        """Wait for nobody any more."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def look(self, named: Target, one: Snapshot) -> Underway:
        """What is under way in a process."""
        try:
            return _read(one, await self._tell(named, one, CALLS))
        except Unobservable as error:
            complaint = str(error)
        if one.status not in snapshot.MISSING:
            known = await self._by_its_parent(named, one) or await self._by_its_main_pool(one)
            if known is not None:
                return known
        return Underway(one, complaint=complaint)

    async def _tell(self, named: Target, one: Snapshot, question: Question) -> str | bytes:
        """The answer of a process itself."""
        # One that has not answered on its side channel either was seen from outside.
        is_silent = one.status == snapshot.BLOCKED and one.statistics is None
        if is_silent or one.status in (snapshot.INACTIVE, *snapshot.MISSING):
            raise Unobservable(one.complaint)
        if one.pid is not None and _is_here(named, one):
            return await self._beside(one.pid, question)
        return await self._over_xoscar(one.address or f"{named}", question)

    async def _over_xoscar(self, address: str, question: Question) -> str | bytes:
        from . import pool_query  # imports xoscar, which takes a while

        try:
            return await pool_query.tell(address, question.text, self._at_once)
        except pool_query.Silent:  # it was not when it was looked at
            loop = asyncio.get_running_loop()
            here = await loop.run_in_executor(self._threads, kernel.listeners, [address])
            if address not in here:
                raise
        return await self._beside(here[address], question)

    async def _beside(self, pid: int, question: Question) -> bytes:
        """The answer over the side channel, which event loops have no part in."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, asking.ask_process, pid, question)

    # -- what is known of one that does not tell itself --------------------------------------------

    async def _by_its_parent(self, named: Target, one: Snapshot) -> Underway | None:
        """What the process that has started it tells: a sub-pool's is that of its main pool."""
        if one.pid is None or not _is_here(named, one):
            return None
        if (parent := _parent(one.pid)) is None:
            return None
        return await self._known_by(parent, one, partial(self._beside, parent, SUB_POOLS))

    async def _by_its_main_pool(self, one: Snapshot) -> Underway | None:
        """What its main pool tells, where those beside it know the address of that."""
        if (main := self._main_of(one)) is None:
            return None
        ask = partial(self._over_xoscar, main, SUB_POOLS)
        for named, other in self._seen:
            if other.address == main:
                ask = partial(self._tell, named, other, SUB_POOLS)
        return await self._known_by(main, one, ask)

    def _main_of(self, one: Snapshot) -> str | None:
        for _, other in self._seen:
            for pool in other.pools:
                main = pool.get("main")
                if one.address is not None and pool.get("address") == one.address != main:
                    return main if isinstance(main, str) else None
        return None

    async def _known_by(
        self, main: Target, one: Snapshot, ask: Callable[[], Coroutine[Any, Any, str | bytes]]
    ) -> Underway | None:
        """What a main pool knows of a process; each is asked once."""
        if main not in self._known:
            self._known[main] = asyncio.create_task(_sub_pools(ask()))
        for each in await self._known[main]:
            if each.pid and (each.pid == one.pid or each.address == one.address):
                return _known(one, main, each)
        return None


def _is_here(named: Target, one: Snapshot) -> bool:
    """Whether its PID is one of this machine, as far as is known."""
    return isinstance(named, int) or one.status == snapshot.BLOCKED


async def _sub_pools(telling: Coroutine[Any, Any, str | bytes]) -> list[PoolInfo]:
    try:
        return [PoolInfo.from_dict(each) for each in json.loads(await telling)["pools"]]
    except (Unobservable, AttributeError, KeyError, TypeError, ValueError) as error:
        logger.debug("sub-pools of a process are not known: %r", error)
        return []


def _parent(pid: int) -> int | None:
    """The process that has started it."""
    try:
        return psutil.Process(pid).ppid() or None
    except (psutil.Error, OverflowError):
        return None


def _known(one: Snapshot, main: Target, info: PoolInfo) -> Underway:
    """What a main pool knows of a process without its help."""
    calls = [_request(each, info.address) for each in info.requests]
    is_blocked = one.status == snapshot.BLOCKED or info.state in (State.BUSY, State.UNHEALTHY)
    state, lag = BLOCKED if is_blocked else RUNNING, round(info.loop_lag or 0.0, 3)
    loop = Loop(0, "", state, lag, info.doing[:LONGEST_STACK])
    return Underway(one, calls, max(0, (info.in_process or 0) - len(calls)), [loop], main)


def _request(told: Mapping[str, Any], address: str) -> Call:
    method, seconds = str(told.get("method", "")), told.get("seconds")
    kind = "create_actor" if method == "create_actor" else "send"
    return Call(
        ACCEPTING,
        IN_PROCESS,
        float(seconds) if isinstance(seconds, (int, float)) else 0.0,
        kind,
        peer="",
        actor=str(told.get("actor", "")),
        method=method if kind == "send" else "",
        address=address,
    )


def _read(one: Snapshot, text: str | bytes) -> Underway:
    try:
        given = json.loads(text)
        calls = [Call.from_dict(each) for each in given["calls"]]
        loops = [Loop.from_dict(each) for each in given["loops"]]
        times: Sequence[object] = [each.seconds for each in calls] + [
            each.seconds for each in loops
        ]
        if not all(isinstance(each, (int, float)) for each in times):
            raise TypeError("a time is none")
        left_out, note = int(given.get("left_out", 0)), str(given.get("note", ""))
        return Underway(one, calls, left_out, loops, note=note)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise Unobservable(f"{one.name} does not tell of its calls: {error!r}") from None
