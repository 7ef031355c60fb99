"""Who tells what has happened, and how each is asked: processes of this machine, those of pools,
and URLs."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Protocol

from .. import side_channel
from . import asking, kernel, targets, web
from .asking import Question, Silent, Unanswered
from .snapshot import ACTIVE, BLOCKED, Snapshot, Unobservable
from .targets import Target

SUB_POOLS = "sub-pools"
CONNECTIONS = "connections"
"""Of what something is told."""

REFRESH = 5.0
"""Seconds after which it is looked again which processes pools have."""

TIMEOUT = 5.0
"""Seconds that connecting over xoscar, and each answer, may take."""

AT_ONCE = 128
"""How many are asked over xoscar: each takes a descriptor."""

Ask = Callable[[Question], Awaitable[str | bytes]]
"""The answer to a question; it may raise :class:`Unobservable`."""


class Source(Protocol):
    """A process that can be asked."""

    @property
    def name(self) -> Target:
        """As it is named, or the address of its pool."""

    @property
    def tells(self) -> Sequence[str]:
        """Of :data:`SUB_POOLS`, of :data:`CONNECTIONS`, or of both."""

    def conversation(self) -> AbstractAsyncContextManager[Ask]:
        """For some questions, one after the other."""


class Sources:
    """Those that are named, or else all that offer a monitor."""

    def __init__(self, named: Sequence[Target]) -> None:
        self.named = named
        self.seen: list[Snapshot] = []
        """The processes of the pools that are named, when they were last looked at."""
        self._pools = [each for each in named if isinstance(each, str) and not _is_url(each)]
        self._of_pools: list[Source] = []
        self._complaints: list[str] = []
        self._looking: asyncio.Task[list[tuple[Target, Snapshot]]] | None = None
        self._looked: float | None = None
        # Not those of asyncio, which are few: one that is stopped takes its time.
        self._threads = ThreadPoolExecutor(targets.PROCESSES_AT_ONCE, "xoscar-idle-ask")
        self._at_once = asyncio.Semaphore(AT_ONCE)

    async def now(self) -> tuple[list[Source], list[str]]:
        """Whom to ask, and what is wrong with others."""
        if not self.named:
            offered = await asyncio.to_thread(side_channel.offered)
            complaints = [] if offered else [targets.nobody()]
            return [Local(each, self._threads) for each in offered], complaints
        found: list[Source] = []
        for each in self.named:
            if isinstance(each, int):
                found.append(Local(each, self._threads))
            elif _is_url(each):
                found.append(AtUrl(each, self._threads))
        if self._pools:
            await self._look()
        return [*found, *self._of_pools], self._complaints

    async def _look(self) -> None:
        """See which processes the pools have: at first, and later now and then, meanwhile."""
        if self._looking is None and (
            self._looked is None or time.monotonic() - self._looked >= REFRESH
        ):
            self._looking = asyncio.create_task(targets.look_at(self._pools))
        if self._looking is not None and (self._looked is None or self._looking.done()):
            seen = await self._looking
            self._looking, self._looked = None, time.monotonic()
            self.seen = [each for _, each in seen]
            self._of_pools, self._complaints = [], []
            for each in self.seen:
                self._take(each)
            for target in self._pools:
                here = [each for of, each in seen if of == target]
                if here and not any(each.status != ACTIVE or _is_main(each) for each in here):
                    self._of_pools.append(MainPool(target))

    def _take(self, one: Snapshot) -> None:
        """A process of a pool that has been looked at."""
        tells = (SUB_POOLS, CONNECTIONS) if _is_main(one) else (CONNECTIONS,)
        if one.address is not None and one.status == ACTIVE:
            self._of_pools.append(OverXoscar(one.address, tells, self._at_once))
        elif one.address is not None and one.status == BLOCKED and one.pid is not None:
            self._of_pools.append(Beside(one.address, tells, one, self._threads))
        else:
            self._complaints.append(one.complaint)

    def close(self) -> None:
        """Wait for nobody any more."""
        if self._looking is not None:
            self._looking.cancel()
        self._threads.shutdown(wait=False, cancel_futures=True)


def _is_url(target: Target) -> bool:
    return isinstance(target, str) and web.is_address(target)


def _is_main(one: Snapshot) -> bool:
    """Whether there is a main pool in it, as it tells."""
    return any(each.get("here") and each.get("index") == 0 for each in one.pools)


@dataclass(frozen=True)
class Local:
    """A process of this machine that offers a monitor."""

    name: int
    threads: Executor
    tells: Sequence[str] = (SUB_POOLS, CONNECTIONS)

    @asynccontextmanager
    async def conversation(self) -> AsyncIterator[Ask]:
        """Over its side channel."""
        loop = asyncio.get_running_loop()
        yield lambda asked: loop.run_in_executor(self.threads, asking.ask_process, self.name, asked)


@dataclass(frozen=True)
class Beside:
    """A process of a pool, on this machine, that does not answer over xoscar."""

    name: str
    tells: Sequence[str]
    seen: Snapshot
    threads: Executor

    @asynccontextmanager
    async def conversation(self) -> AsyncIterator[Ask]:
        """Over its side channel, which its event loop has no part in."""
        loop = asyncio.get_running_loop()
        assert self.seen.pid is not None
        pid = self.seen.pid

        async def ask(asked: Question) -> bytes:
            try:
                return await loop.run_in_executor(self.threads, asking.ask_process, pid, asked)
            except Silent:  # which would have it named by its address
                raise Unobservable(self.seen.complaint) from None

        yield ask


@dataclass(frozen=True)
class OverXoscar:
    """A process of a pool, wherever it runs."""

    name: str
    tells: Sequence[str]
    at_once: asyncio.Semaphore

    @asynccontextmanager
    async def conversation(self) -> AsyncIterator[Ask]:
        """Over one connection."""
        from xoscar.backends.router import Router  # which takes a while

        from ..connection import exchange

        there = exchange.Exchange(Router.get_instance_or_empty(), self.name, TIMEOUT)

        async def ask(asked: Question) -> str:
            with self._observing():
                told = await there.config(asked.text)
            if isinstance(told, str):
                return told
            raise Unobservable(
                f"{self.name} cannot tell of its {asked.of}: xoscar-idle is not active there, or "
                "is older"
            )

        async with self.at_once:
            try:
                with self._observing():
                    await there.open()
                    await there.introduce()
                yield ask
            finally:
                there.close()

    @contextlib.contextmanager
    def _observing(self) -> Iterator[None]:
        """An error in the block is one line for the user."""
        try:
            yield
        except asyncio.TimeoutError:
            raise Unanswered(f"{self.name} did not answer in {TIMEOUT:g} s") from None
        except Exception as error:
            raise Unobservable(f"no pool answers at {self.name}: {kernel.why(error)}") from None


@dataclass(frozen=True)
class MainPool:
    """The main pool of a pool whose processes do not tell which of them it is: an older version."""

    name: Target
    tells: Sequence[str] = (SUB_POOLS,)

    @asynccontextmanager
    async def conversation(self) -> AsyncIterator[Ask]:
        """Over xoscar, anew each time."""

        async def ask(asked: Question) -> str | bytes:
            return (await asking.ask(self.name, asked)).text

        yield ask


@dataclass(frozen=True)
class AtUrl:
    """A process with main pools that answers over HTTP."""

    name: str
    threads: Executor
    tells: Sequence[str] = (SUB_POOLS,)

    @asynccontextmanager
    async def conversation(self) -> AsyncIterator[Ask]:
        """A request each time."""
        loop = asyncio.get_running_loop()
        yield lambda asked: loop.run_in_executor(
            self.threads, web.ask, self.name, asked.path, asked.headers
        )
