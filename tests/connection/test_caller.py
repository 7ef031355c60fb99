"""The connections of one caller, over a transport in memory and in virtual time."""

from __future__ import annotations

import asyncio
import gc
import threading
from typing import Any

import pytest
from xoscar.backends.message import DeserializeMessageFailed, ForwardMessage, SendMessage
from xoscar.core import ActorRef
from xoscar.errors import ServerClosed

from xoscar_idle.connection import client as client_module
from xoscar_idle.connection import routing, statistics, transports
from xoscar_idle.connection.age import AgeQueue
from xoscar_idle.connection.caller import ActorCaller
from xoscar_idle.connection.cap import Cap
from xoscar_idle.connection.client import CallerClient, State
from xoscar_idle.connection.idle import IdleQueue, Lane
from xoscar_idle.connection.leases import leases

from ..conftest import Run
from ..support.memory import Connection, Network, message, settle


async def open_one(caller: ActorCaller, network: Network, route: str = "a:1") -> Any:
    """An idle connection to ``route``."""
    connection = await caller.get_client(network, route)
    return caller._all[connection]


def test_reply_reaches_its_caller(in_virtual_time: Run) -> None:
    async def test(caller: ActorCaller, network: Network) -> None:
        first, second = message(), message()
        calls = [asyncio.ensure_future(caller.call(network, "a:1", m)) for m in (first, second)]
        await settle()
        (connection,) = network.opened
        connection.reply(second, 2)
        connection.reply(first, 1)
        assert [(await call).result for call in calls] == [1, 2]

    in_virtual_time(test)


def test_idle_connection_is_closed_at_its_deadline_and_reopened(in_virtual_time: Run) -> None:
    async def test(caller: ActorCaller, network: Network) -> None:
        running = asyncio.all_tasks()
        for cycle in range(3):
            reply = await caller.call(network, "a:1", sent := message(), wait=False)
            await asyncio.sleep(100)  # in flight for longer than the timeout
            connection = network.opened[cycle]
            connection.reply(sent)
            await reply
            await asyncio.sleep(29.9)
            assert not connection.closed
            await asyncio.sleep(0.2)
            assert connection.closed
            assert asyncio.all_tasks() == running, "nothing open, nothing running"
            caller._validate()
        assert network.dials == 3

    in_virtual_time(test)


def test_connection_that_is_never_used_expires(in_virtual_time: Run) -> None:
    async def test(caller: ActorCaller, network: Network) -> None:
        connection = await caller.get_client(network, "a:1")
        await asyncio.sleep(30.1)
        assert connection.closed

    in_virtual_time(test)


def test_each_call_starts_the_idle_time_anew(in_virtual_time: Run) -> None:
    async def test(caller: ActorCaller, network: Network) -> None:
        for _ in range(10):
            reply = await caller.call(network, "a:1", sent := message(), wait=False)
            network.opened[0].reply(sent)
            await reply
            await asyncio.sleep(20)
        assert network.dials == 1
        await asyncio.sleep(10.1)
        assert network.opened[0].closed

    in_virtual_time(test)


def test_overdue_connection_is_not_handed_out(in_virtual_time: Run) -> None:
    async def test(caller: ActorCaller, network: Network) -> None:
        await caller.get_client(network, "a:1")
        caller.loop.now += 3600  # type: ignore[attr-defined]  # suspended: no timer has fired
        reply = await caller.call(network, "a:1", message(), wait=False)
        assert network.dials == 2
        reply.cancel()

    in_virtual_time(test)


@pytest.mark.parametrize("idle_timeout", [0.0])
def test_timeout_of_zero_closes_nothing_and_runs_nothing(in_virtual_time: Run) -> None:
    async def test(caller: ActorCaller, network: Network) -> None:
        connection = await caller.get_client(network, "a:1")
        await asyncio.sleep(1e5)
        assert not connection.closed
        assert caller._check is None

    in_virtual_time(test)


def test_concurrent_calls_share_one_connect(in_virtual_time: Run) -> None:
    async def test(caller: ActorCaller, network: Network) -> None:
        network.dialing.clear()
        calls = [
            asyncio.ensure_future(caller.call(network, "a:1", message(), wait=False))
            for _ in range(1000)
        ]
        await settle()
        network.dialing.set()
        replies = await asyncio.gather(*calls)
        assert network.dials == 1
        client = caller._clients["a:1"]
        assert client.refs == client.in_flight == 1000
        for reply in replies:
            reply.cancel()
        assert client.refs == 0

    in_virtual_time(test)


