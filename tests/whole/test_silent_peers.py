"""Peers that are alive to their kernel and to nobody else, for real."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Iterator
from typing import Any

import pytest
import xoscar as xo
from xoscar.backends.core import ActorCaller
from xoscar.backends.router import Router
from xoscar.errors import ServerClosed

import xoscar_idle
from xoscar_idle.connection import accepted, registry, transports

from ..support.endpoints import deaf, refusing
from ..support.hosting import Worker, pools, sockets, worker
from ..support.memory import message
from ..support.waiting import BOUND, bounded, eventually_here

pytestmark = pytest.mark.integration


@pytest.fixture(autouse=True)
def uninstalled() -> Iterator[None]:
    yield
    xoscar_idle.uninstall()


def test_stopped_sub_pool_under_a_deadline() -> None:
    xoscar_idle.install(idle_timeout=30)

    async def main() -> None:
        pool = await xo.create_actor_pool("127.0.0.1", n_process=1)
        async with pool:
            address = pool._config.get_external_addresses()[1]
            actor = await xo.create_actor(Worker, uid="worker", address=address)
            pid = await actor.pid()
            os.kill(pid, signal.SIGSTOP)
            try:
                with xoscar_idle.deadline(0.5), pytest.raises(TimeoutError, match=r"echo\(\)"):
                    await bounded(actor.echo(1))
                # A large message is not read: sending is bounded, too.
                with xoscar_idle.deadline(0.5), pytest.raises(TimeoutError, match=r"echo\(\)"):
                    await bounded(actor.echo(b"x" * (64 << 20)))
                with pytest.raises(TimeoutError, match="no sign of life"):
                    await bounded(xoscar_idle.ping(address, 0.5))
            finally:
                os.kill(pid, signal.SIGCONT)
            assert await bounded(actor.echo(2)) == 2
            assert await bounded(xoscar_idle.ping(address)) < BOUND

    asyncio.run(main())


def test_stopped_pool_under_probes() -> None:
    xoscar_idle.install(idle_timeout=30, probe_interval=0.4, probe_timeout=BOUND)

    async def main() -> None:
        actor = await worker(hosted.addresses[0])
        assert await bounded(actor.sleep(2.0, "busy is not dead")) == "busy is not dead"
        xoscar_idle.configure(probe_timeout=0.5)
        os.kill(hosted.pid, signal.SIGSTOP)
        try:
            for payload in (b"small", b"x" * (64 << 20)):
                with pytest.raises(ServerClosed, match=r"did not answer a probe within 0\.5 s"):
                    await bounded(actor.echo(payload))
        finally:
            os.kill(hosted.pid, signal.SIGCONT)
        xoscar_idle.configure(probe_timeout=BOUND)
        assert await bounded(actor.echo(2)) == 2

    with pools() as hosted:
        asyncio.run(main())


def test_pool_is_pinged_by_whatever_name_it_is_called() -> None:
    """A main pool forwards control messages that are not for its exact address, to itself."""
    xoscar_idle.install(idle_timeout=30)

    async def main() -> None:
        pool = await xo.create_actor_pool("127.0.0.1", n_process=0)
        async with pool:
            port = pool.external_address.rpartition(":")[2]
            assert await bounded(xoscar_idle.ping(pool.external_address)) < BOUND
            assert await bounded(xoscar_idle.ping(f"localhost:{port}")) < BOUND
        for address in hosted.addresses:
            name = address.replace("127.0.0.1", "localhost")
            assert await bounded(xoscar_idle.ping(name)) < BOUND

    with pools(1, 1) as hosted:
        asyncio.run(main())


def test_peer_that_accepts_and_never_answers() -> None:
    xoscar_idle.install(idle_timeout=30, call_timeout=0.5)

    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as mute:
            address = f"127.0.0.1:{mute.getsockname()[1]}"
            with xoscar_idle.deadline(0.5), pytest.raises(TimeoutError, match=address):
                await bounded(worker(address))
            ref = xo.create_actor_ref(address, b"worker")
            with pytest.raises(TimeoutError, match=r"echo\(\) of actor worker"):
                await bounded(ref.echo(1))

    asyncio.run(main())


def test_connect_that_never_completes() -> None:
    xoscar_idle.install(idle_timeout=30, connect_timeout=0.5)

    async def main() -> None:
        with deaf() as address, pytest.raises(ConnectionError, match=f"{address} took 0.5"):
            await bounded(worker(address))
        with refusing() as address, pytest.raises(ConnectionError):
            await bounded(xoscar_idle.ping(address, BOUND))

    asyncio.run(main())


def test_peer_that_stops_reading_cannot_hold_a_close(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transports, "CLOSE_TIMEOUT", 0.3)
    xoscar_idle.install(idle_timeout=0.5)

    async def main() -> None:
        before = sockets()
        actor = await worker(hosted.addresses[0])
        os.kill(hosted.pid, signal.SIGSTOP)
        try:
            with xoscar_idle.deadline(0.3), pytest.raises(TimeoutError):
                await bounded(actor.echo(b"x" * (64 << 20)))
            monkeypatch.setattr("xoscar_idle.connection.caller.CANCEL_TIMEOUT", 0.3)
            await eventually_here(lambda: sockets() == before)
        finally:
            os.kill(hosted.pid, signal.SIGCONT)

    with pools(quiet=True) as hosted:
        asyncio.run(main())


# -- the accepting side --------------------------------------------------------------------------


def keepalive_of(sock: Any) -> tuple[int, int, int]:
    return (
        sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE),
        sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE),
        sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL),
    )


def test_keepalive_follows_the_idle_timeout_on_both_sides() -> None:
    xoscar_idle.install(idle_timeout=27)

    def both() -> list[tuple[int, int, int]]:
        ended = [c for a in accepted._loops.values() for c in a.in_process()]
        opened = [c.client.channel for a in registry.everywhere() for c in a._all.values()]
        sides = [c for c in ended + opened if type(c).name == "socket" and c.type == 2]
        return [keepalive_of(c.writer.get_extra_info("socket")) for c in sides]

    async def main() -> None:
        pool = await xo.create_actor_pool("127.0.0.1", n_process=0)
        async with pool:
            owner = ActorCaller()
            await owner.call(Router([], None), pool.external_address, message("main_pool_address"))
            assert both() == [(1, 9, 3)] * 2
            xoscar_idle.configure(idle_timeout=60)
            await eventually_here(lambda: both() == [(1, 20, 7)] * 2)
            await owner.stop()

    asyncio.run(main())


def test_accepted_connection_that_stays_idle_is_closed() -> None:
    """But not one with a request in process."""

    async def main() -> None:
        before = sockets(hosted.pid)
        actor = await worker(hosted.addresses[0])
        call = asyncio.ensure_future(actor.hold("in process"))
        await eventually_here(lambda: xoscar_idle.statistics().requests_in_flight)
        opened = xoscar_idle.statistics().opened
        # One that is opened later is closed, so the time of the other one has passed, too.
        reader, writer = await asyncio.open_connection(*hosted.addresses[0].split(":"))
        assert await bounded(reader.read()) == b"", "closed by the server"
        writer.close()
        assert not call.done()
        await actor.release()
        assert await bounded(call) == "in process"
        assert xoscar_idle.statistics().opened == opened
        await eventually_here(lambda: sockets(hosted.pid) == before)
        await eventually_here(lambda: not xoscar_idle.connections())  # known here, too
        assert await actor.echo("again") == "again"

    with pools(XOSCAR_IDLE_TIMEOUT="0.2", XOSCAR_SERVER_IDLE_TIMEOUT="0.5") as hosted:
        xoscar_idle.install(idle_timeout=30)
        asyncio.run(main())
