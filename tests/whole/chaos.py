"""Chaos: calls on real pools while their processes are killed, stopped, added and removed.

``python -m tests.whole.chaos [SECONDS|enough [SEED...]]``: the seeds share the seconds, and without
any each minute has its own; ``enough``: each goes on until enough of everything has happened.
Threads, loops and forked children come and go, connections close after 50 ms. Each call returns
the right answer or raises what xoscar raises when a process is gone; at the end nothing is left
behind. A seed decides who does what, and for how long; when the kernel lets it happen it does not.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import json
import math
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from typing import Any

import numpy as np
import psutil
import uvloop
import xoscar as xo
from xoscar.errors import ActorNotExist, ServerClosed

import xoscar_idle
from xoscar_idle.connection import streams

from ..support import leaks
from ..support.endpoints import ELSEWHERE
from ..support.environment import environment
from ..support.hosting import Worker, pools, sockets, worker
from ..support.processes import line, started, tell
from ..support.waiting import BOUND, eventually_here

IDLE_TIMEOUT = 0.05
CALLERS = 12
SUB_POOLS = 3

GONE = (ServerClosed, OSError, ActorNotExist)
"""What xoscar raises when a process is gone, or is there again without its actors."""

DEADLINE = 0.05

ENOUGH = {
    **dict.fromkeys(("SIGKILL", "SIGSTOP"), 3),
    **dict.fromkeys(("sub-pool appended", "forked child ended"), 2),
    **dict.fromkeys(("thread and loop ended", "thread ended, loop just closed"), 1),
    **{
        f"call {kind} answered": 20
        for kind in ("echo", "sleep", "visit", "generate", "tell", "cancelled", "in_time", "copy")
    },
    "connections closed: idle": 20,
}
"""What must have happened, and how often, where no seconds are given."""

ENOUGH_BOUND = 4 * BOUND
"""Seconds for it, on a machine however busy."""


class Violation(Exception):
    """Something that must not happen has happened."""


class Tally:
    """What has happened, and how often; from all threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.counts: Counter[str] = Counter()
        self.violations: list[str] = []

    def add(self, what: str, n: int = 1) -> None:
        with self._lock:
            self.counts[what] += n

    def merge(self, counts: Mapping[str, int], violations: list[str]) -> None:
        """What has happened in a child."""
        with self._lock:
            self.counts.update(counts)
            self.violations += violations

    def violate(self, what: str) -> None:
        with self._lock:
            self.violations.append(what)
        print(f"chaos: {what}", file=sys.stderr, flush=True)


class Host:
    """A main pool with sub-pools and auto-recovery, in a process of its own."""

    def __init__(self) -> None:
        self._stack = contextlib.ExitStack()
        self._process = self._stack.enter_context(
            started(
                *(sys.executable, "-m", "tests.whole.chaos", "host"),
                stderr=subprocess.DEVNULL,  # recovery tells of each process that it finds dead
                env=environment(XOSCAR_IDLE_TIMEOUT=str(IDLE_TIMEOUT)),
            )
        )
        self.addresses: list[str] = self.ask("addresses")

    def ask(self, *words: str) -> Any:
        """Let it do something; what it answers."""
        tell(self._process, *words)
        return json.loads(line(self._process))

    def sub_pools(self) -> list[psutil.Process]:
        """The processes of its sub-pools."""
        found = []
        with contextlib.suppress(psutil.NoSuchProcess):  # the host is being replaced
            for child in psutil.Process(self._process.pid).children():
                with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
                    if "start_sub_pool" in child.cmdline():
                        found.append(child)
        return found

    def close(self) -> None:
        """End it, whatever state it is in."""
        self._stack.close()


