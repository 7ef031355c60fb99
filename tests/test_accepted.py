"""The accepting side: what is closed when idle, and what is left alone."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import xoscar as xo

import xoscar_idle

from .hosting import Worker, pools, worker

integration = pytest.mark.integration


class Relay(Worker):
    """Asks the worker at the address that it is given."""

    async def echo(self, value: Any) -> Any:
        return await (await worker(value)).echo("reached")


@integration
def test_requests_do_not_know_the_deadline_that_their_pool_was_made_in(active: None) -> None:
    xoscar_idle.install(idle_timeout=30)

    async def main() -> None:
        with xoscar_idle.deadline(3):
            pool = await xo.create_actor_pool("127.0.0.1", n_process=0)
            await xo.create_actor(Relay, uid="worker", address=pool.external_address)
            near, far = [await worker(address) for address in hosted.addresses]
        async with pool:
            await asyncio.sleep(3.1)
            reached = await near.visit([pool.external_address], hosted.addresses[1])
            assert reached == ["reached"]
            assert await far.echo(1) == 1

    with pools(2) as hosted:
        asyncio.run(main())
