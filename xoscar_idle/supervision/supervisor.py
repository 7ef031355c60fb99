"""The sub-pools of one main pool: who they are, what became of them, and how they are."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import itertools
import logging
import math
import os
import threading
import time
import weakref
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

from .. import config, side_thread
from ..locks import process_lock
from . import health, leaving, subpool, watchdog
from .events import journal
from .health import Verdict, judge
from .lineage import LIVING, End, Lineage
from .operating import Operator
from .pulse import Pulse
from .record import CrashRecord
from .recovery import RETRY, Recovery
from .sentinels import sentinels
from .state import SERVING, PoolInfo, State
from .subpool import Subpool

logger = logging.getLogger("xoscar_idle")

T = TypeVar("T")

REMEMBERED = 100
"""Ends of processes that a main pool can still tell of."""

MEMORY_EVERY = 2.0
"""Seconds between two looks at what the kernel counts of memory."""

NO_DEATH = 0.1
"""Seconds after which the end of a process must have begun, if it is why a connection was lost."""

SLACK = 1.0
"""Seconds by which a connection may seem to be younger than it is: the question takes its time."""

AT_EXIT = 1.0
"""Seconds for which the end of the interpreter waits for files to be removed."""

START_SEEN = 0.25
"""Seconds within which xoscar sees that a process has started, for which it looks every 0.1 s."""


class Supervisor:
    """Belongs to the event loop of its main pool; what only tells belongs to any thread."""

    def __init__(self, pool: Any) -> None:
        self._pool = weakref.ref(pool)
        self.loop = asyncio.get_running_loop()
        self.recovery = Recovery(self)
        self.operator = Operator(self)
        self._thread = threading.get_ident()
        self.pulse = Pulse(self.loop, self._thread)
        self._lineages: dict[str, Lineage] = {}  # by address
        self._leaving: dict[str, Lineage] = {}  # those removed whose processes live
        self._lock = threading.RLock()  # for states, which the side thread changes, too
        self._ends: deque[End] = deque(maxlen=REMEMBERED)
        self._looked = self._awake = self._looked_at_memory = 0.0

    # -- who they are ----------------------------------------------------------------------------

    def follow(self) -> None:
        """The main pool has other sub-pools than before, or may have."""
        pool = self._pool()
        if pool is None or self.recovery.retired:
            return
        if threading.get_ident() != self._thread:
            self.loop.call_soon_threadsafe(self.follow)
            return
        processes = {
            address: process
            for address, process in list(pool.sub_processes.items())
            if hasattr(process, "pid")  # else it is none, as in xoscar's pools for tests
        }
        for address, lineage in list(self._lineages.items()):
            if address not in processes:
                self._removed(pool, lineage)
        for address, process in processes.items():
            known = self._lineages.get(address)
            if known is None or known.subpool is None or known.subpool.process is not process:
                self._attached(pool, address, process)

    def _attached(self, pool: Any, address: str, process: Any) -> None:
        lineage = self._lineages.get(address) or self.recovery.replaced_here()
        if lineage is None or not lineage.has_ended:
            lineage = Lineage(next(_numbers), address)
        lineage.address = address
        lineage.label = _label(pool, address)
        lineage.incarnation += 1
        lineage.subpool = found = subpool.of(process)
        # The first of a lineage may have been there for long before, and others have connected.
        before = START_SEEN if lineage.incarnation > 1 else found.uptime + SLACK
        lineage.accepts = time.monotonic() - before
        self._lineages[address] = lineage
        lineage.incomplete, lineage.ill_since = "", None
        if lineage is self.recovery.at_work:  # its actors are still to come
            self.change(lineage, State.STARTING, "it is being recovered")
        else:
            lineage.given_up = False  # whoever has made it wants it
            lineage.ready = time.monotonic()
            lineage.began = lineage.ready - found.uptime
            self.change(lineage, State.PAUSED if lineage.paused else State.HEALTHY)
            self.recovery.settle(lineage)
        found.watch(partial(self._ended, lineage))

    def _removed(self, pool: Any, lineage: Lineage) -> None:
        """The main pool has let go of it: it is stopped, handed over, or about to be replaced."""
        del self._lineages[lineage.address]
        found = lineage.subpool
        if lineage is not self.recovery.at_work:
            if lineage.has_ended:
                self.change(lineage, State.DEAD, "it was removed from its main pool")
            self.recovery.removed(lineage)
        if found is None or found.death.told:
            return
        if getattr(pool, "_handoff", None):
            found.leave()
        else:
            found.requested = found.requested or "it was removed from its main pool"
            self._leaving[lineage.address] = lineage
            self.change(lineage, State.STOPPING, found.requested)

    # -- what became of them ---------------------------------------------------------------------

    def _ended(self, lineage: Lineage, found: Subpool) -> None:
        """A process has ended."""
        pool = self._pool()
        if pool is None or found.death.told:
            return
        requested = found.requested or ("its main pool was stopped" if pool.stopped else "")
        record = CrashRecord(lineage.address, found.pid, time.time())
        try:
            record = self._tell(pool, lineage, found, requested)
        except Exception:  # what is to be done is done all the same
            with contextlib.suppress(Exception):  # it may be the program's logging that fails
                _unable("the end of pool %s could not be told", lineage.address)
        lineage.is_ready_since(found.created_last())
        self._leaving = {a: each for a, each in self._leaving.items() if each is not lineage}
        self._ends.append(End(record, requested, lineage, lineage.accepts, found.drained))
        is_current = self.has(lineage) and lineage.subpool is found
        if is_current and pool._auto_recover and not pool.stopped and not lineage.given_up:
            self.change(lineage, State.RECOVERING, requested)
        else:
            dead = lineage.given_up or not requested
            self.change(lineage, State.DEAD if dead else State.STOPPING, requested)
        found.release()  # tells who waits
        if is_current:
            self.recovery.lost(lineage)

    def _tell(self, pool: Any, lineage: Lineage, found: Subpool, requested: str) -> CrashRecord:
        record = found.record(
            address=lineage.address,
            label=lineage.label,
            lineage=lineage.number,
            incarnation=lineage.incarnation,
            main_address=pool.external_address,
            main_pid=os.getpid(),
        )
        # What the kernel has counted by now is of this end: it is not evidence for another one.
        for other in list(self._lineages.values()):
            if other.subpool is not None and other.subpool is not found:
                other.subpool.look_at_memory()
        if not requested:
            lineage.last = record = replace(record, record=subpool.keep(record))
            count(record)
            journal.happened("crash", lineage, lineage.state.value, record.line())
            logger.warning("%s", record.line())
        return record

    # -- what is done about it -------------------------------------------------------------------

    async def run(self) -> None:
        """Do what xoscar's monitor does; it is the main pool's task for that."""
        pool = self._pool()
        if pool is None:
            return
        self.follow()
        try:
            running = self.recovery.run(pool)
            for lineage in list(self._lineages.values()):
                self.recovery.take_up(lineage)
            await running
        except asyncio.CancelledError:
            return  # as xoscar's
        if self.recovery.retired and not pool.stopped:
            pool._monitor_task = None
            await pool.start_monitor()

    async def recovered(
        self, address: str, timeout: float | None = None, held: int = 0, asker: str = ""
    ) -> str | None:
        """Wait until the sub-pool at ``address`` can be used; where, or None: nowhere.

        Parameters
        ----------
        timeout
            Seconds for which to wait; then it raises ``asyncio.TimeoutError``. None: no limit.
        held
            How many calls wait for it where that is asked.
        asker
            The address of the sub-pool that asks, if one does.
        """
        lineage = self.lineage_of(address)
        if lineage is None or lineage.subpool is None:
            return None
        if self.recovery.is_held_up_by(asker, lineage):
            return None
        if not lineage.restarting:
            # One that has just hung up on whoever asks may not have ended yet.
            await lineage.subpool.death.wait(RETRY)
        lineage.held += held
        try:
            there = await asyncio.wait_for(self.recovery.wait(lineage), timeout)
        finally:
            lineage.held -= held
        return lineage.address if there else None

    def on_its_loop(self, work: Callable[[], Coroutine[Any, Any, T]]) -> Awaitable[T]:
        """What is to be awaited for ``work`` to be done on the loop of the main pool."""
        if asyncio.get_running_loop() is self.loop:
            return work()
        return asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work(), self.loop))

    def lineage_of(self, address: str) -> Lineage | None:
        """That which has, or had, a sub-pool at that address."""
        lineage = self._lineages.get(address)
        if lineage is None and (end := self._last_end(address)) is not None:
            lineage = end.lineage
        return lineage

    def retire(self) -> None:
        """Leave all to xoscar's own monitor, after what is under way."""
        self.recovery.retire()
        for lineage in self._lineages.values():
            if lineage.subpool is not None:
                lineage.subpool.leave()

    # -- their states ----------------------------------------------------------------------------

    def change(self, lineage: Lineage, state: State, reason: str = "") -> None:
        """A lineage is in another state, or for another reason."""
        with self._lock:
            if changes := state is not lineage.state or not lineage.sequence:
                lineage.since = time.time()
            lineage.state, lineage.reason = state, reason
            if changes:
                lineage.sequence = journal.happened("state", lineage, state.value, reason)
        if state is State.DEGRADED and config.current().exit_on_degraded:
            _leave(lineage, reason)

    def look(self, now: float) -> None:
        """Look at those that live, and judge; in the side thread."""
        # A gap of this process may have been one of the whole machine: it is nobody's silence.
        if now - self._looked > 3 * health.BEAT:
            self._awake = now
        self._looked = now
        if at_memory := now - self._looked_at_memory >= MEMORY_EVERY:
            self._looked_at_memory = now
        hang_timeout = config.current().hang_timeout
        for lineage in list(self._lineages.values()):
            found = lineage.subpool
            if found is None or found.death.told:
                continue
            if at_memory:
                found.look_at_memory()
            seen, since = found.seen(now, self._awake), lineage.ill_since
            if since is not None:
                seen = replace(seen, unhealthy_for=now - max(since, self._awake))
            verdict = judge(seen, hang_timeout)
            with self._lock:
                if lineage.subpool is not found or lineage.state not in LIVING:
                    continue
                if verdict.silent:
                    found.ask_stacks()
                else:
                    found.forget_stacks()
                if verdict.state is State.UNHEALTHY:
                    lineage.ill_since = now if since is None else since
                else:
                    lineage.ill_since = None
                    if lineage.incomplete:
                        verdict = Verdict(State.UNHEALTHY, lineage.incomplete)
                self.change(lineage, verdict.state, verdict.reason)
            if verdict.hung:
                with contextlib.suppress(RuntimeError):  # its loop is closed
                    self.loop.call_soon_threadsafe(
                        self.recovery.hung, lineage, found, verdict.reason
                    )

    def forget(self) -> None:
        """Nobody looks any more: what was seen is of the past."""
        for lineage in list(self._lineages.values()):
            with self._lock:
                if lineage.state in LIVING:
                    self.change(lineage, State.HEALTHY)

    def pool(self) -> Any:
        """The main pool; None: it has gone."""
        return self._pool()

    def has(self, lineage: Lineage) -> bool:
        """Whether the main pool still has a process of it."""
        return self._lineages.get(lineage.address) is lineage

    def is_over(self) -> bool:
        """Whether its main pool has ended, and all that it had."""
        pool = self._pool()
        return pool is None or (
            pool.stopped and all(each.has_ended for each in list(self._lineages.values()))
        )

    def pools(self) -> list[PoolInfo]:
        """Its sub-pools now."""
        with self._lock:
            return [self._info(each) for each in self._listed()]

    def pools_down(self) -> list[PoolInfo]:
        """Those of them that are down; of the others nothing is read."""
        with self._lock:
            found = [each for each in self._listed() if each.state not in SERVING]
            return [info for each in found if (info := self._info(each)).is_down]

    def _listed(self) -> list[Lineage]:
        if self.is_over():
            return []
        found = list(self._lineages.values())
        work = self.recovery.at_work
        if work is not None and work not in found:  # a program's own recovery has removed it
            found.append(work)
        return found

    def address(self) -> str:
        """Of its main pool; empty: it has none yet, or has gone."""
        return getattr(self._pool(), "external_address", "")

    def last_crash(self, number: int) -> CrashRecord | None:
        """What is known of the last crash of the lineage of that number."""
        for each in list(self._lineages.values()):
            if each.number == number:
                return each.last
        return None

    def _info(self, lineage: Lineage) -> PoolInfo:
        found, living = lineage.subpool, not lineage.has_ended
        return PoolInfo(
            address=lineage.address,
            pid=0 if found is None else found.pid,
            lineage=lineage.number,
            incarnation=lineage.incarnation,
            state=lineage.state.value,
            since=lineage.since,
            uptime=found.uptime if found and living else 0.0,
            restarts=lineage.incarnation - 1,
            label=lineage.label,
            reason=lineage.reason,
            doing=found.doing() if found and lineage.state in LIVING[1:] else "",
            last_failure=lineage.last.line() if lineage.last else None,
            restart_at=_unix(lineage.try_at),
            held=lineage.held,
            sequence=lineage.sequence,
            **(found.told(time.monotonic()) if found and living else {}),
        )

    def knows(self, address: str) -> bool:
        """Whether there is a sub-pool at that address, or one that is just leaving."""
        return not self.is_over() and (address in self._lineages or address in self._leaving)

    def last_end(self, address: str) -> float:
        """When the last sub-pool at that address ended, in monotonic time; 0: there was none."""
        end = self._last_end(address)
        return 0.0 if end is None else end.at

    async def explain(self, address: str, open_for: float, patience: float) -> End | None:
        """How the process ended that somebody had a connection to; None: it has not.

        Parameters
        ----------
        address
            Of the sub-pool.
        open_for
            Seconds for which the connection has been open: no older end ended it.
        patience
            Seconds for which an end that has begun is waited for.
        """
        begun = time.monotonic()
        while (end := self._end_since(address, begun - open_for)) is None:
            lineage = self._lineages.get(address) or self._leaving.get(address)
            found = None if lineage is None else lineage.subpool
            if lineage is not None and found is not None and found.requested:
                # It hangs up, and goes on with what it does at its end.
                record = CrashRecord(address, found.pid, time.time())
                return End(record, found.requested, lineage, lineage.accepts, found.drained)
            waited = time.monotonic() - begun
            # A process closes its connections before it can be seen to have ended.
            if found is None or found.death.told or waited >= patience:
                return None
            if waited >= NO_DEATH and not found.is_ending():
                return None
            await found.death.wait(min(NO_DEATH, patience - waited))
        return end

    def _end_since(self, address: str, opened: float) -> End | None:
        """The end of the process to which connections were that were opened at that time."""
        lineage = self._lineages.get(address)
        if lineage is not None and not lineage.has_ended and opened >= lineage.accepts:
            return None  # its predecessor's story is not its own
        end = self._last_end(address, opened)
        return end if end is not None and end.at >= opened - SLACK else None

    def _last_end(self, address: str, opened: float = math.inf) -> End | None:
        for end in reversed(list(self._ends)):
            if end.record.address == address and end.accepted <= opened:
                return end
        return None

    def info(self, address: str) -> dict[str, Any] | None:
        """The sub-pool at ``address`` now, in values that JSON has; None: there is none."""
        with self._lock:
            lineage = self._lineages.get(address)
            return None if lineage is None else vars(self._info(lineage))

    def down(self, address: str) -> dict[str, Any] | None:
        """Why a sub-pool refuses connections, in values that JSON has; None: it should not."""
        with self._lock:
            lineage = self._lineages.get(address) or self._leaving.get(address)
            if lineage is not None:
                return None if lineage.state in LIVING else vars(self._info(lineage))
            if (end := self._last_end(address)) is None:
                return None
            told = {**vars(self._info(end.lineage)), "reason": end.requested}
            if end.lineage.address != address and self._lineages.get(end.lineage.address):
                told["reason"] = (
                    f"it was replaced by pool {end.lineage.address}, "
                    f"which is {end.lineage.state.value}"
                )
            told["last_failure"] = None if end.requested else end.record.line()
            return told


