"""Calls that end in time, whatever the other side does."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from xoscar.backends.message import CancelMessage, HasActorMessage, SendMessage, new_message_id
from xoscar.core import ActorRef
from xoscar.errors import ServerClosed

import xoscar_idle
from xoscar_idle import config
from xoscar_idle.connection.caller import ActorCaller
from xoscar_idle.connection.deadlines import CallTimeout, deadline
from xoscar_idle.connection.leases import leases

from ..conftest import Run
from ..support.memory import Network, message, settle


def send(method: str = "work", address: str = "a:1") -> SendMessage:
    """A call of an actor's method, as xoscar sends it."""
    return SendMessage(new_message_id(), ActorRef(address, b"uid"), (method, 0, (), {}))


def test_missed_deadline_names_what_was_called(in_virtual_time: Run) -> None:
    async def test(caller: ActorCaller, network: Network) -> None:
        other = await caller.call(network, "a:1", asked := message(), wait=False)
        started = caller.loop.time()
        with deadline(5), pytest.raises(CallTimeout) as caught:
            await caller.call(network, "a:1", late := send())
        assert isinstance(caught.value, TimeoutError)
        assert str(caught.value) == "work() of actor uid at a:1: no reply in 5 s"
        assert caller.loop.time() - started == 5
        await settle()
        connection, fresh = network.opened
        (cancel,) = fresh.sent
        assert isinstance(cancel, CancelMessage)
        assert cancel.cancel_message_id == late.message_id
        connection.reply(late, "too late")
        fresh.reply(cancel, True)
        connection.reply(asked, "in time")
        assert (await other).result == "in time"
        await settle()
        assert caller._clients["a:1"].refs == 0

    in_virtual_time(test)


def test_connection_on_which_nothing_came_is_not_waited_on_again(in_virtual_time: Run) -> None:
    async def test(caller: ActorCaller, network: Network) -> None:
        other = await caller.call(network, "a:1", asked := message(), wait=False)
        with deadline(5), pytest.raises(CallTimeout):
            await caller.call(network, "a:1", send())
        await settle()
        silent, fresh = network.opened
        assert isinstance(fresh.sent[0], CancelMessage), "told over a connection that may work"
        assert not silent.closed, "the calls that wait on it go on"
        silent.reply(asked, 1)
        assert (await other).result == 1
        await settle()
        assert silent.closed

    in_virtual_time(test)


def test_connection_on_which_something_came_is_kept(in_virtual_time: Run) -> None:
    async def test(caller: ActorCaller, network: Network) -> None:
        other = await caller.call(network, "a:1", asked := message(), wait=False)
        with deadline(5):
            late = asyncio.ensure_future(caller.call(network, "a:1", send()))
        await asyncio.sleep(1)
        network.opened[0].reply(asked)
        await other
        with pytest.raises(CallTimeout):
            await late
        assert network.dials == 1

    in_virtual_time(test)


def test_reply_in_time_leaves_no_timer(in_virtual_time: Run) -> None:
    async def test(caller: ActorCaller, network: Network) -> None:
        with deadline(5):
            reply = await caller.call(network, "a:1", asked := send(), wait=False)
        network.opened[0].reply(asked, 1)
        assert (await reply).result == 1
        await settle()
        timers = [t for t in caller.loop._scheduled if not t.cancelled()]  # type: ignore[attr-defined]
        assert len(timers) <= 2, "the check's, and that of the test"
        assert len(network.opened[0].sent) == 1

    in_virtual_time(test)


def test_of_nested_deadlines_the_earliest_counts(in_virtual_time: Run) -> None:
    async def test(caller: ActorCaller, network: Network) -> None:
        for outer, inner in ((2, 9), (9, 2)):
            started = caller.loop.time()
            with deadline(outer), deadline(inner), pytest.raises(CallTimeout, match="in 2 s"):
                await caller.call(network, "a:1", send())
            assert caller.loop.time() - started == 2
        with deadline(3):
            await asyncio.sleep(4)
            with pytest.raises(CallTimeout, match=r"was not sent: its deadline of 3 s had passed"):
                await caller.call(network, "a:1", late := send())
        await settle()
        assert not any(late in connection.sent for connection in network.opened)

    in_virtual_time(test)


def test_what_outlives_the_block_is_without_its_deadline(in_virtual_time: Run) -> None:
    async def test(caller: ActorCaller, network: Network) -> None:
        go_on = asyncio.Event()

        async def outlives() -> Any:
            await go_on.wait()
            return await caller.call(network, "a:1", sent, wait=False)

        async def within() -> Any:
            with deadline(100):
                return await outlives()

        sent = send()
        with deadline(2):
            for work in (outlives, within):
                task = asyncio.ensure_future(work())
                await settle()
            begun = asyncio.ensure_future(caller.call(network, "a:1", send()))
            await settle()
        await asyncio.sleep(50)
        with pytest.raises(CallTimeout, match="in 2 s"):
            await begun
        go_on.set()
        reply = await task
        with pytest.raises(CallTimeout, match="in 100 s"):
            await reply
        assert caller.loop.time() == 1100

    in_virtual_time(test)


def test_call_timeout_is_not_for_methods_that_are_excepted(in_virtual_time: Run) -> None:
    async def test(caller: ActorCaller, network: Network) -> None:
        config.use(config.Settings(call_timeout=5, call_timeout_except=("launch_*", "load")))
        for method in ("launch_builtin_model", "load"):
            reply = await caller.call(network, "a:1", sent := send(method), wait=False)
            await asyncio.sleep(100)
            next(c for c in network.opened if sent in c.sent).reply(sent, method)
            assert (await reply).result == method
        for method in ("loads", "relaunch_x", "Load"):
            with pytest.raises(CallTimeout, match=rf"{method}\(\) .* in 5 s"):
                await caller.call(network, "a:1", send(method))
        with deadline(3), pytest.raises(CallTimeout, match="in 3 s"):
            await caller.call(network, "a:1", send("load"))

    in_virtual_time(test)


