"""A bounded number of connections, and a bounded life of each."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import resource
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from xoscar.backends.core import ActorCaller as Owner
from xoscar.backends.router import Router

import xoscar_idle
from xoscar_idle import config
from xoscar_idle.connection import cap as caps
from xoscar_idle.connection import registry
from xoscar_idle.connection.caller import ActorCaller
from xoscar_idle.connection.cap import Cap

from ..conftest import Run
from ..support.environment import environment
from ..support.hosting import sockets
from ..support.memory import Network, VirtualTimeLoop, message, settle
from ..support.peers import peers
from ..support.processes import run
from ..support.waiting import BOUND

pytestmark = pytest.mark.integration


async def visit(caller: ActorCaller, network: Network, route: str) -> None:
    """One call, answered at once."""
    reply = await caller.call(network, route, sent := message(), wait=False)
    connection = next(c for c in reversed(network.opened) if c.dest_address == route)
    connection.reply(sent)
    await reply


# -- the cap -------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 9), max_size=80), st.integers(1, 6))
@hypothesis_settings(max_examples=100, deadline=None)
def test_what_makes_room_is_the_least_recently_used(visits: list[int], limit: int) -> None:
    async def main() -> None:
        network, cap = Network(), Cap(limit)
        caller = ActorCaller(clock=loop.time, cap=cap)
        model: list[str] = []  # open routes, the least recently used first
        for each in visits:
            route = f"{each}:1"
            await visit(caller, network, route)
            if route in model:
                model.remove(route)
            model = [*model, route][-limit:]
            assert {c.dest_address for c in network.opened if not c.closed} == set(model)
            assert cap.count == len(model)
        assert cap.exceeded == 0
        await caller.stop()

    loop = VirtualTimeLoop()
    loop.run_until_complete(main())
    loop.close()


class WithCap:
    @pytest.fixture
    def settings(self) -> config.Settings:
        return config.Settings(max_connections=2)


class TestCap(WithCap):
    def test_connections_in_use_are_never_closed_for_it(self, in_virtual_time: Run) -> None:
        async def test(caller: ActorCaller, network: Network) -> None:
            replies = [
                await caller.call(network, f"{i}:1", message(), wait=False) for i in range(5)
            ]
            assert not any(c.closed for c in network.opened)
            assert caller._cap.exceeded == 3
            for reply in replies[:4]:
                reply.cancel()
                await settle()
            # What falls idle while there are too many goes at once, the first to fall idle first.
            assert [c.closed for c in network.opened] == [True, True, True, False, False]
            replies[4].cancel()

        in_virtual_time(test)

    def test_connects_under_way_count(self, in_virtual_time: Run) -> None:
        async def test(caller: ActorCaller, network: Network) -> None:
            await visit(caller, network, "idle:1")
            network.dialing.clear()
            dials = [
                asyncio.ensure_future(caller.call(network, f"{i}:1", message(), wait=False))
                for i in range(2)
            ]
            await settle()
            assert network.opened[0].closed
            network.dialing.set()
            for dial in dials:
                (await dial).cancel()
            assert caller._cap.count == 2

        in_virtual_time(test)

    def test_failed_and_cancelled_connects_count_no_longer(self, in_virtual_time: Run) -> None:
        async def test(caller: ActorCaller, network: Network) -> None:
            network.failure = ConnectionRefusedError(111, "refused")
            for i in range(5):
                with pytest.raises(ConnectionRefusedError):
                    await caller.call(network, f"{i}:1", message())
            network.dialing.clear()
            call = asyncio.ensure_future(caller.call(network, "x:1", message()))
            await settle()
            assert caller._cap.count == 1
            caller.close("stop")
            await settle()
            assert call.done()
            assert call.exception()
            assert caller._cap.count == 0

        in_virtual_time(test)

    def test_other_callers_of_the_loop_make_room(self, in_virtual_time: Run) -> None:
        async def test(caller: ActorCaller, network: Network) -> None:
            other = ActorCaller(clock=caller.clock, cap=caller._cap)
            await visit(other, network, "0:1")
            await asyncio.sleep(1)
            await visit(caller, network, "1:1")
            await visit(caller, network, "2:1")
            assert [c.closed for c in network.opened] == [True, False, False]
            await other.stop()

        in_virtual_time(test)

    def test_in_process_connections_do_not_count(self, in_virtual_time: Run) -> None:
        async def test(caller: ActorCaller, network: Network) -> None:
            for i in range(5):
                await visit(caller, network, f"dummy://{i}")
            await visit(caller, network, "0:1")
            assert caller._cap.count == 1
            assert not any(c.closed for c in network.opened)

        in_virtual_time(test)


async def ask(owner: Owner, router: Router, address: str, content: Any = None) -> Any:
    return (await owner.call(router, address, message(content))).result


class Stuck:
    """A member whose loop does not answer, unless it is told to."""

    def __init__(self) -> None:
        self.loop: Any = self
        self.asked: list[Any] = []
        self.closed: list[str] = []

    def is_running(self) -> bool:
        return True

    def call_soon_threadsafe(self, callback: Any) -> None:
        self.asked.append(callback)

    def idlest(self) -> Any:
        return 1.0, self

    def close(self, reason: str) -> None:
        self.closed.append(reason)


@pytest.mark.parametrize("relieve", [False, True])
def test_loops_that_do_not_answer_are_waited_for_a_second_in_all(relieve: bool) -> None:
    cap, members, loop = Cap(1), [Stuck() for _ in range(5)], VirtualTimeLoop()
    seats = [cap.take() for _ in range(2)]
    for member in members:
        cap.join(member)
    started = loop.time()
    loop.run_until_complete(cap.relieve() if relieve else cap.make_room())
    loop.close()
    assert loop.time() - started == pytest.approx(caps.ASK_TIMEOUT)
    assert [len(member.asked) for member in members] == [1] * 5, "each had its chance"
    assert cap.exceeded == (not relieve)
    for member in members:  # they answer after all, when nobody waits any more
        member.asked[0]()
    assert not any(member.closed for member in members)
    seats[0].leave()
    seats[0].leave()
    assert cap.count == 1


def test_two_thousand_endpoints_with_a_cap_of_64(active: None) -> None:
    exceeded = caps.process.exceeded
    xoscar_idle.install(idle_timeout=60, max_connections=64)

    async def main(addresses: list[str]) -> None:
        owner, router, before = Owner(), Router([], None), sockets()
        most = 0
        for round_ in range(2):
            for i, address in enumerate(addresses):
                assert await ask(owner, router, address, (round_, i)) == (round_, i)
                if i % 10 == 0:
                    most = max(most, sockets() - before)
                    assert caps.process.count <= 64
        assert most <= 64
        assert caps.process.exceeded == exceeded
        await owner.stop()

    with peers(2000) as addresses:
        asyncio.run(main(addresses))


def test_eight_threads_share_one_cap(active: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caps, "ASK_TIMEOUT", BOUND)  # on a busy machine an answer takes a while
    xoscar_idle.install(idle_timeout=60, max_connections=40)
    failures: list[BaseException] = []
    counts: list[int] = []

    async def main(addresses: list[str], seed: int) -> None:
        owner, router, rng = Owner(), Router([], None), random.Random(seed)
        for i in range(300):
            assert await ask(owner, router, rng.choice(addresses), i) == i
            counts.append(caps.process.count)
        barrier_reached.release()
        await asyncio.to_thread(go_home.wait)  # what is idle here makes room for the others

    def thread(addresses: list[str], seed: int) -> None:
        try:
            asyncio.run(main(addresses, seed))
        except BaseException as error:
            failures.append(error)
            barrier_reached.release()

    barrier_reached, go_home = threading.Semaphore(0), threading.Event()
    before = sockets()
    with peers(100) as addresses:
        threads = [threading.Thread(target=thread, args=(addresses, n)) for n in range(8)]
        for each in threads:
            each.start()
        for _ in threads:
            barrier_reached.acquire()
        # Each loop has two or three descriptors of its own.
        at_rest = caps.process.count
        go_home.set()
        for each in threads:
            each.join()
    assert not failures
    assert at_rest <= 40
    # At most one connect per thread is under way beyond what it has asked to be closed.
    assert max(counts) <= 40 + len(threads)
    assert sockets() == before
    assert caps.process.count == 0


@contextlib.contextmanager
def another_loop(addresses: list[str], stuck: bool = False) -> Iterator[None]:
    """In a thread: it has called these, one after the other, and runs on or stands still."""
    called, leave = threading.Event(), threading.Event()

    async def main() -> None:
        owner, router = Owner(), Router([], None)
        for i, address in enumerate(addresses):
            assert await ask(owner, router, address, i) == i
        called.set()
        if stuck:
            leave.wait()
        else:
            await asyncio.to_thread(leave.wait)

    thread = threading.Thread(target=asyncio.run, args=(main(),))
    thread.start()
    assert called.wait(BOUND)
    try:
        yield
    finally:
        leave.set()
        thread.join()


@pytest.mark.parametrize("stuck", [False, True])
def test_another_loop_makes_room_if_it_can(
    active: None, stuck: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It closes what it used least recently; one that does not answer is not waited for."""
    if not stuck:
        monkeypatch.setattr(caps, "ASK_TIMEOUT", BOUND)
    xoscar_idle.install(idle_timeout=60, max_connections=2)
    exceeded = caps.process.exceeded

    async def main(address: str) -> set[str]:
        owner, router = Owner(), Router([], None)
        assert await ask(owner, router, address, "here") == "here"
        return {each.address for each in xoscar_idle.connections()}

    with peers(3) as (oldest, newer, ours), another_loop([oldest, newer], stuck):
        expected = {oldest, newer, ours} if stuck else {newer, ours}
        assert asyncio.run(main(ours)) == expected
    assert caps.process.exceeded == exceeded + stuck