def test_connect_survives_the_cancellation_of_whoever_began_it(in_virtual_time: Run) -> None:
    async def test(caller: ActorCaller, network: Network) -> None:
        network.dialing.clear()
        first, second = (
            asyncio.ensure_future(caller.call(network, "a:1", message(), wait=False))
            for _ in range(2)
        )
        await settle()
        first.cancel()
        await settle()
        network.dialing.set()
        reply = await second
        assert network.dials == 1
        assert caller._clients["a:1"].refs == 1
        reply.cancel()

    in_virtual_time(test)


@pytest.mark.parametrize("turns", range(8))
def test_cancellation_at_any_moment_of_a_connect_leaks_no_reference(
    in_virtual_time: Run, turns: int
) -> None:
    async def test(caller: ActorCaller, network: Network) -> None:
        call = asyncio.ensure_future(caller.call(network, "a:1", message()))
        await settle(turns)
        call.cancel()
        await settle()
        assert call.cancelled()
        assert all(client.refs == 0 for client in caller._all.values())
        await asyncio.sleep(31)
        assert not caller._all

    in_virtual_time(test)


def test_failed_connect_fails_all_who_wait_and_nobody_else(in_virtual_time: Run) -> None:
    async def test(caller: ActorCaller, network: Network) -> None:
        network.failure = ConnectionRefusedError(111, "refused")
        calls = [caller.call(network, "a:1", message()) for _ in range(3)]
        errors = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(e) for e in errors] == [ConnectionRefusedError] * 3
        assert len({id(e) for e in errors}) == 3
        assert network.dials == 1
        network.failure = None
        await open_one(caller, network)

    in_virtual_time(test)


def test_connect_holds_up_no_other_address(in_virtual_time: Run) -> None:
    async def test(caller: ActorCaller, network: Network) -> None:
        await open_one(caller, network, "open:1")
        network.dialing.clear()
        dead = asyncio.ensure_future(caller.call(network, "dead:1", message()))
        await settle()
        reply = await caller.call(network, "open:1", sent := message(), wait=False)
        network.opened[0].reply(sent, 7)
        assert (await reply).result == 7
        assert not dead.done()
        dead.cancel()

    in_virtual_time(test)


def test_end_of_a_connection_settles_all_waiters(in_virtual_time: Run) -> None:
    async def test(caller: ActorCaller, network: Network) -> None:
        replies = [await caller.call(network, "a:1", message(), wait=False) for _ in range(3)]
        replies[1].cancel()
        network.opened[0].hang_up()
        await settle()
        for reply in (replies[0], replies[2]):
            with pytest.raises(ServerClosed, match="Remote server a:1 closed: hung up"):
                await reply
        assert not caller._all

    in_virtual_time(test)


def test_reply_that_nobody_waits_for_harms_nobody(in_virtual_time: Run) -> None:
    async def test(caller: ActorCaller, network: Network) -> None:
        cancelled = await caller.call(network, "a:1", late := message(), wait=False)
        reply = await caller.call(network, "a:1", sent := message(), wait=False)
        cancelled.cancel()
        (connection,) = network.opened
        connection.reply(late)
        connection.reply(message())  # never asked for
        connection.reply(sent, 3)
        assert (await reply).result == 3
        assert caller._clients["a:1"].refs == 0

    in_virtual_time(test)


def test_message_id_that_is_used_again_fails_the_older_call(in_virtual_time: Run) -> None:
    async def test(caller: ActorCaller, network: Network) -> None:
        older = await caller.call(network, "a:1", sent := message(), wait=False)
        newer = await caller.call(network, "a:1", sent, wait=False)
        with pytest.raises(RuntimeError, match="was used again"):
            await older
        network.opened[0].reply(sent)
        await newer
        await asyncio.sleep(30.1)
        assert network.opened[0].closed  # no reference is left

    in_virtual_time(test)