def _unix(at: float | None) -> float | None:
    """The Unix time of a monotonic one, to milliseconds."""
    return None if at is None else round(time.time() + at - time.monotonic(), 3)


def _label(pool: Any, address: str) -> str | None:
    try:
        conf = pool._config.get_pool_config(pool._config.get_process_index(address))
    except ValueError:
        return None
    label: str | None = conf["label"]
    return label


# -- those of this process -------------------------------------------------------------------------

_lock = process_lock()
_numbers = itertools.count(1)  # of lineages
_all: list[weakref.ref[Supervisor]] = []
crashes: Counter[str] = Counter()
"""Deaths so far of sub-pools of this process, by cause."""


def count(record: CrashRecord) -> None:
    """A sub-pool has crashed."""
    with _lock:
        crashes[record.cause] += 1


def supervise(pool: Any) -> Supervisor:
    """A supervisor for a main pool, on the running loop."""
    made = Supervisor(pool)
    with _lock:
        _all[:] = [each for each in _all if each() is not None]
        _all.append(weakref.ref(made))
    apply()
    for each in list(_followers):
        each()
    return made


def everywhere() -> list[Supervisor]:
    """All supervisors of this process whose main pools are there."""
    with _lock:
        return [
            found for each in _all if (found := each()) is not None and found.pool() is not None
        ]


