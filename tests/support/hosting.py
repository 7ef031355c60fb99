"""Pools in processes of their own, and what the kernel says of descriptors."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Collection, Iterator
from typing import Any

import numpy as np
import psutil
import uvloop
import xoscar as xo

from .endpoints import ELSEWHERE
from .processes import line, started


class Worker(xo.StatelessActor):  # type: ignore[misc]
    """Does what tests ask of an actor, many things at once."""

    def __init__(self) -> None:
        super().__init__()
        self._echoed = 0
        self._releases = asyncio.Semaphore(0)
        self._buffers: dict[str, Any] = {}

    async def echo(self, value: Any) -> Any:
        self._echoed += 1
        return value

    def echoed(self) -> int:
        return self._echoed

    async def sleep(self, seconds: float, value: Any = None) -> Any:
        await asyncio.sleep(seconds)
        return value

    async def hold(self, value: Any = None) -> Any:
        """In flight until a :meth:`release`, before or after."""
        await self._releases.acquire()
        return value

    def release(self) -> None:
        self._releases.release()

    async def visit(self, addresses: list[str], value: Any = None) -> list[Any]:
        """Ask the worker at each address, from here."""
        return [await (await worker(a)).echo(value) for a in addresses]

    def sockets(self) -> int:
        return sockets()

    def environment(self, name: str) -> str | None:
        return os.environ.get(name)

    def active(self) -> bool:
        import xoscar_idle

        return xoscar_idle.is_active()

    def settings(self) -> dict[str, Any]:
        """Those in force in its process."""
        import xoscar_idle

        return vars(xoscar_idle.settings())

    def opened(self) -> int:
        """How many connections its process has opened."""
        import xoscar_idle

        return xoscar_idle.statistics().opened

    def at_rest(self) -> bool:
        """Whether its process has no connection open that it has opened."""
        import xoscar_idle

        return not xoscar_idle.statistics().open

    def configure(self, **settings: Any) -> None:
        import xoscar_idle

        xoscar_idle.configure(**settings)

    def pid(self) -> int:
        return os.getpid()

    def buffer(self, size: int, name: str = "") -> Any:
        buffer = self._buffers[name] = np.zeros(size, dtype="u1")
        return xo.buffer_ref(self.address, buffer)

    def file(self) -> Any:
        from xoscar.aio import AioFileObject

        self._bytes = io.BytesIO()
        self._file = AioFileObject(self._bytes)
        return xo.file_object_ref(self.address, self._file)

    def content(self, name: str = "") -> bytes:
        """What is in a buffer, which is then let go."""
        content: bytes = self._buffers.pop(name).tobytes()
        return content

    def written(self) -> int:
        return len(self._bytes.getvalue())

    def streams(self) -> int:
        """How many of its generators somebody still has."""
        return len(self._generators)

    @xo.generator  # type: ignore[untyped-decorator]
    async def count(self, n: int, pause: float = 0.0) -> AsyncIterator[int]:
        for i in range(n):
            await asyncio.sleep(pause)
            yield i


async def worker(address: str) -> Any:
    """The worker of the pool at ``address``."""
    return await xo.actor_ref(address=address, uid="worker")


def sockets(pid: int | None = None) -> int:
    """How many descriptors of a process are sockets."""
    count = 0
    for entry in os.scandir(f"/proc/{pid or os.getpid()}/fd"):
        with contextlib.suppress(FileNotFoundError):  # the one that scandir uses
            count += os.readlink(entry.path).startswith("socket:")
    return count


def connections_to(addresses: Collection[str]) -> int:
    """How many TCP connections this process has to those addresses, whatever else it has open."""
    remote = [c.raddr for c in psutil.Process().net_connections("tcp") if c.raddr]
    return sum(f"{each.ip}:{each.port}" in addresses for each in remote)


@contextlib.contextmanager
def pools(
    n: int = 1, n_process: int = 0, quiet: bool = False, **environment: str
) -> Iterator[Pools]:
    """``n`` pools in one process of its own, each with a worker in every process.

    They get the settings that are in force here, and ``environment``. ``quiet``: the test breaks
    connections off, and what the pools say of that is no matter.
    """
    with started(
        *(sys.executable, "-m", "tests.support.hosting", str(n), str(n_process)),
        orderly=True,
        stderr=subprocess.DEVNULL if quiet else None,
        env=os.environ | environment,
    ) as process:
        yield Pools(process.pid, line(process).split())


class Pools:
    """The pools of :func:`pools`."""

    def __init__(self, pid: int, addresses: list[str]) -> None:
        self.pid = pid
        self.addresses = addresses


async def _host(n: int, n_process: int) -> None:
    addresses: list[str] = []
    hosted = []
    for _ in range(n):
        pool = await xo.create_actor_pool(ELSEWHERE, n_process=n_process)
        hosted.append(pool)
        addresses += pool._config.get_external_addresses()
    for address in addresses:
        await xo.create_actor(Worker, uid="worker", address=address)
    print(*addresses, flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    for pool in hosted:
        await pool.stop()


if __name__ == "__main__":
    if os.environ.get("XOSCAR_USE_UVLOOP") == "1":  # as in sub-pools
        uvloop.install()
    asyncio.run(_host(int(sys.argv[1]), int(sys.argv[2])))