def test_cancelled_request_gives_its_reference_back_at_once(in_virtual_time: Run) -> None:
    async def test(caller: ActorCaller, network: Network) -> None:
        reply = await caller.call(network, "a:1", message(), wait=False)
        client = caller._clients["a:1"]
        assert client.refs == 1
        reply.cancel()
        reply.cancel()
        assert client.refs == 0

    in_virtual_time(test)


@pytest.mark.parametrize(
    ("error", "raised", "survives"),
    [
        (TypeError("cannot pickle"), TypeError, True),
        (ConnectionResetError("reset"), ServerClosed, False),
        (BrokenPipeError("pipe"), ServerClosed, False),
    ],
)
def test_failed_send_gives_the_reference_back(
    in_virtual_time: Run, error: Exception, raised: type[Exception], survives: bool
) -> None:
    async def test(caller: ActorCaller, network: Network) -> None:
        client = await open_one(caller, network)
        network.opened[0].send_error = error
        with pytest.raises(raised):
            await caller.call(network, "a:1", message())
        assert client.refs == client.in_flight == 0
        assert (client.state is State.OPEN) == survives
        network.opened[0].send_error = None
        reply = await caller.call(network, "a:1", message(), wait=False)
        assert network.dials == (1 if survives else 2)
        reply.cancel()

    in_virtual_time(test)


def test_call_cancelled_while_it_sends_gives_the_reference_back(in_virtual_time: Run) -> None:
    async def test(caller: ActorCaller, network: Network) -> None:
        client = await open_one(caller, network)
        network.opened[0].sending.clear()
        call = asyncio.ensure_future(caller.call(network, "a:1", message()))
        await settle()
        assert client.refs == 1
        call.cancel()
        await settle()
        assert client.refs == client.in_flight == 0

    in_virtual_time(test)


def test_call_on_a_closed_connection_goes_to_a_new_one(in_virtual_time: Run) -> None:
    async def test(caller: ActorCaller, network: Network) -> None:
        await open_one(caller, network)
        network.opened[0].closed = True  # and the listener has not noticed yet
        reply = await caller.call(network, "a:1", message(), wait=False)
        assert network.dials == 2
        assert len(network.opened[1].sent) == 1
        reply.cancel()

    in_virtual_time(test)


def test_peer_that_hangs_up_on_new_connections_is_not_dialed_for_ever(
    in_virtual_time: Run,
) -> None:
    async def test(caller: ActorCaller, network: Network) -> None:
        create = network._create_client

        async def closed_client(*args: Any, **kw: Any) -> Any:
            connection = await create(*args, **kw)
            connection.closed = True
            return connection

        network._create_client = closed_client  # type: ignore[method-assign]
        with pytest.raises(ServerClosed):
            await caller.call(network, "a:1", message())
        assert network.dials == 1

    in_virtual_time(test)


def test_lost_connection_raises_for_a_message_that_may_have_been_sent(
    in_virtual_time: Run,
) -> None:
    async def test(caller: ActorCaller, network: Network) -> None:
        call = asyncio.ensure_future(caller.call(network, "a:1", message()))
        await settle()
        network.opened[0].hang_up()
        with pytest.raises(ServerClosed):
            await call
        assert network.dials == 1

    in_virtual_time(test)


def test_undecodable_reply_fails_its_own_call(in_virtual_time: Run) -> None:
    async def test(caller: ActorCaller, network: Network) -> None:
        m1, m2 = message(), message()
        replies = [await caller.call(network, "a:1", m, wait=False) for m in (m1, m2)]
        failure = DeserializeMessageFailed(m1.message_id)
        failure.__cause__ = ModuleNotFoundError("no module")
        network.opened[0].incoming.put_nowait(failure)
        network.opened[0].reply(m2, 2)
        with pytest.raises(ModuleNotFoundError):
            await replies[0]
        assert (await replies[1]).result == 2

    in_virtual_time(test)


def test_unreadable_stream_ends_the_connection_with_its_error(in_virtual_time: Run) -> None:
    async def test(caller: ActorCaller, network: Network) -> None:
        reply = await caller.call(network, "a:1", message(), wait=False)
        network.opened[0].incoming.put_nowait(ValueError("garbage"))
        with pytest.raises(ValueError, match="garbage"):
            await reply
        await settle()
        assert network.opened[0].closed

    in_virtual_time(test)