VISITOR = """
import asyncio, sys
from tests.support.memory import message
from xoscar.backends.core import ActorCaller
from xoscar.backends.router import Router
async def main():
    owner, router = ActorCaller(), Router([], None)
    for i, address in enumerate(sys.argv[1:]):
        assert (await owner.call(router, address, message(i))).result == i
asyncio.run(main())
"""


def test_auto_never_runs_out_of_descriptors() -> None:
    """With 256 descriptors, 1000 endpoints: stock xoscar fails."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))

    def visit(status: int, **settings: str) -> str:
        command = (sys.executable, "-c", VISITOR, *addresses)
        env = environment(**settings)
        return run(*command, status=status, env=env, preexec_fn=limit).stderr

    with peers(1000) as addresses:
        assert "Too many open files" in visit(1)
        visit(0, XOSCAR_IDLE_TIMEOUT="60", XOSCAR_MAX_CONNECTIONS="auto")
        # Without a cap: running out of descriptors closes what is idle, and one more try is made.
        visit(0, XOSCAR_IDLE_TIMEOUT="60")


# -- the age -------------------------------------------------------------------------------------


class TestAge:
    @pytest.fixture
    def settings(self) -> config.Settings:
        return config.Settings(max_connection_age=100)

    def test_old_connection_takes_no_new_calls(self, in_virtual_time: Run) -> None:
        async def test(caller: ActorCaller, network: Network) -> None:
            old = await caller.call(network, "a:1", first := message(), wait=False)
            await asyncio.sleep(89)
            (await caller.call(network, "a:1", message(), wait=False)).cancel()
            assert network.dials == 1
            await asyncio.sleep(12)
            young = await caller.call(network, "a:1", message(), wait=False)
            assert network.dials == 2
            assert not network.opened[0].closed, "drained, never cut"
            network.opened[0].reply(first, 1)
            assert (await old).result == 1
            await settle()
            assert network.opened[0].closed
            young.cancel()

        in_virtual_time(test)

    def test_idle_connection_is_closed_at_its_age(self, in_virtual_time: Run) -> None:
        async def test(caller: ActorCaller, network: Network) -> None:
            for _ in range(5):
                await visit(caller, network, "a:1")
                await asyncio.sleep(20.2)
            assert network.opened[0].closed

        in_virtual_time(test)

    def test_what_opened_together_is_not_replaced_together(self, in_virtual_time: Run) -> None:
        async def test(caller: ActorCaller, network: Network) -> None:
            for i in range(100):
                await caller.call(network, f"{i}:1", message(), wait=False)
            retired: dict[str, float] = {}
            while caller._clients:
                for client in caller._all.values():
                    if client.state.value == "retired":
                        retired.setdefault(client.route, caller.loop.time())
                await asyncio.sleep(0.1)
            times = sorted(retired.values())
            assert 1089.9 <= times[0] <= times[-1] <= 1100.2
            assert times[-1] - times[0] > 5

        in_virtual_time(test)

    def test_age_is_checked_at_look_up(self, in_virtual_time: Run) -> None:
        async def test(caller: ActorCaller, network: Network) -> None:
            config.use(config.Settings(idle_timeout=0, max_connection_age=100))
            await visit(caller, network, "a:1")
            caller.loop.now += 101  # type: ignore[attr-defined]  # suspended: no timer has fired
            await visit(caller, network, "a:1")
            assert network.dials == 2

        in_virtual_time(test)


def test_constant_load_with_an_age(active: None) -> None:
    """10,000 calls over connections that live for a fraction of that."""
    xoscar_idle.install(idle_timeout=60, max_connection_age=0.2)
    opened: list[str] = []

    async def main(addresses: list[str]) -> None:
        owner, router = Owner(), Router([], None)
        mine = registry.here(owner)

        async def load(n: int) -> None:
            for i in range(n):
                address = addresses[i % len(addresses)]
                assert await ask(owner, router, address, i) == i
                retired = [c for c in mine._all.values() if c.state.value == "retired"]
                assert all(c.refs for c in retired), "outlives the calls in flight"

        real = mine._connects._connected

        def counted(*args: Any) -> None:
            opened.append(args[0].route)
            real(*args)

        mine._connects._connected = counted  # type: ignore[method-assign, assignment]
        await asyncio.gather(*(load(625) for _ in range(16)))
        await owner.stop()

    with peers(4) as addresses:
        asyncio.run(main(addresses))
    assert all(opened.count(address) > 1 for address in addresses), "each has been replaced"


# -- connecting ----------------------------------------------------------------------------------


def test_connect_timeout_says_where_how_long_and_how_many(in_virtual_time: Run) -> None:
    async def test(caller: ActorCaller, network: Network) -> None:
        network.dialing.clear()
        started = caller.loop.time()
        errors = await asyncio.gather(
            *(caller.call(network, "unixsocket:///1", message()) for _ in range(3)),
            return_exceptions=True,
        )
        assert caller.loop.time() - started == 8
        expected = "connect timeout (connecting to unixsocket:///1 took 8.00 s, 3 callers waited)"
        assert [str(e) for e in errors] == [expected] * 3
        assert {type(e) for e in errors} == {ConnectionError}
        assert network.dials == 1

    in_virtual_time(test)


def test_refused_connect_keeps_its_type_and_number(in_virtual_time: Run) -> None:
    async def test(caller: ActorCaller, network: Network) -> None:
        network.failure = ConnectionRefusedError(111, "Connect call failed")
        with pytest.raises(
            ConnectionRefusedError, match=r"failed \(connecting to a:1 took 0\.00 s\)$"
        ) as e:
            await caller.call(network, "a:1", message())
        assert e.value.errno == 111

    in_virtual_time(test)


def test_settings_of_a_pool_win(in_virtual_time: Run) -> None:
    async def test(caller: ActorCaller, network: Network) -> None:
        network._comm_config = {"idle_timeout": 5, "connect_timeout": "2"}
        await visit(caller, network, "a:1")
        await asyncio.sleep(5.1)
        assert network.opened[0].closed
        network.dialing.clear()
        started = caller.loop.time()
        with pytest.raises(ConnectionError, match=r"took 2\.00 s"):
            await caller.call(network, "unixsocket:///1", message())
        assert caller.loop.time() - started == 2
        network._comm_config = {"connect_timeout": "soon"}
        with pytest.raises(ValueError, match=r"extra_conf\['connect_timeout'\] must be .* 'soon'"):
            await caller.call(network, "a:1", message())

    in_virtual_time(test)


def test_changed_settings_hold_for_open_connections(in_virtual_time: Run) -> None:
    async def test(caller: ActorCaller, network: Network) -> None:
        for i in range(3):
            await visit(caller, network, f"{i}:1")
            await asyncio.sleep(1)
        busy = await caller.call(network, "busy:1", message(), wait=False)
        config.use(config.Settings(idle_timeout=2))
        caller.apply_settings()
        caller._validate()
        await settle()
        assert [c.closed for c in network.opened] == [True, True, False, False]
        await asyncio.sleep(1.1)
        assert network.opened[2].closed
        config.use(config.Settings(idle_timeout=0, max_connection_age=50))
        caller.apply_settings()
        await asyncio.sleep(51)
        assert caller._all[network.opened[3]].state.value == "retired"
        busy.cancel()

    in_virtual_time(test)


def test_configure(active: None) -> None:
    with pytest.raises(RuntimeError, match=r"call install\(\) first"):
        xoscar_idle.configure(idle_timeout=3)
    xoscar_idle.install(idle_timeout=60)
    xoscar_idle.configure(max_connections=7, idle_timeout=50)
    assert xoscar_idle.settings() == config.Settings(idle_timeout=50, max_connections=7)
    assert caps.process.limit == 7
    assert os.environ["XOSCAR_MAX_CONNECTIONS"] == "7"
    with pytest.raises(ValueError, match="max_connections"):
        xoscar_idle.configure(max_connections=-7)
    assert xoscar_idle.settings().max_connections == 7
    xoscar_idle.uninstall()
    assert "XOSCAR_MAX_CONNECTIONS" not in os.environ
    assert caps.process.limit == 0
