"""Real actor pools in a process, and a client that calls their actors: children."""

from __future__ import annotations

import asyncio
import time

import xoscar as xo
from xoscar.backends.router import Router

UID = "echo"


class Echo(xo.StatelessActor):  # type: ignore[misc]  # xoscar is untyped
    async def size(self, payload: bytes) -> int:
        return len(payload)


class Pools:
    """The server."""

    async def open(self, n: int, host: str = "127.0.0.1") -> dict[str, str]:
        """Open ``n`` pools with an actor each; their internal addresses by the external ones."""
        self._pools = [await xo.create_actor_pool(host, n_process=0) for _ in range(n)]
        for pool in self._pools:
            await xo.create_actor(Echo, uid=UID, address=pool.external_address)
        internal: dict[str, str] = {}
        for pool in self._pools:
            internal |= pool._config.external_to_internal_address_map
        return internal

    async def close(self) -> None:
        """Stop the pools: their unix sockets are files."""
        for pool in self._pools:
            await pool.stop()


class Caller:
    """The client."""

    async def connect(self, address: str, internal: str | None = None) -> None:
        """Get the actor, and call it once; over a unix socket where ``internal`` is one."""
        router = Router.get_instance_or_empty()
        router.set_mapping({} if internal is None else {address: internal})
        self._actor = await xo.actor_ref(address=address, uid=UID)
        await self._actor.size(b"")

    async def call(self, size: int, callers: int, calls: int) -> float:
        """Seconds per call, with so many callers at once."""
        payload = bytes(size)

        async def caller() -> None:
            for _ in range(calls // callers):
                await self._actor.size(payload)

        started = time.perf_counter()
        await asyncio.gather(*(caller() for _ in range(callers)))
        return (time.perf_counter() - started) / calls