def test_changed_route_leaves_calls_in_flight_alone(in_virtual_time: Run) -> None:
    async def test(caller: ActorCaller, network: Network) -> None:
        reply = await caller.call(network, "a:1", sent := message(), wait=False)
        network.mapping["a:1"] = "b:1"
        other = await caller.call(network, "a:1", message(), wait=False)
        assert [c.dest_address for c in network.opened] == ["a:1", "b:1"]
        network.opened[0].reply(sent, 5)
        assert (await reply).result == 5
        other.cancel()
        await asyncio.sleep(30.1)
        assert all(c.closed for c in network.opened)

    in_virtual_time(test)


def test_call_through_a_proxy_is_wrapped(in_virtual_time: Run) -> None:
    async def test(caller: ActorCaller, network: Network) -> None:
        send = SendMessage(b"1" * 32, ActorRef("a:1", b"uid"), "content")
        reply = await caller.call(network, "a:1", send, wait=False, proxy_addresses=["p:1"])
        control = await caller.call(network, "a:1", message(), wait=False, proxy_addresses=["p:1"])
        wrapped, plain = network.opened[0].sent
        assert isinstance(wrapped, ForwardMessage)
        assert (wrapped.address, wrapped.raw_message, wrapped.message_id) == (
            "a:1",
            send,
            send.message_id,
        )
        assert not isinstance(plain, ForwardMessage)
        reply.cancel()
        control.cancel()

    in_virtual_time(test)


def test_lease_keeps_a_connection_between_requests(in_virtual_time: Run) -> None:
    async def test(caller: ActorCaller, network: Network) -> None:
        with leases():
            connection = await caller.get_client(network, "a:1")
            for _ in range(3):
                await asyncio.sleep(100)
                reply = await caller.call_with_client(connection, sent := message(), wait=False)
                network.opened[0].reply(sent)
                await reply
            assert not connection.closed
        await asyncio.sleep(30.1)
        assert connection.closed
        with pytest.raises(ServerClosed):
            await caller.call_with_client(connection, message())

    in_virtual_time(test)


def test_lease_of_a_connection_by_type(in_virtual_time: Run) -> None:
    async def test(caller: ActorCaller, network: Network) -> None:
        with leases():
            connection = await caller.get_client_via_type(network, "a:1", Connection)
            await asyncio.sleep(100)
            assert not connection.closed
        with pytest.raises(ValueError, match="not supported for a:1"):
            await caller.get_client_via_type(network, "a:1", int)  # type: ignore[arg-type]

    in_virtual_time(test)


def test_lease_is_given_back_when_the_transfer_fails(in_virtual_time: Run) -> None:
    async def test(caller: ActorCaller, network: Network) -> None:
        async def transfer() -> None:
            with leases():
                await caller.get_client(network, "a:1")
                assert caller._clients["a:1"].refs == 1
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            await transfer()
        assert caller._clients["a:1"].refs == 0

    in_virtual_time(test)


def test_retired_connection_finishes_what_is_in_flight(in_virtual_time: Run) -> None:
    async def test(caller: ActorCaller, network: Network) -> None:
        await open_one(caller, network, "idle:1")
        reply = await caller.call(network, "a:1", sent := message(), wait=False)
        caller.retire("stop")
        await settle()
        idle, busy = network.opened
        assert idle.closed
        assert not busy.closed
        caller._validate()
        busy.reply(sent, 1)
        assert (await reply).result == 1
        await settle()
        assert busy.closed

    in_virtual_time(test)


def test_stop_settles_waiters_and_connects(in_virtual_time: Run) -> None:
    async def test(caller: ActorCaller, network: Network) -> None:
        waiting = asyncio.ensure_future(caller.call(network, "a:1", message()))
        await settle()
        network.dialing.clear()
        connecting = asyncio.ensure_future(caller.call(network, "b:1", message()))
        await settle()
        await caller.stop()
        for call in (waiting, connecting):
            with pytest.raises(ServerClosed):
                await call
        network.dialing.set()
        await open_one(caller, network)  # and it can be used again

    in_virtual_time(test)