def of(address: str) -> Supervisor | None:
    """That of a sub-pool, be it of the past."""
    found = everywhere()
    for each in found:
        if each.knows(address):
            return each
    last = max(found, key=lambda each: each.last_end(address), default=None)
    return last if last is not None and last.last_end(address) else None


_told = False


def _unable(message: str, address: str) -> None:
    global _told
    if not _told:
        _told = True
        logger.warning(message, address, exc_info=True)


_followers: list[Callable[[], None]] = []


def tell_of_main_pools(follower: Callable[[], None]) -> None:
    """Call ``follower`` when this process has got a main pool, on its loop."""
    _followers.append(follower)


def tell_no_more(follower: Callable[[], None]) -> None:
    """Call it no more."""
    if follower in _followers:
        _followers.remove(follower)


def running() -> list[Supervisor]:
    """Those of main pools that have not ended."""
    return [each for each in everywhere() if not each.is_over()]


def apply() -> None:
    """The settings, or who is to be looked at, may have changed."""
    if config.current().supervise != "off" and everywhere():
        sentinels.open()
        journal.listen(_hasten)
        side_thread.every(health.BEAT, _look)
    else:
        journal.ignore(_hasten)
        side_thread.never(_look)
        sentinels.close()
        for each in everywhere():
            each.forget()
    if not config.current().watchdog:
        watchdog.stop()
    elif everywhere():
        watchdog.start(_loops)


