"""Threads whose loops come and go: ``python -m tests.whole.churn [SECONDS [LOOP]]``.

Nothing may go wrong, and in the end descriptors and the count under the cap are as at the start.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import random
import resource
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import uvloop
from xoscar.backends.core import ActorCaller as Owner
from xoscar.backends.router import Router

import xoscar_idle
from xoscar_idle.connection import cap as caps

from ..support.hosting import sockets
from ..support.memory import message
from ..support.peers import peers

BOUND = 30.0
CAP = 20
LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


class Outcome(NamedTuple):
    loops: int
    calls: int
    errors: list[str]


class Churn:
    """Threads that make loops, call peers on them, and close them in different ways."""

    def __init__(self, addresses: list[str], loop: str, more: Callable[[], bool]) -> None:
        self._addresses = addresses
        self._new_loop = LOOPS[loop]
        self._more = more
        self._numbers = itertools.count(1)  # its steps are atomic
        self.loops = itertools.count()
        self.calls = itertools.count()
        self.errors: list[str] = []

    def thread(self, seed: int) -> None:
        """Until there is to be no more."""
        rng = random.Random(seed)
        try:
            while self._more():
                self._loop(rng)
        except BaseException:
            self.errors.append(f"a loop died: {traceback.format_exc()}")

    def _loop(self, rng: random.Random) -> None:
        loop = self._new_loop()
        loop.set_exception_handler(lambda _, context: self.errors.append(repr(context)))
        # One owner for several loops, or one for each; it goes before its loop, or after it.
        owner = Owner()
        loop.run_until_complete(asyncio.wait_for(self._visit(owner, rng), BOUND))
        if rng.random() < 0.3:
            del owner
            loop.run_until_complete(asyncio.sleep(0))
        elif rng.random() < 0.5:
            loop.run_until_complete(self._stop(owner))
        for task in (tasks := asyncio.all_tasks(loop)):
            task.cancel()
        if tasks:
            loop.run_until_complete(asyncio.wait(tasks))
        loop.close()
        next(self.loops)

    async def _stop(self, owner: Any) -> None:
        await owner.stop()

    async def _visit(self, owner: Any, rng: random.Random) -> None:
        router = Router([], None)

        async def call() -> None:
            n = next(self._numbers) % 256
            reply = await owner.call(router, rng.choice(self._addresses), message(n))
            if reply.result != n:
                self.errors.append(f"{reply.result} for {n}")
            next(self.calls)

        await asyncio.gather(*(call() for _ in range(rng.randint(1, 4))))
        if rng.random() < 0.5:
            await asyncio.sleep(rng.random() * 0.02)
            await call()


@contextlib.contextmanager
def _often() -> Iterator[None]:
    """Let threads take turns far more often than they do."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(0.00005)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


def churn(loop: str, threads: int, more: Callable[[], bool], reconfigure: bool = False) -> Outcome:
    """Let ``threads`` go on while there is to be ``more``, with settings that change or a cap."""
    limits: dict[str, Any] = {} if reconfigure else {"max_connections": CAP}
    xoscar_idle.install(idle_timeout=0.01, **limits)
    with peers(40, quiet=True) as addresses, _often():
        before, seats = sockets(), caps.process.count
        running = Churn(addresses, loop, more)
        all_threads = [
            threading.Thread(target=running.thread, args=(seed,)) for seed in range(threads)
        ]
        for each in all_threads:
            each.start()
        while reconfigure and any(each.is_alive() for each in all_threads):
            for timeout in (0.01, 5):
                xoscar_idle.configure(idle_timeout=timeout, max_connection_age=timeout)
                time.sleep(0.005)
        for each in all_threads:
            each.join()
        errors = running.errors
        gc.collect()
        if caps.process.count != seats:
            errors.append(f"{caps.process.count - seats} seats under the cap are left")
        if (left := sockets() - before) > 0:
            errors.append(f"{left} sockets are left")
        if xoscar_idle.connections():
            errors.append(f"left: {xoscar_idle.connections()}")
    xoscar_idle.uninstall()
    return Outcome(next(running.loops), next(running.calls), errors)


def _before(end: float) -> bool:
    return time.monotonic() < end


def main(seconds: float, loops: list[str]) -> int:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    failed = 0
    for threads, reconfigure in ((200, False), (6, True)):
        for loop in loops:
            end = time.monotonic() + seconds
            outcome = churn(loop, threads, partial(_before, end), reconfigure)
            print(
                f"{threads} threads on {loop}{', settings that change' if reconfigure else ''}: "
                f"{outcome.loops} loops, {outcome.calls} calls, {len(outcome.errors)} errors",
                *outcome.errors[:3],
                sep="\n  ",
                flush=True,
            )
            failed += bool(outcome.errors)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]) if len(sys.argv) > 1 else 60, sys.argv[2:] or [*LOOPS]))