@pytest.mark.integration
async def test_a_deadline_that_would_not_hold_says_so(active: None) -> None:
    says = r"not active here: .*XOSCAR_IDLE_TIMEOUT.*required="
    with pytest.raises(RuntimeError, match=says), deadline(1):
        raise AssertionError("the block has been entered")
    with deadline(1, required=False):
        pass
    xoscar_idle.install(idle_timeout=30)
    with deadline(1):
        pass


def test_deadline_bounds_connecting_and_sending(in_virtual_time: Run) -> None:
    async def test(caller: ActorCaller, network: Network) -> None:
        network.dialing.clear()
        with deadline(2), pytest.raises(CallTimeout):
            await caller.call(network, "a:1", send())
        network.dialing.set()
        await settle()
        network.opened[0].sending.clear()
        with deadline(2), pytest.raises(CallTimeout):
            await caller.call(network, "a:1", send())
        await asyncio.sleep(6)
        assert all(client.refs == 0 for client in caller._all.values())

    in_virtual_time(test)


def test_default_is_for_methods_alone(in_virtual_time: Run) -> None:
    async def test(caller: ActorCaller, network: Network) -> None:
        config.use(config.Settings(call_timeout=3))
        with pytest.raises(CallTimeout, match="in 3 s"):
            await caller.call(network, "a:1", send())
        with deadline(1), pytest.raises(CallTimeout, match="in 1 s"):
            await caller.call(network, "a:1", send())
        creation = await caller.call(network, "a:1", asked := message(), wait=False)
        (connection,) = [c for c in network.opened if asked in c.sent]
        await asyncio.sleep(100)
        connection.reply(asked)
        await creation

    in_virtual_time(test)


def test_deadline_of_a_transfer(in_virtual_time: Run) -> None:
    async def test(caller: ActorCaller, network: Network) -> None:
        with leases():
            connection = await caller.get_client(network, "a:1")
            with deadline(2), pytest.raises(CallTimeout):
                await caller.call_with_client(connection, message())
            assert caller._all[connection].refs == 1
            reply = await caller.call_with_client(connection, asked := message(), wait=False)
            network.opened[0].reply(asked)
            await reply

    in_virtual_time(test)


def test_what_a_call_starts_for_others_knows_no_deadline(in_virtual_time: Run) -> None:
    """The connection's tasks outlive the call that opened it."""

    async def test(caller: ActorCaller, network: Network) -> None:
        seen: list[Any] = []
        create = network._create_client

        async def record(*args: Any, **kw: Any) -> Any:
            from xoscar_idle.connection.deadlines import limit_of

            seen.append(limit_of(send()))
            return await create(*args, **kw)

        network._create_client = record  # type: ignore[method-assign]
        with deadline(5):
            (await caller.call(network, "a:1", send(), wait=False)).cancel()
        assert seen == [None]

    in_virtual_time(test)


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), "soon", None])
def test_bad_deadline(seconds: Any) -> None:
    with (
        pytest.raises(ValueError, match=r"deadline must be .*, got"),
        xoscar_idle.deadline(seconds),
    ):
        pass


# -- probes --------------------------------------------------------------------------------------


def is_probe(asked: Any) -> bool:
    return isinstance(asked, HasActorMessage)


class Answering:
    """Answers the probes, and nothing else, on connections that are opened from now on."""

    def __init__(self, network: Network) -> None:
        self.probes = 0
        self.alive = True
        create = network._create_client

        async def client(*args: Any, **kw: Any) -> Any:
            connection = await create(*args, **kw)

            async def answer(message: Any) -> None:
                connection.sent.append(message)
                if is_probe(message):
                    self.probes += 1
                    if self.alive:
                        connection.reply(message, "a:1")

            connection.send = answer  # type: ignore[method-assign]
            return connection

        network._create_client = client  # type: ignore[method-assign]


class TestProbes:
    @pytest.fixture
    def settings(self) -> config.Settings:
        return config.Settings(idle_timeout=1000, probe_interval=4, probe_timeout=2)

    def test_silent_peer_fails_the_requests_in_flight(self, in_virtual_time: Run) -> None:
        async def test(caller: ActorCaller, network: Network) -> None:
            peer = Answering(network)
            reply = await caller.call(network, "a:1", message(), wait=False)
            await asyncio.sleep(20)
            assert not reply.done()
            assert peer.probes >= 3, "busy, but alive"
            peer.alive = False
            with pytest.raises(ServerClosed, match="did not answer a probe within 2 s"):
                await reply
            assert not caller._clients

        in_virtual_time(test)

    def test_what_arrives_is_a_sign_of_life(self, in_virtual_time: Run) -> None:
        async def test(caller: ActorCaller, network: Network) -> None:
            peer = Answering(network)
            waiting = await caller.call(network, "a:1", message(), wait=False)
            for _ in range(10):
                reply = await caller.call(network, "a:1", asked := message(), wait=False)
                await asyncio.sleep(2)
                network.opened[0].reply(asked)
                await reply
            assert peer.probes == 0
            waiting.cancel()

        in_virtual_time(test)

    def test_probe_is_no_use_and_idle_connections_are_not_probed(
        self, in_virtual_time: Run
    ) -> None:
        async def test(caller: ActorCaller, network: Network) -> None:
            peer = Answering(network)
            await caller.get_client(network, "a:1")
            await asyncio.sleep(900)
            assert peer.probes == 0
            await asyncio.sleep(101)
            assert network.opened[0].closed

        in_virtual_time(test)
