"""What is done about the sub-pools of one main pool that have died, one after the other.

It takes the place of xoscar's monitor, which looks at one process after the other every half
second, at none while it recovers one, and at each for ever. What is done about a death is what
xoscar does, in its order, through ``pool.recover_sub_pool`` as it stands on the instance; with
``XOSCAR_SUPERVISE=act`` within a budget.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import random
import time
from collections import deque
from collections.abc import Callable
from contextvars import ContextVar
from functools import partial
from typing import Any, Protocol

from xoscar.backends.indigen.pool import MainActorPool
from xoscar.backends.message import ErrorMessage, HasActorMessage, new_message_id

from .. import config, logs
from ..connection.deadlines import clear as clear_deadline
from ..periodic import spawn
from . import subpool
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

_recovering: ContextVar[Lineage | None] = ContextVar("xoscar_idle_recovering", default=None)
"""What is attached in this context replaces a process of that lineage."""


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

    # -- failures --------------------------------------------------------------------------------

    def lost(self, lineage: Lineage) -> None:
        """Its process has died: tell the program, and plan what is to follow."""
        if self._announce(lineage, partial(self.lost, lineage)):
            self._plan(lineage)

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
            found.kill(why)

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

    def _plan(self, lineage: Lineage, reason: str = "", again: bool = False) -> None:
        """It has failed: decide when it is tried, and whether callers are to wait for that."""
        begin = partial(self._begin, lineage, again)
        reason = reason or lineage.reason
        if config.current().supervise != "act":
            self._keeper.change(lineage, State.RECOVERING, reason)
            self._at(lineage, self._loop.time() + (RETRY if again else 0.0), begin)
            return
        now = time.monotonic()
        plan = self._plan_of(lineage, now, again)
        lineage.by_hand = False
        if lineage.paused:
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

    def _plan_of(self, lineage: Lineage, now: float, again: bool) -> Plan:
        found, chosen = lineage.subpool, config.current()
        limits = Limits.of(chosen.restart_limit, chosen.restart_cooldown)
        chance = random.random()
        if lineage.by_hand:
            return lineage.budget.plan(now, limits, chance=chance)
        if not again and found is not None and found.requested:
            return Plan(now)  # it was asked to end, and to come back
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

    def leave(self, lineage: Lineage, state: State, reason: str) -> None:
        """Recover it no more, and end what is under way."""
        self._forget_timer(lineage)
        lineage.try_at = None
        with contextlib.suppress(ValueError):
            self._due.remove(lineage)
        if lineage is self.at_work and self._work is not None:
            self._work.cancel()
        self._keeper.change(lineage, state, reason)
        self.settle(lineage)

    # -- xoscar's monitor ------------------------------------------------------------------------

    async def run(self, pool: Any) -> None:
        """Do what xoscar's monitor does, until the pool stops or this is retired."""
        clear_deadline()
        self.monitors = True
        try:
            while not pool.stopped and not self.retired:
                while self._due:
                    await asyncio.sleep(TELL_FIRST)
                    if self._due:
                        await self._recover(pool, self._due.popleft())
                self._woken.clear()
                await self._woken.wait()
        finally:
            self.monitors = False
            self._due.clear()
            for lineage in list(self._timers):
                self._forget_timer(lineage)
            if self.retired or pool.stopped:
                for lineage in list(self._waiting):
                    self.settle(lineage)

    def retire(self) -> None:
        """Leave all to xoscar's own monitor, after what is under way."""
        self.retired = True
        self._woken.set()
        if not self.monitors:
            for lineage in list(self._waiting):
                self.settle(lineage)

    async def _recover(self, pool: Any, lineage: Lineage) -> None:
        incomplete = bool(lineage.incomplete) and not lineage.has_ended
        if not incomplete and not self._is_lost(lineage):
            return
        self.at_work, found = lineage, lineage.subpool
        if not incomplete:
            lineage.began = time.monotonic()
        try:
            why = "" if incomplete else await self._recovered(pool, lineage)
            if not (self._is_lost(lineage) and lineage.subpool is found):
                why = await self._missing(pool, lineage)
        finally:
            self.at_work = None
        if self._is_lost(lineage):
            if lineage.subpool is found and lineage.state is not State.DEAD:
                why = f"its recovery failed: {why[:500] or 'nothing took its place'}"
                self._plan(lineage, why, again=True)
            return  # what took its place has ended, too, and is to be recovered in its turn
        if not self._keeper.has(lineage):
            why = why[:500] or "nothing took its place"
            self._keeper.change(lineage, State.DEAD, f"its recovery failed: {why}")
            self.settle(lineage)
            return
        lineage.ready, lineage.incomplete = time.monotonic(), why[:500]
        if why:
            self._keeper.change(lineage, State.UNHEALTHY, lineage.incomplete)
            self._plan(lineage, lineage.incomplete, again=True)
        else:
            lineage.by_hand = False
            state = State.PAUSED if lineage.paused else State.HEALTHY
            self._keeper.change(lineage, state)
        self.settle(lineage)

    async def _recovered(self, pool: Any, lineage: Lineage) -> str:
        """Let the pool recover it; the error that came of it."""
        address = lineage.address

        async def recover() -> None:
            _recovering.set(lineage)
            subpool.born.set(partial(self._starting, lineage, lineage.subpool))
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
        if lineage.subpool is found:
            self._keeper.change(lineage, State.STARTING, f"process {new.pid} is starting")

    async def _missing(self, pool: Any, lineage: Lineage) -> str:
        """Which of its actors xoscar could not create again, and why; empty: none, or unknown."""
        # xoscar passes over the error of a constructor. What a program of its own does instead is
        # not for us to judge.
        if (
            config.current().supervise != "act"
            or pool._auto_recover != "actor"
            or not self._keeper.has(lineage)
            or getattr(pool.recover_sub_pool, "__func__", None)
            is not MainActorPool.recover_sub_pool
        ):
            return ""
        address = lineage.address
        for ref, (_, message) in list(pool._allocated_actors.get(address, {}).items()):
            if ref is None or lineage.has_ended:
                continue
            name = logs.one_line(ref.uid.decode(errors="backslashreplace"))
            try:
                there = await pool.call(address, HasActorMessage(new_message_id(), ref))
                if getattr(there, "result", None) is True:
                    continue
                reply = await pool.call(address, message)
                error = reply.error if isinstance(reply, ErrorMessage) else None
            except Exception as failure:
                error = failure
            if error is not None:
                return f"actor {name} was not created again: {logs.one_line(error)}"
        return ""

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
        return lineage.state in COMING or lineage.restarting

    def settle(self, lineage: Lineage) -> None:
        """There may be nothing to wait for any more."""
        for waiter in self._waiting.pop(lineage, []):
            if not waiter.done():
                waiter.set_result(None)


async def _ended(work: asyncio.Task[None]) -> None:
    """Wait until it has ended; cancelling this cancels it."""
    try:
        await asyncio.wait([work])
    except asyncio.CancelledError:
        work.cancel()
        raise


def _joined(*told: str) -> str:
    return "; ".join(each for each in told if each)