def test_call_right_after_a_stop_makes_a_connect_of_its_own(in_virtual_time: Run) -> None:
    async def test(caller: ActorCaller, network: Network) -> None:
        network.dialing.clear()
        old = asyncio.ensure_future(caller.call(network, "a:1", message()))
        await settle()
        caller.cancel_tasks()
        new = asyncio.ensure_future(caller.call(network, "a:1", sent := message()))
        with pytest.raises(ServerClosed, match="Connecting to a:1 was given up"):
            await old
        network.dialing.set()
        await settle()
        network.opened[-1].reply(sent, 1)
        assert (await new).result == 1

    in_virtual_time(test)


def test_connect_under_way_at_a_retirement_serves_those_who_wait(in_virtual_time: Run) -> None:
    async def test(caller: ActorCaller, network: Network) -> None:
        network.dialing.clear()
        call = asyncio.ensure_future(caller.call(network, "a:1", sent := message()))
        unwanted = asyncio.ensure_future(caller.call(network, "b:1", message()))
        await settle()
        caller.retire("stop")
        unwanted.cancel()
        network.dialing.set()
        await settle()
        waited, nobody = network.opened
        assert nobody.closed
        assert not waited.closed
        waited.reply(sent, 1)
        assert (await call).result == 1
        await settle()
        assert waited.closed

    in_virtual_time(test)


def test_bad_setting_of_a_pool_leaves_a_connection_its_timeout(
    in_virtual_time: Run, caplog: pytest.LogCaptureFixture
) -> None:
    async def test(caller: ActorCaller, network: Network) -> None:
        network._comm_config["idle_timeout"] = 5
        client = await open_one(caller, network)
        network._comm_config["idle_timeout"] = "five"
        caller.apply_settings()
        caller._validate()
        assert client.lane.timeout == 30
        (record,) = caplog.records
        for part in ("idle_timeout", "'five'", "30", "a:1"):
            assert part in record.getMessage()
        network._comm_config["idle_timeout"] = 6
        caller.apply_settings()
        await asyncio.sleep(6.1)
        assert network.opened[0].closed

    in_virtual_time(test)


HAND_OVER = {
    "a sender": (transports, "sender"),
    "the cap": (Cap, "join"),
    "the setting of its pool": (routing, "override"),
    "its lane": (IdleQueue, "join"),
    "falling idle": (Lane, "fell_idle"),
    "keepalive": (transports, "keep_alive"),
    "its age": (AgeQueue, "join"),
    "its task": (client_module, "spawn"),
    "the end of its peer": (transports, "when_peer_ends"),
    "a reference": (CallerClient, "hold"),
}


@pytest.mark.parametrize("error", [OSError(22, "no"), TypeError("no"), StopIteration("no")])
@pytest.mark.parametrize("step", HAND_OVER)
def test_whatever_fails_between_connected_and_handed_over_reaches_all_who_wait(
    in_virtual_time: Run, monkeypatch: pytest.MonkeyPatch, step: str, error: Exception
) -> None:
    def fails(*_: Any, **__: Any) -> Any:
        raise error

    async def test(caller: ActorCaller, network: Network) -> None:
        opened = statistics.statistics().open
        network.dialing.clear()
        calls = [asyncio.ensure_future(caller.call(network, "a:1", message())) for _ in range(3)]
        await settle()
        with monkeypatch.context() as patch:
            patch.setattr(*HAND_OVER[step], fails)
            network.dialing.set()
            raised = await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), 1)
        for each in raised:
            assert isinstance(each, RuntimeError if type(error) is StopIteration else type(error))
            assert "no" in str(each)
        assert len({id(each) for each in raised}) == 3
        await settle()
        assert network.opened[0].closed
        assert not caller._all
        assert not caller._connects.all
        assert caller._cap.count == 0
        assert statistics.statistics().open == opened
        caller._validate()
        await settle()
        reply = await caller.call(network, "a:1", sent := message(), wait=False)
        network.opened[1].reply(sent, 1)
        assert (await reply).result == 1

    in_virtual_time(test)


