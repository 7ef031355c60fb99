"""What xoscar opened, or was opening, before install(), and what is opened at uninstall()."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

import pytest
from xoscar.backends.communication.socket import SocketClient
from xoscar.backends.core import ActorCaller as Owner
from xoscar.backends.router import Router

import xoscar_idle
from xoscar_idle.connection import preexisting, registry

from ..support.hosting import sockets
from ..support.memory import message
from ..support.peers import peers
from ..support.waiting import eventually_here

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("active")]


class Gate:
    """Holds connects up after they have succeeded."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reached, self.open = asyncio.Event(), asyncio.Event()
        self.clients: list[Any] = []
        connect = SocketClient.connect

        async def held_up(*args: Any, **kw: Any) -> Any:
            client = await connect(*args, **kw)
            self.clients.append(client)
            self.reached.set()
            await self.open.wait()
            return client

        monkeypatch.setattr(SocketClient, "connect", held_up)


async def closed(client: Any) -> None:
    await eventually_here(lambda: client.closed)


async def test_what_xoscar_was_connecting_at_install_is_drained(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with peers(1) as (address,):
        gate, owner = Gate(monkeypatch), Owner()
        call = asyncio.ensure_future(owner.call(Router([], None), address, message(1)))
        await gate.reached.wait()
        xoscar_idle.install(idle_timeout=0.1)
        gate.open.set()
        assert (await call).result == 1
        await closed(gate.clients[0])


async def test_what_we_were_connecting_at_uninstall_serves_who_waits_and_closes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with peers(1) as (address,):
        gate, owner = Gate(monkeypatch), Owner()
        xoscar_idle.install(idle_timeout=300)
        call = asyncio.ensure_future(owner.call(Router([], None), address, message(1)))
        await gate.reached.wait()
        xoscar_idle.uninstall()
        gate.open.set()
        assert (await call).result == 1
        await closed(gate.clients[0])


async def test_draining_ends_with_uninstall() -> None:
    with peers(1) as (address,):
        owner = Owner()
        await owner.call(Router([], None), address, message(1))
        (client,) = owner._thread_local.actor_caller._clients
        running = asyncio.all_tasks()
        for _ in range(5):
            xoscar_idle.install(idle_timeout=300)
            await asyncio.sleep(0)
            xoscar_idle.uninstall()
        while preexisting._draining:  # noqa: ASYNC110
            await asyncio.sleep(0)
        assert asyncio.all_tasks() == running
        assert not client.closed
        assert (await owner.call(Router([], None), address, message(2))).result == 2
        await owner.stop()


async def test_a_timeout_that_is_set_later_drains_what_was_left() -> None:
    with peers(1) as (address,):
        owner = Owner()
        await owner.call(Router([], None), address, message(1))
        (client,) = owner._thread_local.actor_caller._clients
        xoscar_idle.install(idle_timeout=0)
        await asyncio.sleep(0)
        xoscar_idle.configure(idle_timeout=0.1)
        await closed(client)
    gc.collect()


async def test_what_is_drained_again_at_once_after_uninstall() -> None:
    with peers(1) as (address,):
        owner = Owner()
        await owner.call(Router([], None), address, message(1))
        (client,) = owner._thread_local.actor_caller._clients
        xoscar_idle.install(idle_timeout=0.1)
        await asyncio.sleep(0)
        xoscar_idle.uninstall()
        xoscar_idle.install(idle_timeout=0.1)
        await closed(client)


async def test_what_is_opened_after_uninstall_closes_after_its_use() -> None:
    """As the cancellation of a call that misses its deadline then."""
    with peers(1) as (address,):
        owner = Owner()
        xoscar_idle.install(idle_timeout=300)
        mine = registry.here(owner)
        xoscar_idle.uninstall()
        await asyncio.sleep(0)
        assert (await mine.call(Router([], None), address, message(1))).result == 1
        await eventually_here(lambda: not mine.connections())
        xoscar_idle.install(idle_timeout=300)
        await asyncio.sleep(0)
        assert (await owner.call(Router([], None), address, message(2))).result == 2
        assert len(mine.connections()) == 1
        await owner.stop()


def test_a_loop_is_watched_after_another_install() -> None:
    with peers(1, quiet=True) as (address,):
        owner, loop = Owner(), asyncio.new_event_loop()

        async def call(n: int) -> None:
            assert (await owner.call(Router([], None), address, message(n))).result == n

        xoscar_idle.install(idle_timeout=300)
        loop.run_until_complete(call(1))
        xoscar_idle.uninstall()
        xoscar_idle.install(idle_timeout=300)
        loop.run_until_complete(call(2))
        before = sockets()
        loop.close()
        assert not xoscar_idle.connections()
        assert sockets() < before
