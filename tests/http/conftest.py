from __future__ import annotations

import asyncio
import functools
import os
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest_asyncio

import xoscar_idle
from xoscar_idle.http import server

from ..support import crashing, web
from ..support.waiting import eventually_here


class Served:
    """A main pool of this process that is told of over HTTP, and a client of that."""

    def __init__(self, pool: Any, where: str) -> None:
        self.pool = pool
        self.where = where
        self.addresses = crashing.sub_pools(pool)

    async def ask(self, path: str, method: str = "GET", **options: Any) -> web.Answer:
        """The answer to a request."""
        return await asyncio.to_thread(
            functools.partial(web.request, self.where, path, method, **options)
        )

    async def steer(self, instruction: str, **params: object) -> web.Answer:
        """The answer to an instruction, with the token."""
        request_id = params.pop("request_id", None)
        body = {"instruction": instruction, "params": params, "request_id": request_id}
        path = "/v1/fault_tolerance/apply"
        return await self.ask(path, "POST", body=body, **web.BEARER)


@pytest_asyncio.fixture
async def served(acting: Callable[..., None]) -> AsyncIterator[Served]:
    """One with two sub-pools, at an address of this machine, with a token."""
    acting(health_address=f"{web.WEB}:0", health_token=web.TOKEN)
    async with crashing.pool(2) as pool:
        where = server.where()
        assert where is not None
        yield Served(pool, where)
    await eventually_here(lambda: server.where() is None)
    assert not os.environ.get("XOSCAR_HEALTH_TOKEN") or xoscar_idle.is_active()
