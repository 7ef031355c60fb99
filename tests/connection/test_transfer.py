"""Transfers use one connection for many requests, and keep it for their whole length."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import xoscar as xo

import xoscar_idle
from xoscar_idle.connection import registry

from ..support.hosting import Worker, pools, worker
from ..support.waiting import eventually_here

pytestmark = pytest.mark.integration

TIMEOUT = 0.2


@pytest.fixture(autouse=True)
def active() -> Iterator[None]:
    xoscar_idle.install(idle_timeout=TIMEOUT)
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


def test_failed_transfer_gives_its_lease_back() -> None:
    async def main() -> None:
        actor = await worker(hosted.addresses[0])
        ref = await actor.buffer(10)
        with pytest.raises(TypeError):
            await xo.copy_to([object()], [ref])
        await eventually_here(lambda: not open_connections())

    with pools() as hosted:
        asyncio.run(main())