async def _host() -> None:
    """The process of a :class:`Host`: commands come on stdin, answers go out as JSON."""
    pool = await xo.create_actor_pool(
        ELSEWHERE, n_process=SUB_POOLS, auto_recover="actor", subprocess_start_method="spawn"
    )

    async def populate(address: str) -> str:
        await xo.create_actor(Worker, uid="worker", address=address)
        return address

    for address in pool._config.get_external_addresses():
        await populate(address)
    while words := (await asyncio.to_thread(sys.stdin.readline)).split():
        answer: Any
        try:
            if words[0] == "addresses":
                answer = pool._config.get_external_addresses()
            elif words[0] == "append":
                answer = await populate(await pool.append_sub_pool())
            else:
                answer = await pool.remove_sub_pool(words[1], timeout=1.0, force=True)
        except (KeyError, *GONE) as error:  # the sub-pool was killed under it
            answer = f"{type(error).__name__}: {error}"
        print(json.dumps(answer), flush=True)


class Town:
    """All that is called, and what happens to it."""

    def __init__(self, seed: int, tally: Tally, steady: list[str], seconds: float | None) -> None:
        self.seed = seed
        self.tally = tally
        self.seconds = seconds
        self.began = time.monotonic()
        self.idle_closed = xoscar_idle.statistics().closed["idle"]
        self.steady = steady
        self.host = Host()
        self.building = asyncio.Lock()  # one at a time talks to the host or replaces it
        self.appended: list[str] = []
        self.echoes: Counter[str] = Counter()  # answered and perhaps answered, by the steady ones
        self._lock = threading.Lock()

    def random(self, *name: object) -> random.Random:
        """The source of randomness of one of those who act."""
        return random.Random(f"{self.seed} {name}")

    def goes_on(self) -> bool:
        """Whether it is not time yet, or not enough has happened."""
        lasted = time.monotonic() - self.began
        if self.seconds is not None:
            return lasted < self.seconds
        return bool(self.missing()) and lasted < ENOUGH_BOUND

    def missing(self) -> list[str]:
        """What has not happened often enough."""
        idle_closed = xoscar_idle.statistics().closed["idle"] - self.idle_closed
        counts = {**self.tally.counts, "connections closed: idle": idle_closed}
        return [what for what, n in ENOUGH.items() if counts.get(what, 0) < n]

    def addresses(self) -> list[str]:
        """Where to call."""
        return [*self.steady, *self.host.addresses, *self.appended]

    def count_echoes(self, outcomes: Mapping[str, int]) -> None:
        with self._lock:
            self.echoes.update(outcomes)


# -- calls -----------------------------------------------------------------------------------------


async def _echo(rng: random.Random, town: Town, address: str) -> None:
    value = rng.randbytes(rng.choice([8, 8, 8, 100_000]))
    try:
        answer = await (await worker(address)).echo(value)
    except BaseException:
        if address in town.steady:
            town.count_echoes({"in doubt": 1})
        raise
    if address in town.steady:
        town.count_echoes({"answered": 1})
    _check(answer, value)


async def _sleep(rng: random.Random, town: Town, address: str) -> None:
    value = rng.random()
    _check(await (await worker(address)).sleep(rng.random() * 0.2, value), value)


async def _visit(rng: random.Random, town: Town, address: str) -> None:
    """The worker calls others, over connections of its own; none calls itself."""
    others = [a for a in rng.choices(town.addresses(), k=3) if a not in (address, *town.steady)]
    value = rng.random()
    _check(await (await worker(address)).visit(others, value), [value] * len(others))


async def _generate(rng: random.Random, town: Town, address: str) -> None:
    n = rng.randrange(10)
    items = [i async for i in await (await worker(address)).count(n, rng.random() * 0.02)]
    _check(items, list(range(n)))


async def _tell(rng: random.Random, town: Town, address: str) -> None:
    await (await worker(address)).sleep.tell(rng.random() * 0.05)


async def _cancelled(rng: random.Random, town: Town, address: str) -> None:
    call = asyncio.ensure_future(_sleep(rng, town, address))
    await asyncio.sleep(rng.random() * 0.1)
    call.cancel()
    await asyncio.wait([call])
    if not call.cancelled():
        call.result()


async def _in_time(rng: random.Random, town: Town, address: str) -> None:
    seconds = rng.choice([0.0, 2 * DEADLINE])
    try:
        with xoscar_idle.deadline(DEADLINE):
            await (await worker(address)).sleep(seconds)
    except xoscar_idle.CallTimeout:
        town.tally.add("call in_time missed")


