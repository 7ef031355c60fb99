"""What is asked of xoscar's router and caller directly, past the calls of actors."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from xoscar.backends.communication.socket import SocketClient
from xoscar.backends.core import ActorCaller
from xoscar.backends.router import Router

import xoscar_idle
from xoscar_idle.connection import registry

from ..support.memory import message
from ..support.peers import peers

pytestmark = pytest.mark.integration


@pytest.fixture
def address(active: None) -> Iterator[str]:
    xoscar_idle.install(idle_timeout=60)
    with peers(1) as (address,):
        yield address


def test_a_routers_connections_belong_to_who_asked_for_them(address: str) -> None:
    async def main() -> None:
        router = Router([], None)
        clients = [await router.get_client(address) for _ in range(2)]
        clients.append(await router.get_client_via_type(address, SocketClient))
        assert len({id(client) for client in clients}) == 3
        for client in clients:
            await client.send(message("asked"))
            assert (await client.recv()).result == "asked"
        assert xoscar_idle.connections() == []
        for client in clients:
            await client.close()

    asyncio.run(main())


def test_cancelled_tasks_of_a_caller_end_its_connections(address: str) -> None:
    async def main() -> None:
        owner = ActorCaller()
        assert (await owner.call(Router([], None), address, message(1))).result == 1
        (client,) = registry.here(owner).connections()
        owner.cancel_tasks()
        await client.wait_closed()
        assert client.client.closed

    asyncio.run(main())
