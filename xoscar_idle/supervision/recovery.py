"""What is done about the sub-pools of one main pool that have died, one after the other.

It takes the place of xoscar's monitor, which looks at one process after the other every half
second, at none while it recovers one, and at each for ever. What is done about a death is what
xoscar does, in its order, through ``pool.recover_sub_pool`` as it stands on the instance; with
``XOSCAR_SUPERVISE=act`` within a budget.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import math
import random
import time
from collections import deque
from collections.abc import Callable, Coroutine
from contextvars import ContextVar
from functools import partial
from typing import Any, Protocol

from xoscar.backends.indigen.pool import MainActorPool
from xoscar.backends.message import (
    CreateActorMessage,
    DestroyActorMessage,
    ErrorMessage,
    HasActorMessage,
    new_message_id,
)
from xoscar.core import create_actor_ref

from .. import config, logs
from ..connection import deadlines, holding
from ..periodic import Background, spawn
from . import ending, recreating, starting
from .budget import Limits, Plan
from .lineage import COMING, Lineage
from .state import State
from .subpool import Subpool

logger = logging.getLogger("xoscar_idle")

RETRY = 0.5
"""Seconds after which a recovery that failed is tried again without a budget, as xoscar does."""

TELL_FIRST = 0.05
"""Seconds from a death to its recovery. Starting a process blocks the loop for tens of
milliseconds, and those who wait for what there is to say are here or ask within that time."""

GIVEN_UP = 5.0
"""Seconds that a recovery has to end when the main pool stops."""

_recovering: ContextVar[Lineage | None] = ContextVar("xoscar_idle_recovering", default=None)
"""What is attached in this context replaces a process of that lineage."""

_failed: ContextVar[list[tuple[Any, BaseException]] | None] = ContextVar(
    "xoscar_idle_failed", default=None
)
"""Messages to create actors that have failed in this context, and the errors."""


class Keeper(Protocol):
    """Who keeps the lineages of a main pool, and tells what becomes of them."""

    def pool(self) -> Any:
        """The main pool; None: it has gone."""

    def change(self, lineage: Lineage, state: State, reason: str = "") -> None:
        """A lineage is in another state, or for another reason."""

    def has(self, lineage: Lineage) -> bool:
        """Whether the main pool still has a process of it."""

    def follow(self) -> None:
        """The main pool may have other processes than before."""


class Recovery:
    """Belongs to the event loop of its main pool."""

    def __init__(self, keeper: Keeper) -> None:
        self._keeper = keeper
        self._loop = asyncio.get_running_loop()
        self._due: deque[Lineage] = deque()  # to be recovered, in this order
        self._timers: dict[Lineage, asyncio.TimerHandle] = {}
        self._waiting: dict[Lineage, list[asyncio.Future[None]]] = {}
        self._woken = asyncio.Event()
        self._work: asyncio.Task[None] | None = None
        self._new: list[Subpool] = []  # processes that it has started
        self._attempts: dict[Lineage, list[asyncio.Future[str]]] = {}
        self._background = Background()
        self.at_work: Lineage | None = None
        """Which is being recovered."""
        self.monitors = False
        """Whether what is done about deaths is ours to do."""
        self.retired = False
        """Whether xoscar is not extended any more."""

    def replaced_here(self) -> Lineage | None:
        """That of which what is attached here and now replaces a process."""
        # What a recovery has started may go on in its context long after it.
        lineage = _recovering.get()
        return lineage if lineage is self.at_work else None

    def is_held_up_by(self, asker: str, lineage: Lineage) -> bool:
        """Whether it is not recovered before the sub-pool at that address has been.

        Actors that are being created there would wait for what waits for them.
        """
        work = self.at_work
        return work is not None and work is not lineage and work.address == asker

    # -- failures --------------------------------------------------------------------------------

    def lost(self, lineage: Lineage) -> None:
        """Its process has died: tell the program, and plan what is to follow."""
        self.drop(lineage)  # what was planned for it was planned for a process that lived
        told = lineage.told is lineage.subpool
        if not told and not self._announce(lineage, partial(self.lost, lineage)):
            return
        lineage.told = lineage.subpool
        if not lineage.given_up:
            self._plan(lineage, counts=not told)

    def take_up(self, lineage: Lineage) -> None:
        """It is here when what is done about failures begins, or begins again."""
        if lineage.subpool is not None and lineage.subpool.death.told:
            self._loop.call_soon(self.lost, lineage)
        elif lineage.incomplete and not lineage.is_left_alone:
            self._begin(lineage, again=True)

    def hung(self, lineage: Lineage, found: Subpool, why: str) -> None:
        """It is not to be waited for any more: end it, where that is ours to do."""
        pool = self._keeper.pool()
        if (
            config.current().supervise == "act"
            and self.monitors
            and pool is not None
            and pool._auto_recover
            and lineage.subpool is found
            and not (lineage.has_ended or lineage.paused or lineage.restarting or found.requested)
        ):
            self._background.spawn(self._loop, ending.kill(found, why))

    def _announce(self, lineage: Lineage, again: Callable[[], None]) -> bool:
        """Tell the program as xoscar does; once more later, where that fails."""
        pool = self._keeper.pool()
        if pool is None or pool.stopped or not self.monitors or not self._is_lost(lineage):
            return False
        try:
            if pool._on_process_down is not None:
                pool._on_process_down(pool, lineage.address)
            pool.process_sub_pool_lost(lineage.address)
        except Exception:
            logger.exception("Monitor sub pool %s failed", lineage.address)
            self._at(lineage, self._loop.time() + RETRY, again)
            return False
        return bool(pool._auto_recover)

    def _plan(
        self, lineage: Lineage, reason: str = "", again: bool = False, counts: bool = True
    ) -> None:
        """It has failed: decide when it is tried, and whether callers are to wait for that."""
        self.drop(lineage)
        begin = partial(self._begin, lineage, again)
        reason = reason or lineage.reason
        if config.current().supervise != "act":
            self._keeper.change(lineage, State.RECOVERING, reason)
            self._at(lineage, self._loop.time() + (RETRY if again else 0.0), begin)
            return
        now = time.monotonic()
        plan = self._plan_of(lineage, now, again, counts)
        if lineage.paused and not lineage.by_hand:
            self._keeper.change(lineage, State.PAUSED, reason)
            self.settle(lineage)
            return
        lineage.try_at = None if plan.at in (now, math.inf) else plan.at
        if plan.degraded:
            self._keeper.change(lineage, State.DEGRADED, _joined(plan.degraded, reason))
            self.settle(lineage)
        elif lineage.has_ended:
            self._keeper.change(lineage, State.RECOVERING, reason)
        if plan.at < math.inf:
            self._at(lineage, self._loop.time() + plan.at - now, begin)

    def _plan_of(self, lineage: Lineage, now: float, again: bool, counts: bool) -> Plan:
        found, chosen = lineage.subpool, config.current()
        limits = Limits.of(chosen.restart_limit, chosen.restart_cooldown)
        chance = random.random()
        if not again and found is not None and found.requested:
            return Plan(now)  # it was asked to end, and to come back
        if lineage.by_hand or not counts:
            lineage.by_hand = False  # what follows it counts
            return lineage.budget.plan(now, limits, chance=chance)
        # One that fails before it can be used has not run at all.
        ran = 0.0 if again or lineage.ready < lineage.began else now - lineage.ready
        start = now - ran - lineage.began
        return lineage.budget.failed(now, limits, chance=chance, start=start, ran=ran)

    def _at(self, lineage: Lineage, at: float, what: Callable[[], None]) -> None:
        self._forget_timer(lineage)
        self._timers[lineage] = self._loop.call_at(at, self._timed, lineage, what)

    def _timed(self, lineage: Lineage, what: Callable[[], None]) -> None:
        self._timers.pop(lineage, None)
        what()

    def _forget_timer(self, lineage: Lineage) -> None:
        if (timer := self._timers.pop(lineage, None)) is not None:
            timer.cancel()

    def _begin(self, lineage: Lineage, again: bool) -> None:
        """It is time to recover it."""
        lineage.try_at = None
        announce_again = partial(self._begin, lineage, again)
        if again and not lineage.incomplete and not self._announce(lineage, announce_again):
            return
        if lineage not in self._due:
            self._due.append(lineage)
            self._woken.set()

    def _is_lost(self, lineage: Lineage) -> bool:
        """Whether its process has ended, and nothing has taken its place."""
        return self._keeper.has(lineage) and lineage.has_ended

    # -- by hand ---------------------------------------------------------------------------------

    def begin(self, lineage: Lineage) -> None:
        """Recover it now, if it is down or not complete, whatever is planned; it does not count."""
        if lineage is self.at_work or not (lineage.incomplete or self._is_lost(lineage)):
            return
        self._forget_timer(lineage)
        lineage.by_hand = True
        if lineage.has_ended:
            self._keeper.change(lineage, State.RECOVERING, "somebody has asked for it")
        self._begin(lineage, again=True)

    def attempt(self, lineage: Lineage) -> asyncio.Future[str]:
        """Of the next try to recover it: empty, or why it has failed."""
        made: asyncio.Future[str] = self._loop.create_future()
        self._attempts.setdefault(lineage, []).append(made)
        return made

    def _attempted(self, lineage: Lineage, why: str) -> None:
        for each in self._attempts.pop(lineage, []):
            if not each.done():
                each.set_result(why)

    def drop(self, lineage: Lineage) -> None:
        """Forget what is planned for it."""
        self._forget_timer(lineage)
        lineage.try_at = None
        with contextlib.suppress(ValueError):
            self._due.remove(lineage)

    def removed(self, lineage: Lineage) -> None:
        """Its main pool does not have it any more."""
        self.drop(lineage)
        self.settle(lineage)
        self._attempted(lineage, "it was removed from its main pool")

    def leave(self, lineage: Lineage, state: State, reason: str) -> None:
        """Recover it no more, and end what is under way."""
        self.drop(lineage)
        if lineage is self.at_work and self._work is not None:
            self._work.cancel()
        self._keeper.change(lineage, state, reason)
        self.settle(lineage)
        self._attempted(lineage, reason)

    # -- xoscar's monitor ------------------------------------------------------------------------

    async def run(self, pool: Any) -> None:
        """Do what xoscar's monitor does, until the pool stops or this is retired."""
        deadlines.clear()
        self.monitors = True
        try:
            while not pool.stopped and not self.retired:
                self._woken.clear()
                while self._due and not self.retired:
                    await asyncio.sleep(TELL_FIRST)
                    if self._due and not self.retired:
                        with holding.off():  # it would wait for itself
                            await self._recover(pool, self._due.popleft())
                await self._woken.wait()
        finally:
            self.monitors = False
            self._due.clear()
            for lineage in list(self._timers):
                self._forget_timer(lineage)
            if self.retired or pool.stopped:
                for lineage in list(self._waiting):
                    self.settle(lineage)
            for lineage in list(self._attempts):
                self._attempted(lineage, "its main pool is watched no more")

    def retire(self) -> None:
        """Leave all to xoscar's own monitor, after what is under way."""
        self.retired = True
        self._woken.set()
        if not self.monitors:
            for lineage in list(self._waiting):
                self.settle(lineage)

    async def _recover(self, pool: Any, lineage: Lineage) -> None:
        if lineage.is_left_alone:
            why = lineage.reason
        elif self._is_lost(lineage):
            self.at_work = lineage
            try:
                why = await self._replace(pool, lineage)
            finally:
                self.at_work = None
            self._attempted(lineage, why)
            return
        elif lineage.incomplete and not lineage.has_ended:
            why = await self._complete(pool, lineage)
        else:
            why = ""
        if not lineage.restarting:  # else it is tried when it has ended
            self._attempted(lineage, why)

    async def _replace(self, pool: Any, lineage: Lineage) -> str:
        """Have it recovered; why that has failed."""
        found, lineage.began = lineage.subpool, time.monotonic()
        failed: list[tuple[Any, BaseException]] = []
        try:
            error = await self._recovered(pool, lineage, failed)
        except asyncio.CancelledError:
            # By a hand-over, which may be refused and leave it here.
            if self._keeper.has(lineage) and not lineage.has_ended:
                self._conclude(lineage, failed)
            raise
        why = f"its recovery failed: {error[:500] or 'nothing took its place'}"
        if self._is_lost(lineage):
            if lineage.subpool is not found:
                # It is recovered in its turn.
                return "what took its place has ended, too"
            if not lineage.given_up:
                self._plan(lineage, why, again=True)
            return why
        if not self._keeper.has(lineage):
            self._keeper.change(lineage, State.DEAD, why)
            self.settle(lineage)
            return why
        if error and config.current().supervise == "act":
            known = {id(message) for message, _ in failed}
            absent = await self._absent(pool, lineage)
            failed += [each for each in absent if id(each[0]) not in known]
        self._conclude(lineage, failed)
        return lineage.incomplete

    def _conclude(self, lineage: Lineage, failed: list[tuple[Any, BaseException]]) -> None:
        """It lives again, with all its actors but those whose creation has failed."""
        if lineage.given_up:  # meanwhile: it is about to end
            self.settle(lineage)
            return
        acts = config.current().supervise == "act"
        lineage.missing = tuple(message for message, _ in failed) if acts else ()
        lineage.ready, lineage.incomplete = time.monotonic(), ""
        if lineage.missing:
            lineage.incomplete = _not_created(*failed[0], len(failed) - 1)
            if lineage.is_left_alone:
                self._keeper.change(lineage, State.PAUSED, lineage.incomplete)
            else:
                self._keeper.change(lineage, State.UNHEALTHY, lineage.incomplete)
                self._plan(lineage, lineage.incomplete, again=True)
        else:
            lineage.by_hand = False
            state = State.PAUSED if lineage.paused else State.HEALTHY
            self._keeper.change(lineage, state)
        self.settle(lineage)

    async def _complete(self, pool: Any, lineage: Lineage) -> str:
        """Create the actors once more that could not be created; why that has failed."""
        failed = []
        for message in lineage.missing:
            address, uid = lineage.address, message.actor_id
            ref = create_actor_ref(address, uid)
            if lineage.is_left_alone or not _is_wanted(pool, message, ref):
                continue
            try:
                # xoscar keeps one whose __post_create__ has failed.
                if await _is_there(pool, address, ref):
                    await pool.call(address, DestroyActorMessage(new_message_id(), ref, True))
                reply = await pool.call(address, message)
                if isinstance(reply, ErrorMessage):
                    failed.append((message, reply.error))
            except Exception as error:
                failed.append((message, error))
        if lineage.has_ended:
            return "it has died"
        if lineage.is_left_alone:
            return lineage.reason
        self._conclude(lineage, failed)
        return lineage.incomplete

    async def _absent(self, pool: Any, lineage: Lineage) -> list[tuple[Any, BaseException]]:
        """Those that were not created at all, since the recovery has failed before."""
        if not _creates_as_xoscar(pool):
            return []  # what a program of its own creates is not for us to judge
        found: list[tuple[Any, BaseException]] = []
        for ref, (_, message) in list(pool._allocated_actors.get(lineage.address, {}).items()):
            if ref is None or lineage.has_ended:
                continue
            try:
                if not await _is_there(pool, lineage.address, ref):
                    found.append((message, RuntimeError("it was not reached")))
            except Exception as error:
                found.append((message, error))
        return found

    async def _recovered(
        self, pool: Any, lineage: Lineage, failed: list[tuple[Any, BaseException]]
    ) -> str:
        """Let the pool recover it; the error that came of it, and of which actors."""
        address = lineage.address

        async def recover() -> None:
            _recovering.set(lineage)
            _failed.set(failed)
            starting.born.set(partial(self._starting, lineage, lineage.subpool))
            await pool.recover_sub_pool(address)
            if pool._on_process_recover is not None:
                pool._on_process_recover(pool, address)

        # A task of its own, so that it can be given up without the monitor.
        self._work = work = spawn(self._loop, recover())
        work.add_done_callback(lambda _: work.cancelled() or work.exception())
        try:
            await _ended(work)
        finally:
            self._work = None
            for new in self._new:
                recreating.end(new)
            self._new.clear()
        self._keeper.follow()
        if work.cancelled():
            return "it was given up"
        error = work.exception()
        if error is None:
            return ""
        why = logs.one_line(error)
        # xoscar is silent about this one, which comes while the interpreter ends.
        if "cannot schedule new futures" not in why:
            logger.error("Monitor sub pool %s failed", address, exc_info=error)
        return why

    def _starting(self, lineage: Lineage, found: Subpool | None, new: Subpool) -> None:
        # What a recovery has left running may still start processes when it has ended.
        if lineage.subpool is found and lineage is self.at_work and self._work is not None:
            self._new.append(new)
            recreating.begin(new)
            self._keeper.change(lineage, State.STARTING, f"process {new.pid} is starting")

    # -- who waits -------------------------------------------------------------------------------

    async def wait(self, lineage: Lineage) -> bool:
        """Wait until it is not to be waited for any more; whether it can be used."""
        while self._is_coming(lineage):
            waiter = self._loop.create_future()
            self._waiting.setdefault(lineage, []).append(waiter)
            try:
                await waiter
            finally:
                waiting = self._waiting.get(lineage, [])
                if waiter in waiting:
                    waiting.remove(waiter)
            if self.retired:
                break
        return self._keeper.has(lineage) and not lineage.has_ended

    def _is_coming(self, lineage: Lineage) -> bool:
        pool = self._keeper.pool()
        if pool is None or pool.stopped or not pool._auto_recover or self.retired:
            return False
        return lineage.state in COMING or (lineage.restarting and self._keeper.has(lineage))

    def settle(self, lineage: Lineage) -> None:
        """There may be nothing to wait for any more."""
        for waiter in self._waiting.pop(lineage, []):
            if not waiter.done():
                waiter.set_result(None)