async def _copy(rng: random.Random, town: Town, address: str) -> None:
    actor = await worker(rng.choice(town.steady))
    name, data = f"{rng.random()}", rng.randbytes(rng.choice([1000, 1_000_000]))
    target = await actor.buffer(len(data), name)
    await xo.copy_to([np.frombuffer(data, "u1")], [target])
    _check(await actor.content(name), data)


CALLS: tuple[Callable[[random.Random, Town, str], Coroutine[Any, Any, None]], ...] = (
    *(_echo, _echo, _echo, _sleep, _sleep, _visit, _generate, _tell, _cancelled, _in_time, _copy),
)


def _check(answer: object, right: object) -> None:
    if answer != right:
        raise Violation(f"{str(answer)[:80]!r} is not {str(right)[:80]!r}")


async def call_on(rng: random.Random, town: Town, goes_on: Callable[[], bool]) -> None:
    """Call whom and how it happens, as long as it goes on."""
    while goes_on():
        if rng.random() < 0.1:
            await asyncio.sleep(rng.random() * 4 * IDLE_TIMEOUT)  # so that connections fall idle
        kind = rng.choice(CALLS)
        name = f"call {kind.__name__[1:]}"
        address = rng.choice(town.addresses())
        call = asyncio.ensure_future(kind(rng, town, address))
        await asyncio.wait([call], timeout=BOUND)
        try:
            if not call.done():
                call.cancel()
                raise Violation(f"no answer and no error in {BOUND:g} s")
            call.result()
        except GONE as error:
            if address in town.steady and kind is not _visit:
                town.tally.violate(f"{name} to a process that was let alone: {error!r}")
            town.tally.add(f"{name} raised {type(error).__name__}")
            await asyncio.sleep(rng.random() * IDLE_TIMEOUT)  # what is gone refuses at once
        except Exception as error:
            town.tally.violate(f"{name} to {address}: {error!r}")
        else:
            town.tally.add(f"{name} answered")


# -- what happens to them --------------------------------------------------------------------------


async def kill(rng: random.Random, town: Town) -> None:
    """A sub-pool dies."""
    if victims := await asyncio.to_thread(town.host.sub_pools):
        with contextlib.suppress(psutil.NoSuchProcess):
            rng.choice(victims).kill()
            town.tally.add("SIGKILL")


async def stop(rng: random.Random, town: Town) -> None:
    """A sub-pool stands still for a while, alive to its kernel alone."""
    if victims := await asyncio.to_thread(town.host.sub_pools):
        await _pause(rng.choice(victims), rng.random())
        town.tally.add("SIGSTOP")


async def _pause(process: psutil.Process, seconds: float) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        process.send_signal(signal.SIGSTOP)
        await asyncio.sleep(seconds)
        process.send_signal(signal.SIGCONT)


async def append(rng: random.Random, town: Town) -> None:
    """One more sub-pool, or one less."""
    async with town.building:
        await _append_or_remove(rng, town)


async def _append_or_remove(rng: random.Random, town: Town) -> None:
    if len(town.appended) > 1:
        address = town.appended.pop(rng.randrange(len(town.appended)))
        answer = await asyncio.to_thread(town.host.ask, "remove", address)
        town.tally.add("sub-pool removed" if answer is None else f"removing failed: {answer}")
    else:
        answer = await asyncio.to_thread(town.host.ask, "append")
        if ": " in answer:
            town.tally.add("sub-pool appended, and killed at once")
        else:
            town.tally.add("sub-pool appended")
            town.appended.append(answer)


async def replace(rng: random.Random, town: Town) -> None:
    """The whole host dies, and another one takes its place, elsewhere."""
    async with town.building:
        await asyncio.to_thread(town.host.close)
        town.tally.add("host killed")
        town.appended.clear()
        town.host = await asyncio.to_thread(Host)


