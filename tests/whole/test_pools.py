"""Real pools in real processes: what is idle is closed, and nothing is lost."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import threading
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvloop
import xoscar as xo

import xoscar_idle
from xoscar_idle.connection import deadlines, registry

from ..support.endpoints import HOST
from ..support.hosting import Worker, connections_to, pools, sockets, worker
from ..support.virtual_environments import Environment
from ..support.waiting import BOUND, eventually_here, eventually_told

pytestmark = pytest.mark.integration

LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


@pytest.fixture
def install() -> Iterator[Callable[..., Any]]:
    """``xoscar_idle.install``, undone after the test."""
    yield xoscar_idle.install
    xoscar_idle.uninstall()


def run_on(loop: str, main: Coroutine[Any, Any, Any]) -> Any:
    """``asyncio.run`` on a loop of the given kind."""
    if not hasattr(asyncio, "Runner"):  # Python 3.10
        asyncio.set_event_loop_policy(uvloop.EventLoopPolicy() if loop == "uvloop" else None)
        try:
            return asyncio.run(main)
        finally:
            asyncio.set_event_loop_policy(None)
    with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
        return runner.run(main)


async def idle_cycles(addresses: list[str], server: int) -> None:
    """Three times: open, fall idle, closed; on both sides."""
    here, there = sockets(), sockets(server)
    opened = xoscar_idle.statistics().opened
    for cycle in range(1, 4):
        for address in addresses:
            assert await (await worker(address)).echo(cycle) == cycle
        assert xoscar_idle.statistics().opened >= opened + cycle * len(addresses)
        await eventually_here(lambda: (sockets(), sockets(server)) == (here, there))
    (mine,) = [c for c in registry.everywhere() if c.loop is asyncio.get_running_loop()]
    # Nothing open, nothing running; a socket goes a turn of the loop before what held it.
    await eventually_here(lambda: (mine._check, mine._all) == (None, {}))


@pytest.mark.parametrize("loop", LOOPS)
def test_descriptors_return_over_three_idle_cycles(loop: str, install: Any) -> None:
    install(idle_timeout=0.4)
    with pools(5) as hosted:
        run_on(loop, idle_cycles(hosted.addresses, hosted.pid))


@pytest.mark.parametrize("loop", LOOPS)
def test_descriptors_return_in_a_thread(loop: str, install: Any) -> None:
    install(idle_timeout=0.4)
    failures: list[BaseException] = []

    def thread() -> None:
        try:
            run_on(loop, idle_cycles(hosted.addresses, hosted.pid))
        except BaseException as error:
            failures.append(error)

    with pools(5) as hosted:
        started = threading.Thread(target=thread)
        started.start()
        started.join()
    assert not failures


@pytest.mark.parametrize("uses_uvloop", ["0", "1"])
def test_descriptors_return_in_an_actor_of_a_sub_pool(uses_uvloop: str, install: Any) -> None:
    """Through TCP to other pools, and through unix sockets to its own main pool."""
    install(idle_timeout=0)

    async def main() -> None:
        main_address, sub_address = hosted.addresses
        actor = await worker(sub_address)
        pid = await actor.pid()
        assert await actor.active()
        await eventually_told(actor.at_rest)  # it has called its main pool when it was started
        here, there, main = sockets(pid), sockets(others.pid), sockets(hosted.pid)
        targets, opened = [*others.addresses, main_address], await actor.opened()
        for cycle in range(1, 4):
            assert await actor.visit(targets, cycle) == [cycle] * len(targets)
            assert await actor.opened() >= opened + cycle * len(targets)
            await eventually_told(actor.at_rest)
            await eventually_here(lambda: sockets(pid) <= here)
            await eventually_here(lambda: sockets(others.pid) <= there)
            await eventually_here(lambda: sockets(hosted.pid) <= main)

    with (
        pools(4) as others,
        pools(1, 1, XOSCAR_IDLE_TIMEOUT="0.4", XOSCAR_USE_UVLOOP=uses_uvloop) as hosted,
    ):
        asyncio.run(main())


@pytest.mark.parametrize("loop", LOOPS)
def test_a_thousand_calls_to_a_reaped_address_open_one_connection(loop: str, install: Any) -> None:
    install(idle_timeout=0.3)

    async def main() -> None:
        here, there = sockets(), sockets(hosted.pid)
        actor = await worker(hosted.addresses[0])
        await actor.echo(0)
        await eventually_here(lambda: (sockets(), sockets(hosted.pid)) == (here, there))
        calls = [asyncio.ensure_future(actor.echo(i)) for i in range(1000)]
        most = 0
        while not all(call.done() for call in calls):
            await asyncio.sleep(0.002)
            most = max(most, sockets() - here, sockets(hosted.pid) - there)
        assert [call.result() for call in calls] == list(range(1000))
        assert most <= 1

    with pools() as hosted:
        run_on(loop, main())


@pytest.mark.parametrize("loop", LOOPS)
def test_no_call_is_lost_while_the_reaper_closes_all_the_while(loop: str, install: Any) -> None:
    """64 callers, calls of all sizes and lengths, some cancelled, and a timeout of 50 ms."""
    install(idle_timeout=0.05)
    n_calls = int(os.environ.get("XOSCAR_IDLE_TEST_CALLS", "4000"))
    rng = random.Random(7)
    echoed = slept = cancelled = 0
    dials: list[str] = []

    async def caller(calls: Iterator[int], refs: list[Any]) -> None:
        nonlocal echoed, slept, cancelled
        for i in calls:
            actor = refs[int(len(refs) * rng.random() ** 3)]  # some often, most seldom
            payload = (i, b"x" * int(10 ** rng.uniform(0, 5)))
            kind = rng.random()
            if kind < 0.02:
                call = asyncio.ensure_future(actor.hold(payload))
                await asyncio.sleep(rng.uniform(0, 0.02))
                call.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await call
                cancelled += 1
                continue
            if kind < 0.1:
                assert await actor.sleep(rng.uniform(0, 0.2), payload) == payload
                slept += 1
            else:
                assert await actor.echo(payload) == payload
                echoed += 1
            if kind > 0.99:
                await asyncio.sleep(0.06)

    async def main() -> None:
        from xoscar_idle.connection import routing

        real = routing.connect

        async def counted(*args: Any, **kwargs: Any) -> Any:
            dials.append(args[1])
            return await real(*args, **kwargs)

        routing.connect, calls = counted, iter(range(n_calls))
        try:
            refs = [await worker(address) for address in hosted.addresses]
            await asyncio.gather(*(caller(calls, refs) for _ in range(64)))
            assert sum([await actor.echoed() for actor in refs]) == echoed, "lost or duplicated"
        finally:
            routing.connect = real

    with pools(50, quiet=True) as hosted:
        run_on(loop, main())
        assert echoed + slept + cancelled == n_calls
        assert len(dials) > 2 * len(hosted.addresses), "the reaper closed nothing"
        print(f"{echoed + slept} answered, {cancelled} cancelled, {len(dials)} connections")


def test_every_kind_of_message(install: Any) -> None:
    """Batches, generators, tells, references, creation and control, with pauses between."""
    install(idle_timeout=0.1)

    async def pause() -> None:
        await asyncio.sleep(0.25)

    async def main(address: str, sub: str) -> None:
        actor = await worker(address)
        await pause()
        assert [i async for i in await actor.count(4, 0.15)] == [0, 1, 2, 3]
        await pause()
        assert await actor.sleep(0.5, "longer than the timeout") == "longer than the timeout"
        tell = actor.echo.tell(1)
        await tell
        await pause()
        created = await xo.create_actor(Worker, uid="new", address=sub)
        await pause()
        assert await xo.has_actor(created)
        await pause()
        assert await created.echo(2) == 2
        await xo.destroy_actor(created)
        await pause()
        assert not await xo.has_actor(created)
        config = await xo.get_pool_config(address)
        assert config.get_external_addresses() == [address, sub]
        call = asyncio.ensure_future(actor.sleep(60))
        await pause()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await pause()
        assert await actor.echo(3) == 3

    with pools(1, 1, XOSCAR_IDLE_TIMEOUT="0.1") as hosted:
        asyncio.run(main(*hosted.addresses))


def test_calls_through_a_proxy(install: Any) -> None:
    install(idle_timeout=0.2)

    async def main(target: str, proxy: str) -> None:
        pool = await xo.create_actor_pool("127.0.0.1", n_process=0, proxy_conf={target: proxy})
        async with pool:
            here, there = sockets(), sockets(behind.pid)
            actor = await worker(target)
            for i in range(3):
                call = asyncio.ensure_future(actor.hold(i))
                await eventually_here(lambda: sockets(behind.pid) == there + 1)
                await actor.release()
                assert await call == i
                await eventually_here(lambda: sockets() == here)
                await eventually_here(lambda: sockets(behind.pid) == there)

    with pools() as behind, pools(XOSCAR_IDLE_TIMEOUT="0.2") as proxy:
        asyncio.run(main(behind.addresses[0], proxy.addresses[0]))


def test_sub_pools_follow(install: Any, tmp_path: Path) -> None:
    """Those made with the pool, added later, recovered, and on an interpreter without us."""
    install(idle_timeout=0.5)

    async def main() -> None:
        pool = await xo.create_actor_pool(HOST, n_process=1)
        async with pool:
            first = pool._config.get_external_addresses()[1]
            appended = await pool.append_sub_pool(env={"XOSCAR_IDLE_TIMEOUT": "7"})
            without = await pool.append_sub_pool(
                start_python=str(Environment(tmp_path / "venv").python)
            )
            actors = {
                address: await xo.create_actor(Worker, uid=f"worker-{i}", address=address)
                for i, address in enumerate((first, appended))
            }
            assert [await a.active() for a in actors.values()] == [True, True]
            assert await actors[first].environment("XOSCAR_IDLE_TIMEOUT") == "0.5"
            assert await actors[appended].environment("XOSCAR_IDLE_TIMEOUT") == "7"
            stock = await xo.create_actor(Worker, uid="stock", address=without)
            assert not await stock.active()
            here = sockets()
            assert await stock.echo(1) == 1
            await eventually_here(lambda: sockets() <= here)
            assert await stock.echo(2) == 2

            old = await actors[first].pid()
            os.kill(old, signal.SIGKILL)
            await eventually_here(lambda: pool.sub_processes[first].returncode is not None)
            await xo.wait_actor_pool_recovered(first, pool.external_address)
            recovered = await xo.actor_ref(address=first, uid="worker-0")
            assert await recovered.pid() != old
            assert await recovered.active()

    asyncio.run(main())


def test_install_after_pools_exist_and_uninstall(install: Any) -> None:
    """What was opened before is closed too; what is open at the end is handed back."""

    async def visit() -> None:
        for address in hosted.addresses:
            assert await (await worker(address)).echo(1) == 1

    def open_now() -> int:
        return connections_to(hosted.addresses)

    async def main() -> None:
        actor = await worker(hosted.addresses[0])
        slow = asyncio.ensure_future(actor.hold("slow"))
        await visit()
        assert open_now() == 5
        install(idle_timeout=0.2)
        await visit()
        await eventually_here(lambda: open_now() == 1)
        await actor.release()
        assert await slow == "slow"
        await eventually_here(lambda: open_now() == 0)

        install(idle_timeout=50)
        busy = asyncio.ensure_future(actor.hold("busy"))
        await visit()
        xoscar_idle.uninstall()
        await eventually_here(lambda: open_now() == 1)
        await actor.release()
        assert await busy == "busy"
        await eventually_here(lambda: open_now() == 1)  # stock keeps that of the release
        await visit()
        assert open_now() == 5, "stock again"

    with pools(5) as hosted:
        asyncio.run(main())


def test_an_error_names_the_pool_and_not_its_unix_socket(install: Any) -> None:
    install(idle_timeout=30)

    async def main() -> None:
        pool = await xo.create_actor_pool("127.0.0.1", n_process=1, auto_recover=False)
        async with pool:
            address = next(iter(pool.sub_processes))
            actor = await xo.create_actor(Worker, address=address)
            pid = await actor.pid()
            unix = [c for c in xoscar_idle.connections() if c.transport == "unixsocket"]
            assert {connection.address for connection in unix} == {address}
            call = asyncio.ensure_future(actor.sleep(60))
            while not xoscar_idle.statistics().requests_in_flight:  # noqa: ASYNC110
                await asyncio.sleep(0)
            os.kill(pid, signal.SIGKILL)
            with pytest.raises(xo.errors.ServerClosed) as lost:
                await call
            # Its connections may be closed before that on which it listened.
            await eventually_here(lambda: pool.sub_processes[address].returncode is not None)
            with pytest.raises(ConnectionRefusedError) as refused:
                await actor.pid()
        for error in (lost, refused):
            assert address in str(error.value)
            assert "unixsocket" not in str(error.value)

    asyncio.run(main())


def test_a_pool_that_is_made_within_a_deadline_outlives_it(install: Any) -> None:
    install(idle_timeout=30)

    async def main() -> None:
        with xoscar_idle.deadline(60):
            pool = await xo.create_actor_pool(HOST, n_process=1, auto_recover="actor")
            address = next(iter(pool.sub_processes))
            actor = await xo.create_actor(Worker, uid="worker", address=address)
            here = await xo.create_actor(Worker, uid="here", address=pool.external_address)
            scope = deadlines._scope.get()
            assert scope is not None
        object.__setattr__(scope.limit, "at", 0.0)  # it passes
        async with pool:
            assert await here.visit([address], 1) == [1]
            first = await actor.pid()
            os.kill(first, signal.SIGKILL)
            await eventually_here(lambda: pool.sub_processes[address].pid != first)
            await asyncio.wait_for(
                xo.wait_actor_pool_recovered(address, pool.external_address), BOUND
            )
            assert await (await worker(address)).pid() != first

    asyncio.run(main())
