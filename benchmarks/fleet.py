"""A main pool whose sub-pools die and are restarted, and who calls them meanwhile: children."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import random
import resource
import time
from typing import Any

import xoscar as xo

from .hosts import Host, Model
from .pools import UID

GONE = (ConnectionError, xo.ServerClosed, xo.ActorNotExist)
"""What callers get of a pool that is not there, or not yet."""

TRY_EVERY = 0.005
"""Seconds after which somebody who wants to know when a pool is there tries again."""


class Numbered(Model):
    """Writes down which calls it executes."""

    def __init__(self, path: str) -> None:
        super().__init__()
        # Each line is one write to the end of the file: whole, whatever kills the process.
        self._executed = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    async def work(self, number: int, seconds: float) -> int:
        os.write(self._executed, b"+%d\n" % number)
        await asyncio.sleep(seconds)
        os.write(self._executed, b"-%d\n" % number)
        return number

    def pid(self) -> int:
        return os.getpid()


class Fleet(Host):
    """A process with a main pool, whose actors write down what they execute."""

    async def launch(self, n_process: int, path: str, modules: list[str]) -> list[str]:
        """Start it, with such an actor in each of so many sub-pools; their addresses."""
        # What recoveries are said to be is not what is measured.
        for name in ("xoscar_idle", "xoscar"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        self._events: list[tuple[str, str, float]] = []
        self._states: list[tuple[float, str, str]] = []
        # Connections within the machine come from 127.0.0.1, and would take the ports of the dead.
        self._pool = await xo.create_actor_pool(
            "127.0.0.2",
            n_process=n_process,
            modules=modules,
            on_process_down=lambda _, address: self._note("down", address),
            on_process_recover=lambda _, address: self._note("recovered", address),
        )
        addresses = list(self._pool.sub_processes)
        for address in addresses:
            await xo.create_actor(Numbered, path, uid=UID, address=address)
        return addresses

    async def stop(self, address: str) -> None:
        """End a sub-pool by xoscar's own means."""
        await self._pool.stop_sub_pool(address, self._pool.sub_processes[address])

    async def apply(self, instruction: str, address: str) -> str:
        """What an operator asks for, when it is done: what was done, or why it was not."""
        import xoscar_idle

        try:
            return (await xoscar_idle.apply(instruction, address)).reason
        except (xoscar_idle.InstructionRefused, xoscar_idle.InstructionFailed) as error:
            return f"{type(error).__name__}: {error}"

    async def spent(self) -> float:
        """Seconds of processor of all sub-pools that have ended."""
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime

    # -- when --------------------------------------------------------------------------------------

    def _note(self, what: str, address: str) -> None:
        self._events.append((what, address, time.monotonic()))

    async def note_beginnings(self) -> None:
        """Note from now on when recoveries begin, as a program with one of its own could."""
        recover = self._pool.recover_sub_pool

        async def recover_sub_pool(address: str) -> None:
            self._note("begins", address)
            await recover(address)

        self._pool.recover_sub_pool = recover_sub_pool

    async def events(self) -> list[tuple[str, str, float]]:
        """What happened since the last time, to which sub-pool, and when (``time.monotonic()``)."""
        events, self._events = self._events, []
        return events

    async def watch(self) -> None:
        """Follow the states of the only sub-pool from now on."""
        self._watching = asyncio.ensure_future(self._watch())

    async def _watch(self) -> None:
        import xoscar_idle

        sequence = -1
        while True:
            (found,) = xoscar_idle.pools()
            if found.sequence != sequence:
                sequence = found.sequence
                self._states.append((time.monotonic(), found.state, found.reason))
            await asyncio.sleep(0.01)

    async def states(self) -> list[tuple[float, str, str]]:
        """When it was in another state than before, in which, and why."""
        return self._states


class Callers:
    """A process with callers in it, over TCP."""

    def __init__(self) -> None:
        self._tasks: list[asyncio.Task[None]] = []
        self._going_on = True

    async def begin(
        self, addresses: list[str], callers: int, first: int, seconds: float, path: str, again: bool
    ) -> None:
        """Call the actors there all the time, each caller one call after the other.

        Parameters
        ----------
        first
            The number of the first call.
        seconds
            That each call takes.
        path
            Of the file in which each is written down when it has ended.
        again
            Whether a caller whose call fails makes it again, as programs do that know no better.
        """
        logging.getLogger("xoscar_idle").setLevel(logging.CRITICAL)
        actors = [await xo.actor_ref(address=each, uid=UID) for each in addresses]
        for actor in actors:
            await actor.pid()
        self._ended = open(path, "w")  # noqa: ASYNC230, SIM115  # until the end of this process
        numbers = itertools.count(first)
        chance = random.Random(first)

        async def caller() -> None:
            while self._going_on:
                number, actor, began = next(numbers), chance.choice(actors), time.monotonic()
                error = await _call(actor, number, seconds, again)
                self._ended.write(f"{number} {time.monotonic() - began:.6f} {error}\n")
                if error:
                    await asyncio.sleep(seconds)  # else failing fast would be calling more

        self._tasks = [asyncio.ensure_future(caller()) for _ in range(callers)]

    async def answered(self) -> int:
        """How many calls have ended so far."""
        self._ended.flush()
        with open(self._ended.name) as file:  # noqa: ASYNC230
            return sum(1 for _ in file)

    async def end(self) -> None:
        """Begin no more calls, and wait for those that are under way."""
        self._going_on = False
        await asyncio.gather(*self._tasks)
        self._ended.close()

    async def reach(self, address: str, pid: int) -> float:
        """When the actor there answers (``time.monotonic()``) from another process than that."""
        actor = None
        while True:
            with contextlib.suppress(*GONE):
                actor = actor or await xo.actor_ref(address=address, uid=UID)
                if await actor.pid() != pid:
                    return time.monotonic()
            await asyncio.sleep(TRY_EVERY)


async def _call(actor: Any, number: int, seconds: float, again: bool) -> str:
    """The name of its error; empty: it was answered."""
    while True:
        try:
            answer = await actor.work(number, seconds)
        except Exception as error:
            if not (again and isinstance(error, GONE)):
                return type(error).__name__
            await asyncio.sleep(10 * TRY_EVERY)
        else:
            return "" if answer == number else "WrongAnswer"