async def thread(rng: random.Random, town: Town) -> None:
    """A thread with a loop of its own; some just close it, with connections open."""
    factory = rng.choice([asyncio.new_event_loop, uvloop.new_event_loop])
    orderly, goes_on = rng.random() < 0.5, _calls(rng.randrange(30))
    callers = [random.Random(rng.random()) for _ in range(3)]

    async def main() -> None:
        await asyncio.gather(*(call_on(each, town, goes_on) for each in callers))

    def run() -> None:
        loop = factory()
        try:
            asyncio.set_event_loop(loop)
            loop.run_until_complete(main())
            if orderly:
                loop.run_until_complete(loop.shutdown_default_executor())
        finally:
            asyncio.set_event_loop(None)
            loop.close()

    await asyncio.to_thread(_run_thread, run, town.tally)
    town.tally.add("thread and loop ended" if orderly else "thread ended, loop just closed")


def _calls(n: int) -> Callable[[], bool]:
    """For :func:`call_on`, to make so many in all."""
    numbers = iter(range(n))
    return lambda: next(numbers, None) is not None


def _run_thread(run: Callable[[], None], tally: Tally) -> None:
    started = threading.Thread(target=run)
    started.start()
    started.join(2 * BOUND)
    if started.is_alive():
        tally.violate("a thread does not end")


async def fork(rng: random.Random, town: Town) -> None:
    """A forked child calls on its own, while its parent has connections."""
    callers = random.Random(rng.random())
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()

    def child() -> None:
        town.tally, town.echoes = Tally(), Counter()
        before = sockets()
        asyncio.run(call_on(callers, town, _calls(10)))
        streams.wait(BOUND)
        if sockets() > before:
            town.tally.violate(f"a forked child holds {sockets()} sockets, at first {before}")
        theirs.send((town.tally.counts, town.echoes, town.tally.violations))
        os._exit(0)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # that there are other threads
        process = context.Process(target=child)
        process.start()
    theirs.close()
    if await asyncio.to_thread(ours.poll, 2 * BOUND):
        counts, echoes, violations = ours.recv()
        town.tally.merge(counts, violations)
        town.count_echoes(echoes)
    else:
        town.tally.violate("a forked child does not end")
        process.kill()
    await asyncio.to_thread(process.join)
    ours.close()
    process.close()
    town.tally.add("forked child ended")


HAPPENINGS: tuple[Callable[[random.Random, Town], Coroutine[Any, Any, None]], ...] = (
    *(kill, kill, stop, stop, append, append, thread, thread, fork),
)


async def happen(rng: random.Random, town: Town) -> None:
    """One thing after the other happens, as long as it goes on."""
    while town.goes_on():
        await asyncio.sleep(rng.random() * 0.3)
        await (replace if rng.random() < 0.02 else rng.choice(HAPPENINGS))(rng, town)


# -- a run -----------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def _steady() -> AsyncIterator[list[str]]:
    """Pools that nothing happens to."""
    with contextlib.ExitStack() as stack:
        hosted = await asyncio.to_thread(stack.enter_context, pools(2))
        yield hosted.addresses


async def _run(seed: int, tally: Tally, seconds: float | None) -> None:
    async with _steady() as steady:
        before = xoscar_idle.statistics()
        echoed = [await (await worker(each)).echoed() for each in steady]
        assert echoed == [0, 0]
        town = await asyncio.to_thread(Town, seed, tally, steady, seconds)
        try:
            async with contextlib.AsyncExitStack() as stack:
                stack.push_async_callback(_quiet_down, town)
                await asyncio.gather(
                    *(call_on(town.random("call", i), town, town.goes_on) for i in range(CALLERS)),
                    *(happen(town.random("happen", i), town) for i in range(3)),
                )
            if seconds is None and (missing := town.missing()):
                tally.violate(f"in {ENOUGH_BOUND:g} s too few: {', '.join(missing)}")
            done = sum([await (await worker(each)).echoed() for each in steady])
            least = town.echoes["answered"]
            most = least + town.echoes["in doubt"]
            if not least <= done <= most:
                tally.violate(f"{done} calls were carried out, {least} to {most} were made")
            await _all_closed(tally)
        finally:
            await asyncio.to_thread(town.host.close)
        after = xoscar_idle.statistics()
        tally.add("connections opened", after.opened - before.opened)
        for reason, n in after.closed.items():
            tally.add(f"connections closed: {reason}", n - before.closed[reason])
        tally.add("connects failed", after.connects_failed - before.connects_failed)


