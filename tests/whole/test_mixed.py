"""Processes with and without us, and other circumstances in which pools are run."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest
import xoscar as xo
from xoscar.backends.indigen.pool import MainActorPool

import xoscar_idle

from ..support.hosting import Worker, pools, sockets, worker
from ..support.waiting import eventually_here

pytestmark = pytest.mark.integration

SECRET = "9f" * 32


@pytest.fixture(autouse=True)
def uninstalled() -> Iterator[None]:
    yield
    xoscar_idle.uninstall()


async def cycles(addresses: list[str], closes: bool) -> None:
    """Calls with pauses, and whether the connections are gone in these."""
    before = sockets()
    for i in range(2):
        for address in addresses:
            assert await (await worker(address)).echo(i) == i
        if closes:
            await eventually_here(lambda: sockets() == before)
        else:
            await asyncio.sleep(0.5)


def test_our_client_and_stock_servers() -> None:
    xoscar_idle.install(idle_timeout=0.2)
    with pools(3, XOSCAR_IDLE_TIMEOUT="off") as hosted:
        asyncio.run(cycles(hosted.addresses, closes=True))


def test_stock_client_and_our_servers() -> None:
    with pools(3, 1, XOSCAR_IDLE_TIMEOUT="0.2") as hosted:
        asyncio.run(cycles(hosted.addresses, closes=False))


def test_with_an_authentication_key() -> None:
    """Read by xoscar when it is imported, so the client is a process of its own, too."""
    xoscar_idle.install(idle_timeout=0.3)
    environment: dict[str, Any] = {"XOSCAR_AUTH_KEY": SECRET, "XOSCAR_IDLE_TIMEOUT": "0.3"}
    with pools(2, **environment) as others, pools(1, 1, **environment) as hosted:
        context = multiprocessing.get_context("spawn")
        os.environ["XOSCAR_AUTH_KEY"] = SECRET
        try:
            child = context.Process(target=_visit, args=(hosted.addresses[1], others.addresses))
            child.start()
        finally:
            del os.environ["XOSCAR_AUTH_KEY"]
        child.join(60)
        assert child.exitcode == 0


def _visit(address: str, others: list[str]) -> None:
    async def main() -> None:
        actor = await worker(address)
        for i in range(2):
            assert await actor.visit(others, i) == [i] * len(others)
            await asyncio.sleep(0.6)

    asyncio.run(main())


def _child(addresses: list[str]) -> None:
    assert xoscar_idle.is_active()
    asyncio.run(cycles(addresses, closes=True))


@pytest.mark.parametrize("method", multiprocessing.get_all_start_methods())
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_children(method: str) -> None:
    """Of every kind, started while the parent has connections, which it keeps."""
    xoscar_idle.install(idle_timeout=600)

    async def main() -> None:
        before = sockets()
        for address in hosted.addresses:
            await (await worker(address)).echo(0)
        opened = sockets() - before
        assert opened == len(hosted.addresses)
        os.environ["XOSCAR_IDLE_TIMEOUT"] = "0.2"
        context: Any = multiprocessing.get_context(method)
        child = context.Process(target=_configured_child, args=(hosted.addresses,))
        child.start()
        await asyncio.to_thread(child.join, 60)
        assert child.exitcode == 0
        for address in hosted.addresses:
            assert await (await worker(address)).echo(1) == 1

    with pools(3) as hosted:
        asyncio.run(main())


def _configured_child(addresses: list[str]) -> None:
    import xoscar  # noqa: F401

    xoscar_idle.install(idle_timeout=0.2)
    _child(addresses)


@pytest.mark.skipif(
    not hasattr(MainActorPool, "handoff_to"), reason="xoscar 0.12 has the hand-over, not this one"
)
def test_hand_over_of_a_main_pool() -> None:
    """Sub-pools get another main pool while connections idle and reopen."""
    xoscar_idle.install(idle_timeout=0.2)

    async def main() -> None:
        pool = await xo.create_actor_pool("127.0.0.1", n_process=1)
        async with pool:
            address = pool._config.get_external_addresses()[1]
            moved = await xo.create_actor(Worker, uid="moved", address=address)
            pid = await moved.pid()
            await asyncio.sleep(0.5)
            assert await pool.handoff_to(hosted.addresses[0]) == [address]
            await asyncio.sleep(0.5)
            assert await moved.echo(1) == 1
        await asyncio.sleep(0.5)
        assert await moved.pid() == pid

    with pools(XOSCAR_IDLE_TIMEOUT="0.2") as hosted:
        asyncio.run(main())


def test_worker_killed_and_recovered_while_connections_idle() -> None:
    xoscar_idle.install(idle_timeout=0.2)

    async def main() -> None:
        pool = await xo.create_actor_pool("127.0.0.1", n_process=1)
        async with pool:
            address = pool._config.get_external_addresses()[1]
            await xo.create_actor(Worker, uid="worker", address=address)
            for _ in range(2):
                pid = await (await worker(address)).pid()
                os.kill(pid, signal.SIGKILL)
                await eventually_here(lambda: pool.sub_processes[address].returncode is not None)
                await xo.wait_actor_pool_recovered(address, pool.external_address)
                assert await (await worker(address)).pid() != pid
                await asyncio.sleep(0.5)

    asyncio.run(main())