def _loops() -> list[asyncio.AbstractEventLoop]:
    return [each.loop for each in running()]


def _hasten() -> None:
    side_thread.soon(_look)


def _look() -> None:
    supervisors = running()
    for each in supervisors:
        each.look(time.monotonic())
    _tell_down()
    if not supervisors:
        journal.ignore(_hasten)
        side_thread.never(_look)
        if running():  # one that has come just now
            apply()


def _tell_down() -> None:
    sentinels.keep([(each.address(), info) for each in running() for info in each.pools_down()])


def _at_exit() -> None:
    """A program may end as soon as it has stopped its main pool: then nothing is down any more."""
    if not sentinels.is_idle:
        _tell_down()
        sentinels.settle(AT_EXIT)


atexit.register(_at_exit)


def _leave(lineage: Lineage, reason: str) -> None:
    pools = [(each.pool(), each.loop) for each in running()]
    leaving.leave(pools, f"pool {lineage.address} is degraded: {reason}", _tell_down)


def stop() -> None:
    """Leave all main pools to xoscar's own monitor."""
    journal.ignore(_hasten)
    side_thread.never(_look)
    for each in everywhere():
        try:
            each.loop.call_soon_threadsafe(each.retire)
        except RuntimeError:  # it is closed
            continue
    _all.clear()
    watchdog.stop()
    sentinels.close()


def after_fork() -> None:
    """In a forked child: the sub-pools are the parent's."""
    watchdog.after_fork()
    _all.clear()
    crashes.clear()
    journal.clear()
    sentinels.forget()
