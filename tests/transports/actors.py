"""One who copies and one who is copied to, each in a process of its own."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import xoscar as xo
from xoscar.aio import AioFileObject

import xoscar_idle
from xoscar_idle.connection import registry


def connections(transport: str) -> list[float]:
    """When each connection of this process over ``transport`` was opened."""
    return [
        client.opened
        for caller in registry.everywhere()
        for client in caller.connections()
        if client.route.startswith(f"{transport}:")
    ]


class Sender(xo.StatelessActor):  # type: ignore[misc]  # xoscar is untyped
    """Copies to where it is told, and says what its process holds open."""

    async def copy(self, target: Any, size: int) -> int:
        """Copy ``size`` bytes; their sum."""
        data = np.arange(size, dtype="u1")
        await xo.copy_to([data], [target])
        return int(data.sum())

    async def copy_slowly(
        self, target: Any, blocks: int, pause: float, transport: str
    ) -> list[list[float]]:
        """Copy that many bytes one by one; the connections that there are before each of them."""
        seen: list[list[float]] = []

        class SlowFile:
            async def read(self, size: int) -> bytes:
                await asyncio.sleep(pause)
                if len(seen) == blocks:
                    return b""
                seen.append(connections(transport))
                return b"x" * size

        await xo.copy_to([SlowFile()], [target], block_size=1)
        return seen

    async def call(self, receiver: Any, name: str) -> Any:
        return await getattr(receiver, name)()

    def connections(self, transport: str) -> list[float]:
        return connections(transport)

    def configure(self, settings: dict[str, Any]) -> None:
        xoscar_idle.configure(**settings)


class Receiver(xo.StatelessActor):  # type: ignore[misc]
    """Has memory and a file that can be copied to."""

    def __init__(self) -> None:
        super().__init__()
        self._called = False

    def target(self, size: int) -> Any:
        self._array = np.zeros(size, dtype="u1")
        return xo.buffer_ref(self.address, self._array)

    def total(self) -> int:
        return int(self._array.sum())

    def file(self) -> Any:
        self._bytes = io.BytesIO()
        self._file = AioFileObject(self._bytes)
        return xo.file_object_ref(self.address, self._file)

    def written(self) -> int:
        return len(self._bytes.getvalue())

    def pid(self) -> int:
        return os.getpid()

    async def forever(self) -> None:
        self._called = True
        await asyncio.Event().wait()

    def is_called(self) -> bool:
        return self._called


@contextlib.asynccontextmanager
async def siblings(transport: str) -> AsyncIterator[tuple[Any, Any]]:
    """Sender and receiver in one pool: xoscar looks for the transport that is best for copies."""
    schemes = [None, transport, transport]
    pool = await xo.create_actor_pool("127.0.0.1", n_process=2, external_address_schemes=schemes)
    async with pool:
        sending, receiving = pool._config.get_external_addresses()[1:]
        yield (
            await xo.create_actor(Sender, address=sending),
            await xo.create_actor(Receiver, address=receiving),
        )


@contextlib.asynccontextmanager
async def strangers(transport: str) -> AsyncIterator[tuple[Any, Any]]:
    """Sender and receiver in two pools: whatever one asks of the other goes over ``transport``."""
    async with contextlib.AsyncExitStack() as stack:
        actors = []
        for kind in (Sender, Receiver):
            pool = await xo.create_actor_pool(
                "127.0.0.1",
                n_process=1,
                external_address_schemes=[None, transport],
                auto_recover=False,
            )
            await stack.enter_async_context(pool)
            address = pool._config.get_external_addresses()[1]
            actors.append(await xo.create_actor(kind, address=address))
        yield actors[0], actors[1]
