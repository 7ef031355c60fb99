"""Carrying out what operators ask of the sub-pools of one main pool."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

from .. import config, logs
from ..connection.deadlines import clear as clear_deadline
from ..periodic import Background
from . import draining, ending, recovery
from .events import journal
from .instructions import DRAIN, Applied, InstructionFailed, InstructionRefused, Ledger, Order
from .lineage import Lineage
from .state import State

logger = logging.getLogger("xoscar_idle")

OPERATOR = "by an operator"


class Keeper(recovery.Keeper, Protocol):
    """Who keeps the lineages of a main pool, and their recovery."""

    @property
    def loop(self) -> asyncio.AbstractEventLoop: ...
    @property
    def recovery(self) -> recovery.Recovery: ...

    def lineage_of(self, address: str) -> Lineage | None:
        """That which has, or had, a sub-pool at that address."""


class Operator:
    """Accepts instructions in any thread, and carries them out on the loop of the main pool."""

    def __init__(self, keeper: Keeper) -> None:
        self._keeper = keeper
        self._recovery = keeper.recovery
        self._ledger = Ledger()
        self._lock = threading.Lock()
        self._background = Background()

    def of(self, request_id: str) -> Applied | None:
        """What became of the request of that id; None: it is not known."""
        return self._ledger.of(request_id)

    def accept(self, order: Order) -> Applied:
        """Accept it, and carry it out in the background; once per request id.

        Raises
        ------
        InstructionRefused
            It cannot be carried out; the text says why.
        """
        with self._lock:
            if (known := self._ledger.known(order)) is not None:
                return known
            lineage = self._possible(order)
            applied = self._ledger.begin(order, lineage.number, lineage.incarnation)
        what = (order.instruction, order.address, order.request_id)
        logger.info("%s of pool %s is asked for (request_id %s)", *what)
        _note(lineage, applied)
        try:
            self._keeper.loop.call_soon_threadsafe(self._start, order, lineage, applied)
        except RuntimeError:  # it is closed
            applied.end("failed", "the loop of its main pool has ended")
        return applied

    def _possible(self, order: Order) -> Lineage:
        """The lineage that it is for."""
        pool, lineage = self._keeper.pool(), self._keeper.lineage_of(order.address)
        if pool is None or lineage is None:
            raise InstructionRefused(f"there is no sub-pool {order.address}", 404)
        here = f"pool {lineage.address}"
        is_here = self._keeper.has(lineage) or lineage is self._recovery.at_work
        if pool.stopped or lineage.state is State.STOPPING or not is_here:
            raise InstructionRefused(f"{here} is {lineage.state.value}: {lineage.reason}")
        if order.expect_incarnation not in (None, lineage.incarnation):
            raise InstructionRefused(
                f"{here} is in its incarnation {lineage.incarnation}, "
                f"not {order.expect_incarnation}"
            )
        if config.current().supervise != "act":
            raise InstructionRefused(f"{here} is not acted on: XOSCAR_SUPERVISE=act is not set")
        if not self._recovery.monitors:
            raise InstructionRefused(f"{here} is watched by xoscar's own monitor, not by this one")
        if not pool._auto_recover and order.instruction not in ("pause", "resume", "give_up"):
            raise InstructionRefused(
                f"{here} would not come back: its main pool was made with auto_recover=False"
            )
        return lineage

    def _start(self, order: Order, lineage: Lineage, applied: Applied) -> None:
        self._background.spawn(self._keeper.loop, self._carry_out(order, lineage, applied))

    async def _carry_out(self, order: Order, lineage: Lineage, applied: Applied) -> None:
        work: dict[str, Callable[[Order, Lineage], Coroutine[Any, Any, str]]] = {
            "pause": self._pause,
            "resume": self._resume,
            "restart": self._restart,
            "retry": self._retry,
            "give_up": self._give_up,
            "reset": self._reset,
        }
        clear_deadline()  # that of whoever asks is for the answer
        try:
            done = await work[order.instruction](order, lineage)
            if applied.ended is None:
                applied.address, applied.incarnation = lineage.address, lineage.incarnation
            applied.end("succeeded", done)
        except asyncio.CancelledError:
            applied.end("failed", "its main pool has ended")
            raise
        except InstructionFailed as error:
            applied.end("failed", str(error))
        except Exception as error:
            logger.exception("%s of pool %s failed", order.instruction, order.address)
            applied.end("failed", f"{type(error).__name__}: {logs.one_line(error)}")
        what = (order.instruction, order.address, order.request_id)
        became = (applied.status, applied.reason)
        logger.info("%s of pool %s (request_id %s) has %s: %s", *what, *became)
        _note(lineage, applied)

    # -- the instructions ------------------------------------------------------------------------

    async def _pause(self, order: Order, lineage: Lineage) -> str:
        if lineage.paused:
            return "it was paused already"
        lineage.paused = True
        if lineage.has_ended and lineage is not self._recovery.at_work:
            self._recovery.leave(lineage, State.PAUSED, f"{OPERATOR}; {lineage.reason}")
        elif not lineage.has_ended:
            self._recovery.drop(lineage)
            self._keeper.change(lineage, State.PAUSED, OPERATOR)
        return "it is left alone"

    async def _resume(self, order: Order, lineage: Lineage) -> str:
        if not lineage.paused:
            return "it was not paused"
        lineage.paused = False
        if lineage.has_ended:
            if lineage.given_up or not self._keeper.pool()._auto_recover:
                self._keeper.change(lineage, State.DEAD, lineage.reason)
            else:
                self._recovery.begin(lineage)
        elif lineage is not self._recovery.at_work:
            state = State.UNHEALTHY if lineage.incomplete else State.HEALTHY
            self._keeper.change(lineage, state, lineage.incomplete)
            self._recovery.begin(lineage)
        return "it is supervised again"

    async def _restart(self, order: Order, lineage: Lineage) -> str:
        lineage.given_up = False
        if lineage.has_ended:
            return await self._retry(order, lineage)
        if lineage is self._recovery.at_work:
            raise InstructionFailed("it is being recovered just now")
        attempt = self._recovery.attempt(lineage)
        lineage.restarting = lineage.by_hand = True
        try:
            left = await self._ended(lineage, order, f"it was restarted {OPERATOR}")
            why = await attempt
        finally:
            lineage.restarting = False
            self._recovery.settle(lineage)
        return _verified(lineage, why, f"it has been replaced{left}")

    async def _retry(self, order: Order, lineage: Lineage) -> str:
        lineage.given_up = False
        if not lineage.has_ended and not lineage.incomplete:
            return "it was not down"
        attempt = self._recovery.attempt(lineage)
        self._recovery.begin(lineage)
        return _verified(lineage, await attempt, "it has been recovered")

    async def _give_up(self, order: Order, lineage: Lineage) -> str:
        lineage.given_up = True
        self._recovery.leave(lineage, State.DEAD, f"it was given up {OPERATOR}")
        if lineage.has_ended:
            return "it is not recovered any more"
        left = await self._ended(lineage, order, f"it was given up {OPERATOR}")
        return f"it has ended, and is not recovered{left}"

    async def _reset(self, order: Order, lineage: Lineage) -> str:
        lineage.budget.forget()
        done = await self._retry(order, lineage)
        return f"its failures are forgotten; {done}"

    async def _ended(self, lineage: Lineage, order: Order, why: str) -> str:
        """Drain its process and end it; what is to be said of the drain."""
        found = lineage.subpool
        assert found is not None
        pool, patience = self._keeper.pool(), DRAIN if order.drain is None else order.drain
        drained = await draining.drain(pool, lineage.address, found, patience)
        found.drain_is_over = not drained
        left = "" if drained else draining.undone(found, patience)
        if not self._keeper.has(lineage):
            raise InstructionFailed("its main pool has handed it over, or removed it")
        if not found.death.told:  # else another one may answer at its address
            await ending.end(pool, lineage.address, found, why)
        await found.death.wait(ending.BOUND)
        if not found.death.told:
            raise InstructionFailed(f"process {found.pid} has not ended in {ending.BOUND:g} s")
        return left


def _note(lineage: Lineage, applied: Applied) -> None:
    told = f"{applied.instruction} (request_id {applied.request_id})"
    reason = f": {applied.reason}" if applied.reason else ""
    journal.happened("instruction", lineage, applied.status, f"{told}{reason}")


def _verified(lineage: Lineage, why: str, done: str) -> str:
    if why or lineage.has_ended:
        raise InstructionFailed(why or lineage.reason or "it has died again")
    return done