@pytest.mark.parametrize(
    "step",
    [(IdleQueue, "leave"), (ActorCaller, "ensure_check"), (ActorCaller, "next_expiry")],
    ids=lambda step: step[1],
)
def test_whatever_fails_in_its_undoing_too_leaves_no_waiter_and_nothing_open(
    in_virtual_time: Run, monkeypatch: pytest.MonkeyPatch, step: tuple[type, str]
) -> None:
    def fails(*_: Any, **__: Any) -> Any:
        raise OverflowError("no")

    async def test(caller: ActorCaller, network: Network) -> None:
        network.dialing.clear()
        calls = [asyncio.ensure_future(caller.call(network, "a:1", message())) for _ in range(3)]
        await settle()
        with monkeypatch.context() as patch:
            patch.setattr(*step, fails)
            network.dialing.set()
            raised = await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), 1)
        assert all(isinstance(each, (OverflowError, ServerClosed)) for each in raised)
        await settle()
        assert network.opened[0].closed
        assert not caller._all
        assert not caller._connects.all
        assert caller._cap.count == 0
        caller._idle = IdleQueue()  # what could not leave it

    errors: list[Any] = []
    monkeypatch.setattr(
        asyncio.BaseEventLoop, "call_exception_handler", lambda _, context: errors.append(context)
    )
    in_virtual_time(test)
    assert len(errors) <= 1


@pytest.mark.parametrize("cause", [StopIteration("end"), ValueError("end")])
def test_undecodable_reply_fails_its_call_whatever_the_cause(
    in_virtual_time: Run, cause: Exception
) -> None:
    async def test(caller: ActorCaller, network: Network) -> None:
        reply = await caller.call(network, "a:1", sent := message(), wait=False)
        failure = DeserializeMessageFailed(sent.message_id)
        failure.__cause__ = cause
        network.opened[0].incoming.put_nowait(failure)
        with pytest.raises((RuntimeError, ValueError), match="end"):
            await asyncio.wait_for(reply, 1)

    in_virtual_time(test)


def test_unlinking_that_fails_leaves_no_waiter(
    in_virtual_time: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test(caller: ActorCaller, network: Network) -> None:
        replies = [await caller.call(network, "a:1", message(), wait=False) for _ in range(3)]
        real = caller.unlink

        def unlink(client: Any) -> None:
            real(client)
            raise OverflowError("unlinking")

        monkeypatch.setattr(caller, "unlink", unlink)
        with pytest.raises(OverflowError, match="unlinking"):
            caller._clients["a:1"].close("stop")
        for reply in replies:
            with pytest.raises(ServerClosed):
                await asyncio.wait_for(reply, 1)
        network.opened[0].hang_up()
        await settle()

    in_virtual_time(test)


def test_reference_counts_are_guarded(in_virtual_time: Run) -> None:
    async def test(caller: ActorCaller, network: Network) -> None:
        client = await open_one(caller, network)
        with pytest.raises(RuntimeError, match="without a reference"):
            client.de_ref()
        errors: list[RuntimeError] = []

        def elsewhere() -> None:
            for method in (client.add_ref, client.de_ref):
                with pytest.raises(RuntimeError, match="foreign thread") as caught:
                    method()
                errors.append(caught.value)

        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        assert len(errors) == 2
        client.close("stop")
        assert not client.add_ref()

    in_virtual_time(test)


def test_fire_and_forget_is_silent_when_the_peer_ends(in_virtual_time: Run) -> None:
    async def test(caller: ActorCaller, network: Network) -> None:
        await caller.call(network, "a:1", message(), wait=False)
        network.opened[0].hang_up()
        await settle()
        gc.collect()  # "never retrieved" would reach the loop's exception handler

    in_virtual_time(test)


def test_repr_tells_the_state(in_virtual_time: Run) -> None:
    async def test(caller: ActorCaller, network: Network) -> None:
        client = await open_one(caller, network)
        await asyncio.sleep(12.3)
        assert repr(client) == "<CallerClient a:1 idle 12.3s, 0 calls>"
        reply = await caller.call(network, "a:1", message(), wait=False)
        assert repr(client) == "<CallerClient a:1 1 in use, 1 calls>"
        client.retire("age")
        assert repr(client) == "<CallerClient a:1 retired, 1 in use, 1 calls>"
        reply.cancel()
        assert repr(client) == "<CallerClient a:1 closing, 1 calls>"
        assert "a:1" in repr(caller)

    in_virtual_time(test)
