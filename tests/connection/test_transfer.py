"""Transfers use one connection for many requests, and keep it for their whole length."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import xoscar as xo

import xoscar_idle
from xoscar_idle.connection import registry

from ..support.hosting import Worker, pools, worker
from ..support.waiting import bounded, eventually_here

pytestmark = pytest.mark.integration

TIMEOUT = 0.2


@pytest.fixture(autouse=True)
def active() -> Iterator[None]:
    xoscar_idle.install(idle_timeout=TIMEOUT, idle_timeout_nixl=TIMEOUT)
    yield
    xoscar_idle.uninstall()


class SlowFile:
    """A file whose blocks take longer to read than a connection may be idle."""

    def __init__(self, blocks: int) -> None:
        self.left = blocks
        self.read_from = asyncio.Event()

    async def read(self, size: int) -> bytes:
        self.read_from.set()
        await asyncio.sleep(2 * TIMEOUT)
        self.left -= 1
        return b"x" * size if self.left >= 0 else b""


def open_connections() -> list[Any]:
    """All of this process; each test has one loop."""
    return [client for caller in registry.everywhere() for client in caller._all.values()]


async def copy_twice(actor: Any) -> None:
    """Two transfers, each longer than the timeout, with the connection reaped between."""
    for _ in range(2):
        await copy_buffers(actor)
        await copy_slow_file(actor)
        await eventually_here(lambda: not open_connections())


async def copy_buffers(actor: Any) -> None:
    data = np.frombuffer(os.urandom(1 << 20), dtype="u1")
    await xo.copy_to([data], [await actor.buffer(len(data))], block_size=1 << 16)
    assert await actor.content() == data.tobytes()


async def copy_slow_file(actor: Any) -> None:
    target = await actor.file()
    file = SlowFile(4)
    copy = asyncio.ensure_future(xo.copy_to([file], [target], block_size=1 << 10))
    await file.read_from.wait()
    used = [c for c in open_connections() if c.refs]
    assert len(used) == 1, "the transfer holds one lease"
    await copy
    assert used[0].state.value == "open", "the connection of its beginning served its end"
    assert await actor.written() == 4 << 10


def test_over_tcp() -> None:
    async def main() -> None:
        await copy_twice(await worker(hosted.addresses[0]))

    with pools() as hosted:
        asyncio.run(main())


def test_over_unix_sockets() -> None:
    async def main() -> None:
        pool = await xo.create_actor_pool("127.0.0.1", n_process=1)
        async with pool:
            address = pool._config.get_external_addresses()[1]
            actor = await xo.create_actor(Worker, uid="worker", address=address)
            assert pool.router.get_internal_address(address).startswith("unixsocket:")
            await copy_twice(actor)

    asyncio.run(main())


def test_within_a_process() -> None:
    async def main() -> None:
        pool = await xo.create_actor_pool("127.0.0.1", n_process=0)
        async with pool:
            actor = await xo.create_actor(Worker, uid="worker", address=pool.external_address)
            await copy_twice(actor)

    asyncio.run(main())


class Sender(xo.StatelessActor):  # type: ignore[misc]
    """Copies arrays to where it is told, and says what its process holds open."""

    async def send(self, ref: Any, size: int) -> int:
        data = np.arange(size, dtype="u1")
        await xo.copy_to([data], [ref])
        return int(data.sum())

    def connections(self) -> list[str]:
        return [c.route for c in open_connections()]


class Receiver(xo.StatelessActor):  # type: ignore[misc]
    def target(self, size: int) -> Any:
        self._array = np.zeros(size, dtype="u1")
        return xo.buffer_ref(self.address, self._array)

    def total(self) -> int:
        return int(self._array.sum())


@pytest.mark.nixl
@pytest.mark.skipif(
    importlib.util.find_spec("nixl") is None or sys.platform != "linux",
    reason="needs the packages of requirements-nixl.txt",
)
def test_over_nixl() -> None:
    """First copy, copy on the open connection, copy after it has been reaped."""

    async def main() -> None:
        pool = await xo.create_actor_pool(
            "127.0.0.1", n_process=2, external_address_schemes=[None, "nixl", "nixl"]
        )
        async with pool:
            sending, receiving = pool._config.get_external_addresses()[1:]
            sender = await xo.create_actor(Sender, address=sending)
            receiver = await xo.create_actor(Receiver, address=receiving)
            for size in (1 << 10, 1 << 22):
                for _ in range(2):
                    ref = await receiver.target(size)
                    assert await sender.send(ref, size) == await receiver.total()
                await bounded(reaped(sender))

    async def reaped(sender: Any) -> None:
        # It is the other process's, so there is nothing here to wait for.
        while any(r.startswith("nixl:") for r in await sender.connections()):  # noqa: ASYNC110
            await asyncio.sleep(0.1)

    asyncio.run(main())


def test_failed_transfer_gives_its_lease_back() -> None:
    async def main() -> None:
        actor = await worker(hosted.addresses[0])
        ref = await actor.buffer(10)
        with pytest.raises(TypeError):
            await xo.copy_to([object()], [ref])
        await eventually_here(lambda: not open_connections())

    with pools() as hosted:
        asyncio.run(main())
