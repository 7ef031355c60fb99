"""Loops that move between threads, stand still, outlive who used them, or start tasks at once."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import CoroutineType
from typing import Any

import pytest
import uvloop
from xoscar.backends.core import ActorCaller as Owner
from xoscar.backends.router import Router
from xoscar.errors import ServerClosed

import xoscar_idle
from xoscar_idle.connection import cap as caps
from xoscar_idle.connection import registry
from xoscar_idle.connection.caller import ActorCaller
from xoscar_idle.connection.cap import Cap

from ..support.hosting import pools, sockets, worker
from ..support.memory import Network, VirtualTimeLoop, message, settle
from ..support.peers import peers

pytestmark = pytest.mark.integration

BOUND = 20.0
LOOPS = [asyncio.new_event_loop, uvloop.new_event_loop]

NewLoop = Callable[[], asyncio.AbstractEventLoop]


@pytest.fixture(params=LOOPS, ids=["asyncio", "uvloop"])
def loop(request: pytest.FixtureRequest, active: None) -> Iterator[asyncio.AbstractEventLoop]:
    """A loop on which nothing goes wrong unnoticed."""
    errors: list[Any] = []
    xoscar_idle.install(idle_timeout=30)
    made = request.param()
    made.set_exception_handler(lambda _, context: errors.append(context))
    yield made
    if not made.is_closed():
        left = [t for t in asyncio.all_tasks(made) if not t.done()]
        made.close()
        assert not left
    assert not errors


def in_a_thread(work: Callable[[], Any]) -> Any:
    """What ``work`` returns, in a thread that then ends."""
    result: list[Any] = []
    thread = threading.Thread(target=lambda: result.append(work()))
    thread.start()
    thread.join(BOUND)
    assert result, "the thread hangs, or has failed"
    return result[0]


async def replies(calls: list[asyncio.Future[Any]]) -> list[Any]:
    return await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), BOUND)


async def in_flight(actor: Any, n: int, seconds: float) -> list[asyncio.Future[Any]]:
    """Calls that have been sent and have no reply yet."""
    calls = [asyncio.ensure_future(actor.sleep(seconds, i)) for i in range(n)]
    while xoscar_idle.statistics().requests_in_flight < n:  # noqa: ASYNC110
        await asyncio.sleep(0)
    return calls


async def stop() -> None:
    for caller in registry.everywhere():
        if caller.loop is asyncio.get_running_loop():
            await caller.stop()


def test_calls_in_flight_when_a_loop_moves_to_another_thread(
    loop: asyncio.AbstractEventLoop,
) -> None:
    async def begin() -> list[asyncio.Future[Any]]:
        return await in_flight(await worker(hosted.addresses[0]), 4, 0.2)

    async def echo() -> Any:
        return await (await worker(hosted.addresses[0])).echo(5)

    with pools(1) as hosted, ThreadPoolExecutor(1) as other:
        calls = loop.run_until_complete(begin())
        opened = xoscar_idle.statistics().opened
        got = other.submit(lambda: loop.run_until_complete(replies(calls))).result(BOUND)
        assert got == [0, 1, 2, 3]
        for _ in range(2):  # back and forth, over the connection that there is
            assert loop.run_until_complete(echo()) == 5
            assert other.submit(lambda: loop.run_until_complete(echo())).result(BOUND) == 5
        assert xoscar_idle.statistics().opened == opened
        loop.run_until_complete(stop())


def test_a_loop_that_runs_on_when_its_first_thread_has_ended(
    loop: asyncio.AbstractEventLoop,
) -> None:
    """Its connections go with it, and are still found for ends of all kinds."""
    owner, router = Owner(), Router([], None)

    async def ask(address: str) -> int:
        reply = await asyncio.wait_for(owner.call(router, address, message(1)), BOUND)
        return int(reply.result)

    with peers(1) as (address,):
        in_a_thread(lambda: loop.run_until_complete(ask(address)))
        # It rested when its thread ended, so that nobody knew whether it would run again.
        assert not xoscar_idle.connections()

        ended = threading.Event()
        ready = threading.Event()

        def first() -> None:
            loop.run_until_complete(ask(address))
            ready.set()
            ended.wait(BOUND)

        thread = threading.Thread(target=first)
        thread.start()
        assert ready.wait(BOUND)

        async def while_it_ends() -> None:
            assert len(xoscar_idle.connections()) == 1
            ended.set()
            await asyncio.to_thread(thread.join)
            gc.collect()
            opened = xoscar_idle.statistics().opened
            await ask(address)
            assert xoscar_idle.statistics().opened == opened, "another connection"
            assert registry.here(owner).thread == threading.get_ident()

        loop.run_until_complete(while_it_ends())
        assert len(xoscar_idle.connections()) == 1
        loop.run_until_complete(stop())
        loop.run_until_complete(loop.shutdown_default_executor())


def test_calls_on_a_loop_whose_thread_has_ended_get_an_error(
    loop: asyncio.AbstractEventLoop,
) -> None:
    """The loop rested at the end of its thread, and goes on in another one."""

    async def begin() -> list[asyncio.Future[Any]]:
        return await in_flight(await worker(hosted.addresses[0]), 3, 60)

    with pools(1, quiet=True) as hosted:
        calls = in_a_thread(lambda: loop.run_until_complete(begin()))
        gc.collect()
        got = loop.run_until_complete(replies(calls))
        assert [type(each) for each in got] == [ServerClosed] * 3
        loop.run_until_complete(settle())


@pytest.mark.parametrize("connecting", [False, True])
def test_an_owner_is_collected_while_its_loop_stands_still(
    loop: asyncio.AbstractEventLoop, connecting: bool
) -> None:
    before, seats = sockets(), caps.process.count

    async def use(owner: Owner, address: str) -> asyncio.Future[Any] | None:
        if not connecting:
            await owner.call(Router([], None), address, message(1))
            return None
        call: asyncio.Future[Any] = asyncio.ensure_future(
            owner.call(Router([], None), address, message(1))
        )
        while not registry.here(owner)._connects.all:  # noqa: ASYNC110
            await asyncio.sleep(0)
        return call

    async def go_on(call: asyncio.Future[Any] | None) -> None:
        if call is not None:
            with pytest.raises(ServerClosed):
                await asyncio.wait_for(call, BOUND)
        await settle()
        assert asyncio.all_tasks() == {asyncio.current_task()}

    with peers(1) as (address,):
        owner = Owner()
        call = loop.run_until_complete(use(owner, address))
        del owner
        gc.collect()
        loop.run_until_complete(go_on(call))
        del call
        gc.collect()
        loop.run_until_complete(settle())
        assert caps.process.count == seats
        loop.close()
    assert sockets() <= before


@pytest.mark.parametrize("new_loop", LOOPS)
def test_the_cap_holds_for_what_falls_idle_while_its_loop_rests(new_loop: NewLoop) -> None:
    """As where a program cancels what is left on a loop before closing it."""

    async def call_two() -> tuple[ActorCaller, list[Any]]:
        caller = ActorCaller(cap=Cap(1))
        routes = ("first:1", "second:1")
        return caller, [await caller.call(network, r, message(), wait=False) for r in routes]

    loop, network = new_loop(), Network()
    caller, replies = loop.run_until_complete(call_two())
    assert caller._cap.surplus == 1
    replies[0].cancel()
    assert caller._cap.surplus == 0
    loop.run_until_complete(settle())
    assert [each.closed for each in network.opened] == [True, False]
    replies[1].cancel()
    loop.run_until_complete(caller.stop())
    loop.close()


def test_two_loops_deal_with_ends_of_connections_at_the_same_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each waits, where it notices the end, until the other one does so, too."""
    together = threading.Barrier(2)
    errors: list[Any] = []
    real = ActorCaller.closed

    def closed(self: ActorCaller, client: Any) -> None:
        together.wait(BOUND)
        real(self, client)

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, c: errors.append(c))
        caller, network = ActorCaller(cap=Cap()), Network()
        await caller.get_client(network, "a:1")
        network.opened[0].hang_up()
        await settle()
        if caller._all:
            errors.append(caller)

    monkeypatch.setattr(ActorCaller, "closed", closed)
    threads = [threading.Thread(target=lambda: asyncio.run(main())) for _ in range(2)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert not errors


def factories() -> list[Any]:
    """Factories of tasks that are not the loop's own."""

    def refuses_ours(
        loop: asyncio.AbstractEventLoop, work: CoroutineType[Any, Any, Any], **options: Any
    ) -> asyncio.Task[Any]:
        # One of ours may be an eager one, by whatever name.
        assert "xoscar_idle" not in work.cr_code.co_filename, work
        return asyncio.Task(work, loop=loop, **options)

    eager = getattr(asyncio, "eager_task_factory", None)  # Python 3.12
    return [refuses_ours] + ([eager] if eager is not None else [])


@pytest.mark.parametrize("factory", factories())
def test_tasks_of_ours_begin_when_all_is_in_its_place(factory: Any) -> None:
    """A peer that hangs up at once ends a connection's task in its first step, if it is eager."""
    loop = VirtualTimeLoop()
    errors: list[Any] = []
    loop.set_exception_handler(lambda _, context: errors.append(context))
    cap = Cap(3)

    async def main() -> None:
        caller, network = ActorCaller(clock=loop.time, cap=cap), Network()
        loop.set_task_factory(factory)
        create = network._create_client

        async def hangs_up(*args: Any, **kw: Any) -> Any:
            connection = await create(*args, **kw)
            connection.hang_up()
            return connection

        network._create_client = hangs_up  # type: ignore[method-assign]
        for i in range(20):
            await caller.get_client(network, f"{i % 5}:1")
            await settle(i % 3)
            caller._validate()
        network._create_client = create  # type: ignore[method-assign]
        await settle()
        reply = await caller.call(network, "a:1", sent := message(), wait=False)
        network.opened[-1].reply(sent)
        await reply
        loop.set_task_factory(None)
        await asyncio.sleep(31)
        caller._validate()
        assert not caller._all
        await caller.stop()

    loop.run_until_complete(main())
    loop.close()
    assert not errors
    assert cap.count == 0
