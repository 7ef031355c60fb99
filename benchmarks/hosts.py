"""Main pools with sub-pools, each in a process of its own, and who calls these: children."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import xoscar as xo
from xoscar.backends.indigen import shared_memory
from xoscar.constants import XOSCAR_UNIX_SOCKET_DIR

from xoscar_idle.supervision.page import NAME

from .pools import UID, Caller, Echo

Lost = tuple[float, str]
"""When a call failed that was in flight (``time.monotonic()``), and its error."""


class Model(Echo):
    """What is in each sub-pool."""

    def __init__(self) -> None:
        self._held = 0

    async def hold(self) -> None:
        """In flight until its process ends."""
        self._held += 1
        await asyncio.Event().wait()

    def held(self) -> int:
        return self._held

    async def lose(self, address: str) -> Lost:
        """Call another sub-pool, which will be killed, from here."""
        return await lose(address)

    def configure(self, settings: dict[str, Any]) -> None:
        """Change those of this process."""
        import xoscar_idle

        xoscar_idle.configure(**settings)


async def lose(address: str) -> Lost:
    """Call an actor whose process will be killed."""
    model = await xo.actor_ref(address=address, uid=UID)
    try:
        await model.hold()
    except Exception as error:
        return time.monotonic(), f"{type(error).__name__}: {error}"
    raise AssertionError("it was not killed")


class Elsewhere(Caller):
    """A caller in a process of its own, over TCP."""

    async def lose(self, address: str) -> Lost:
        return await lose(address)


class Host(Caller):
    """A process with a main pool."""

    async def open(self, n_process: int) -> list[str]:
        """Open it, with so many sub-pools; their addresses."""
        logging.getLogger("xoscar_idle").setLevel(logging.ERROR)  # deaths are what is measured
        self._shared = _noted_shared_memory()
        self._pool = await xo.create_actor_pool("127.0.0.1", n_process=n_process)
        addresses = list(self._pool.sub_processes)
        for address in addresses:
            await xo.create_actor(Model, uid=UID, address=address)
        return addresses

    async def connect(self, address: str, internal: str | None = None) -> None:
        """Have calls go to a sub-pool, over its unix socket."""
        self._actor = await xo.actor_ref(address=address, uid=UID)
        await self._actor.size(b"")

    async def append(self) -> float:
        """Seconds that another sub-pool takes to start."""
        started = time.perf_counter()
        await self._pool.append_sub_pool()
        return time.perf_counter() - started

    async def close(self) -> None:
        await self._pool.stop()

    async def block(self, seconds: float) -> None:
        """Keep the loop of this process from all else."""
        time.sleep(seconds)  # noqa: ASYNC251

    async def configure(self, settings: dict[str, Any]) -> None:
        """Change those of this process and of its sub-pools."""
        import xoscar_idle

        xoscar_idle.configure(**settings)
        for address in self._pool.sub_processes:
            await (await xo.actor_ref(address=address, uid=UID)).configure(settings)

    # -- what it takes ---------------------------------------------------------------------------

    def _pids(self) -> list[int]:
        return [each.pid for each in self._pool.sub_processes.values()]

    async def processor(self) -> tuple[float, float]:
        """Seconds of processor so far, of this process and of all its sub-pools."""
        return time.process_time(), sum(map(_processor, self._pids()))

    async def weights(self) -> dict[str, float]:
        """What this process holds, and a sub-pool in the middle."""
        gc.collect()
        shares = sorted(psutil.Process(pid).memory_full_info().pss for pid in self._pids())
        return {
            "sub-pools": len(shares),
            "main": _own_memory(),
            "sub-pool": shares[len(shares) // 2],
            "descriptors": psutil.Process().num_fds(),
        }

    # -- deaths ----------------------------------------------------------------------------------

    async def forget(self) -> None:
        """Remember nothing of what happens, a thousand of which would: see what else stays."""
        import xoscar_idle
        from xoscar_idle.supervision.events import journal

        xoscar_idle.configure(history=0)
        journal.remember(0)

    async def pid(self, address: str) -> int:
        pid: int = self._pool.sub_processes[address].pid
        return pid

    async def begin_to_lose(self, address: str, sibling: str, calls: int) -> None:
        """Call a sub-pool from here and from a sibling; return when ``calls`` are in flight."""
        witness = await xo.actor_ref(address=sibling, uid=UID)
        self._losing = [
            asyncio.ensure_future(each) for each in (lose(address), witness.lose(address))
        ]
        model = await xo.actor_ref(address=address, uid=UID)
        while await model.held() < calls:  # noqa: ASYNC110  # it is in another process
            await asyncio.sleep(0.01)

    async def lost(self) -> list[Lost]:
        """How these calls failed."""
        return list(await asyncio.gather(*self._losing))

    async def recovered(self, addresses: list[str], ended: list[int]) -> None:
        """Wait until the actors answer, in processes that are not those that ended."""
        for address in addresses:
            while True:
                with contextlib.suppress(Exception):
                    model = await xo.actor_ref(address=address, uid=UID)
                    await model.held()
                    if self._pool.sub_processes[address].pid not in ended:
                        break
                await asyncio.sleep(0.05)

    async def state(self) -> dict[str, int]:
        """What there is of this process: it is not to grow."""
        gc.collect()
        return {
            "descriptors": psutil.Process().num_fds(),
            "threads": threading.active_count(),
            "tasks": len(asyncio.all_tasks()),
            "memory blocks": sys.getallocatedblocks(),
            "files of sockets": _files(XOSCAR_UNIX_SOCKET_DIR),
            "files of supervision, but records": _files(
                Path(os.environ.get("XOSCAR_SUPERVISE_DIR", "/nowhere")), but="crash-*.json"
            ),
            "segments of shared memory": len(self._shared & set(os.listdir("/dev/shm"))),
        }


def _noted_shared_memory() -> set[str]:
    """The names of what xoscar hands its parameters to sub-pools in; more are noted as they come.

    Others on this machine have their own.
    """
    names: set[str] = set()
    make = shared_memory.SharedMemory.__init__

    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        make(self, *args, **kwargs)
        names.add(self.name)

    shared_memory.SharedMemory.__init__ = init
    return names


def _processor(pid: int) -> float:
    """That of another process, in nanoseconds' steps: what ``clock_getcpuclockid`` returns."""
    return time.clock_gettime((~pid << 3) | 2)


def _own_memory() -> float:
    """Bytes of this process alone, and its part of the pages that it shares with sub-pools.

    Its part of libraries depends on how many others use them.
    """
    maps = psutil.Process().memory_maps()
    pages = sum(each.pss for each in maps if NAME in each.path)
    return float(psutil.Process().memory_full_info().uss + pages)


def _files(directory: Path, but: str = "") -> int:
    return sum(not path.match(but or "-") for path in directory.rglob("*"))