async def _quiet_down(town: Town) -> None:
    """What was removed is removed, what was killed is recovered, and all of it answers."""
    for address in town.appended:
        await asyncio.to_thread(town.host.ask, "remove", address)
    end = time.monotonic() + BOUND
    for address in town.host.addresses:
        while True:
            try:
                answer = await asyncio.wait_for((await worker(address)).echo("back"), BOUND)
                _check(answer, "back")
                break
            except (*GONE, asyncio.TimeoutError) as error:
                if time.monotonic() > end:
                    town.tally.violate(f"{address} does not come back: {error!r}")
                    break
                await asyncio.sleep(0.1)


async def _all_closed(tally: Tally) -> None:
    """Nobody calls: nothing is open, nothing runs."""
    try:
        await eventually_here(
            lambda: not xoscar_idle.connections() and len(asyncio.all_tasks()) == 1
        )
    except AssertionError:
        tally.violate(f"left: {xoscar_idle.connections()}, {asyncio.all_tasks()}")


def _memory() -> int:
    """Blocks that Python holds; those of the allocator's own caches given back."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    return sys.getallocatedblocks()


def run(seed: int, seconds: float | None = None) -> Tally:
    """One seed for so many seconds, or until it is enough; what happened, and what must not."""
    tally = Tally()
    factory = (asyncio.new_event_loop, uvloop.new_event_loop)[seed % 2]
    before = leaks.state()
    with _installed(), _watched(tally):
        loop = factory()
        loop.set_exception_handler(
            lambda _, context: tally.violate(f"{context['message']}: {context.get('exception')!r}")
        )
        try:
            loop.run_until_complete(_run(seed, tally, seconds))
            loop.run_until_complete(loop.shutdown_default_executor())
        finally:
            loop.close()
        if left := leaks.left_since(before):
            tally.violate(f"left: {left}")
    tally.add("memory blocks", _memory())
    return tally


@contextlib.contextmanager
def _installed() -> Iterator[None]:
    xoscar_idle.install(idle_timeout=IDLE_TIMEOUT)
    try:
        yield
    finally:
        xoscar_idle.uninstall()


@contextlib.contextmanager
def _watched(tally: Tally) -> Iterator[None]:
    """Threads that fail."""

    def failed(args: threading.ExceptHookArgs) -> None:
        tally.violate(f"in {args.thread}: {args.exc_value!r}")

    before, threading.excepthook = threading.excepthook, failed
    try:
        yield
    finally:
        threading.excepthook = before


def main(seconds: float | None, seeds: list[int]) -> int:
    """Run all seeds, printing the totals after each; the exit status."""
    totals: Counter[str] = Counter()
    first = 0
    began = time.monotonic()
    for seed in seeds:
        tally = run(seed, seconds and seconds / len(seeds))
        blocks = tally.counts.pop("memory blocks")
        first = first or blocks
        if blocks > 1.01 * first:  # uvloop remembers 2048 addresses, and modules load late
            tally.violate(f"{blocks} blocks of memory, {first} after the first seed")
        totals += tally.counts
        totals["violations"] += len(tally.violations)
        print(f"seed {seed}, {time.monotonic() - began:.0f} s, {blocks} blocks of memory:")
        for what, n in sorted(totals.items()):
            print(f"{n:>9}  {what}", flush=True)
    return 1 if totals["violations"] else 0


if __name__ == "__main__":
    if sys.argv[1:] == ["host"]:
        asyncio.run(_host())
    else:
        asked, *given = sys.argv[1:] or ["60"]
        seconds = None if asked == "enough" else float(asked)
        minutes = math.ceil((seconds or 60) / 60)
        sys.exit(main(seconds, [int(each) for each in given] or [*range(1, minutes + 1)]))