def noted(original: Callable[..., Coroutine[Any, Any, Any]]) -> Callable[..., Any]:
    """For ``call`` of xoscar's pools: xoscar passes over actors that cannot be created again."""

    @functools.wraps(original)
    def call(self: Any, dest_address: str, message: Any) -> Coroutine[Any, Any, Any]:
        calling = original(self, dest_address, message)
        failed = _failed.get()
        if failed is None or not isinstance(message, CreateActorMessage):
            return calling
        return _noting(calling, message, failed)

    return call


async def _noting(
    calling: Coroutine[Any, Any, Any], message: Any, failed: list[tuple[Any, BaseException]]
) -> Any:
    reply = await calling
    if isinstance(reply, ErrorMessage):
        failed.append((message, reply.error))
    return reply


async def _is_there(pool: Any, address: str, ref: Any) -> bool:
    """Whether a sub-pool says that it has an actor."""
    reply = await pool.call(address, HasActorMessage(new_message_id(), ref))
    return getattr(reply, "result", None) is True


def _creates_as_xoscar(pool: Any) -> bool:
    """Whether it creates those actors again of which it knows, and no others."""
    own = getattr(pool.recover_sub_pool, "__func__", None)
    return pool._auto_recover == "actor" and own is MainActorPool.recover_sub_pool


def _is_wanted(pool: Any, message: Any, ref: Any) -> bool:
    """Whether the program has not destroyed the actor since, or made another one of that name."""
    if not _creates_as_xoscar(pool):
        return True  # what becomes of its actors is for the program to know
    known = pool._allocated_actors.get(ref.address, {}).get(ref)
    return known is not None and known[1] is message


def _not_created(message: Any, error: BaseException, more: int) -> str:
    name = deadlines.actor_name(message.actor_id)
    told = f"actor {name} was not created again: {type(error).__name__}: {logs.one_line(error)}"
    return f"{told[:500]}, and {more} more" if more else told[:500]


async def _ended(work: asyncio.Task[None]) -> None:
    """Wait until it has ended; cancelling this cancels it."""
    try:
        await asyncio.wait([work])
    except asyncio.CancelledError:
        work.cancel()
        # A process that was just starting is ended; a program's own recovery may not care.
        await asyncio.wait([work], timeout=GIVEN_UP)
        raise


def _joined(*told: str) -> str:
    return "; ".join(each for each in told if each)
