"""Calls that wait for the recovery of a pool, over a transport in memory and in virtual time."""

from __future__ import annotations

import asyncio
import copy
import gc
import threading
import weakref
from collections.abc import Callable, Coroutine, Iterator
from functools import partial
from typing import Any

import pytest
from xoscar.backends.message import (
    CancelMessage,
    CreateActorMessage,
    DeserializeMessageFailed,
    ErrorMessage,
    HasActorMessage,
    MessageType,
    SendMessage,
    new_message_id,
)
from xoscar.core import create_actor_ref
from xoscar.errors import ServerClosed

from xoscar_idle import PoolUnavailable, config
from xoscar_idle.connection import bounds, holding, losses
from xoscar_idle.connection.bounds import Bounds
from xoscar_idle.connection.caller import ActorCaller
from xoscar_idle.connection.deadlines import CallTimeout, deadline
from xoscar_idle.connection.failures import MOST_EXECUTIONS, Failure, failure_of, may_wait

from ..conftest import Run
from ..support.memory import Network, settle

REFUSED = ConnectionRefusedError(111, "Connect call failed")


class Recoveries(losses.Witness):
    """Knows of recoveries what the test says."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, float, int]] = []
        self.there: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()
        self.held: Callable[[], int] = lambda: 0
        self.via = ""

    def met(self, *_: Any) -> None:
        pass

    async def lost(self, client: Any) -> None:
        return None

    async def refused(self, address: str) -> None:
        return None

    async def excused(self, client: Any) -> str:
        return ""

    async def recovered(
        self, address: str, timeout: float, held: Callable[[], int], via: str
    ) -> str | None:
        self.held, self.via = held, via
        self.asked.append((address, timeout, held()))
        if not timeout:
            return None
        try:
            return await asyncio.wait_for(asyncio.shield(self.there), timeout)
        except asyncio.TimeoutError:
            return None

    def tell(self, address: str | None) -> None:
        """It has been recovered there, or is given up."""
        self.there.set_result(address)
        self.there = asyncio.get_running_loop().create_future()


Test = Callable[[ActorCaller, Network, Recoveries], Coroutine[Any, Any, None]]


@pytest.fixture
def settings(idle_timeout: float) -> config.Settings:
    return config.Settings(
        idle_timeout=idle_timeout, recovery_timeout=60, retry=("work",), connect_timeout=5
    )


@pytest.fixture
def holds(in_virtual_time: Run) -> Iterator[Callable[[Test], None]]:
    """Run a test with somebody who knows of recoveries; nothing waits at its end."""

    async def with_recoveries(test: Test, caller: ActorCaller, network: Network) -> None:
        recoveries = Recoveries()
        losses.tell(recoveries)
        try:
            await test(caller, network, recoveries)
            await settle()
            assert not caller._holding._waiting
            assert not caller._holding._tasks
            assert not caller._holding._calls
            assert not bounds.process.by_pool()
        finally:
            losses.tell(None)

    yield lambda test: in_virtual_time(lambda c, n: with_recoveries(test, c, n))
    assert bounds.process._bytes == 0


def send(method: str = "work", uid: bytes = b"uid") -> SendMessage:
    return SendMessage(new_message_id(), create_actor_ref("a:1", uid), (method, 0, (), {}))


async def begin(caller: ActorCaller, network: Network, message: Any) -> Any:
    """The future of the reply to a call that is refused, and so waits."""
    network.failure = REFUSED
    future = await caller.call(network, "a:1", message, wait=False)
    await settle()
    network.failure = None
    return future


def test_a_connect_that_fails_has_executed_nothing(holds: Callable[[Test], None]) -> None:
    """In whatever way; as one that takes too long."""

    async def test(caller: ActorCaller, network: Network, recoveries: Recoveries) -> None:
        network.failure = ConnectionError("connect timeout")
        sent = send("not to be tried again")
        future = await caller.call(network, "a:1", sent, wait=False)
        network.failure = None
        await settle()
        recoveries.tell("a:1")
        await settle()
        network.opened[0].reply(sent)
        await future

    holds(test)


def test_a_refused_call_goes_to_the_recovered_pool(holds: Any) -> None:
    async def test(caller: ActorCaller, network: Network, recoveries: Recoveries) -> None:
        messages = [send(), send("else")]
        futures = [await begin(caller, network, each) for each in messages]
        assert recoveries.asked == [("a:1", 60, 1)], "once for all"
        assert recoveries.held() == 2
        assert bounds.process.by_pool() == {"a:1": 2}
        await asyncio.sleep(50)
        assert not any(future.done() for future in futures)
        recoveries.tell("a:1")
        await settle()
        (connection,) = network.opened
        assert connection.sent == messages
        for each in messages:
            connection.reply(each, each.content[0])
        assert [(await future).result for future in futures] == ["work", "else"]

    holds(test)


def test_without_a_recovery_timeout_nothing_waits(holds: Any) -> None:
    async def test(caller: ActorCaller, network: Network, recoveries: Recoveries) -> None:
        config.use(config.current().changed(recovery_timeout=0))
        network.failure = REFUSED
        with pytest.raises(ConnectionRefusedError):
            await caller.call(network, "a:1", send())
        assert not recoveries.asked

    holds(test)


@pytest.mark.parametrize("how", ["given up", "in time"])
def test_what_waits_for_nothing_raises_the_original_error(holds: Any, how: str) -> None:
    async def test(caller: ActorCaller, network: Network, recoveries: Recoveries) -> None:
        first = await begin(caller, network, send())
        await asyncio.sleep(20)
        second = await begin(caller, network, send())
        if how == "given up":
            recoveries.tell(None)
            await settle()
            assert first.done()
        else:
            await asyncio.sleep(39)
            assert not first.done()
            await asyncio.sleep(2)
            assert first.done(), "60 s after it was refused"
            assert not second.done()
            await asyncio.sleep(20)
        for future in (first, second):
            with pytest.raises(ConnectionRefusedError, match="Connect call failed"):
                await future

    holds(test)


def test_a_deadline_counts_and_tells_what_it_waited_for(holds: Any) -> None:
    async def test(caller: ActorCaller, network: Network, recoveries: Recoveries) -> None:
        network.failure = REFUSED
        started = caller.loop.time()
        with deadline(5), pytest.raises(ConnectionRefusedError):
            await caller.call(network, "a:1", send())
        assert caller.loop.time() - started == 5

    holds(test)


def test_a_deadline_of_what_is_on_its_way_again(holds: Any) -> None:
    async def test(caller: ActorCaller, network: Network, recoveries: Recoveries) -> None:
        network.failure = REFUSED
        with deadline(5):
            future = await caller.call(network, "a:1", send(), wait=False)
        network.failure = None
        await settle()
        recoveries.tell("a:1")
        await settle()
        (connection,) = network.opened
        with pytest.raises(CallTimeout, match="no reply in 5 s"):
            await future
        await settle()
        assert any(
            isinstance(each, CancelMessage) for opened in network.opened for each in opened.sent
        )
        assert connection.sent

    holds(test)


@pytest.mark.parametrize("moved", [False, True])
def test_a_lost_call_that_may_be_executed_twice(holds: Any, moved: bool) -> None:
    """It goes to the successor of its pool, if the actor is there."""

    async def test(caller: ActorCaller, network: Network, recoveries: Recoveries) -> None:
        future = await caller.call(network, "a:1", sent := send(), wait=False)
        network.opened[0].hang_up()
        await settle()
        assert recoveries.asked == [("a:1", 60, 1)]
        recoveries.tell("b:2" if moved else "a:1")
        await settle()
        connection = network.opened[1]
        if moved:
            (question,) = connection.sent
            assert isinstance(question, HasActorMessage)
            assert (question.actor_ref.address, question.actor_ref.uid) == ("b:2", b"uid")
            connection.reply(question, True)
            await settle()
        again = connection.sent[-1]
        assert (again.message_id, again.content) == (sent.message_id, sent.content)
        assert again.actor_ref.address == ("b:2" if moved else "a:1")
        assert sent.actor_ref.address == "a:1", "the program's own"
        cancel = CancelMessage(new_message_id(), "a:1", sent.message_id)
        cancelling = await caller.call(network, "a:1", cancel, wait=False)
        assert connection.sent[-1] is cancel, "where it is by now"
        connection.reply(cancel, True)
        connection.reply(again, 3)
        assert (await future).result == 3
        await cancelling

    holds(test)


def test_an_actor_that_is_not_with_the_successor(holds: Any) -> None:
    async def test(caller: ActorCaller, network: Network, recoveries: Recoveries) -> None:
        future = await begin(caller, network, send())
        recoveries.tell("b:2")
        await settle()
        (connection,) = network.opened
        connection.reply(connection.sent[0], False)
        with pytest.raises(ConnectionRefusedError):
            await future

    holds(test)


def test_one_that_may_not_be_executed_twice_is_lost(holds: Any) -> None:
    async def test(caller: ActorCaller, network: Network, recoveries: Recoveries) -> None:
        for method in ("other", "__xoscar_next__"):
            future = await caller.call(network, "a:1", send(method), wait=False)
            network.opened[-1].hang_up()
            with pytest.raises(ServerClosed):
                await future
        assert not recoveries.asked

    holds(test)


def test_what_is_closed_here_does_not_wait(holds: Any) -> None:
    async def test(caller: ActorCaller, network: Network, recoveries: Recoveries) -> None:
        future = await caller.call(network, "a:1", send(), wait=False)
        caller.close("stop")
        with pytest.raises(ServerClosed, match="closed: stop"):
            await future
        assert not recoveries.asked

    holds(test)


def test_a_request_that_was_turned_away(holds: Any) -> None:
    """By the pool that was called, or by one that it was passed on to."""

    async def test(caller: ActorCaller, network: Network, recoveries: Recoveries) -> None:
        for pool in ("a:1", "sub:3"):
            future = await caller.call(network, "a:1", sent := send("other"), wait=False)
            error: Any = ConnectionRefusedError("it is being restarted")
            error.address, error.turned_away = pool, sent.message_id
            network.opened[0].incoming.put_nowait(ErrorMessage(sent.message_id, error=error))
            await settle()
            assert recoveries.asked[-1] == (pool, 60, 1)
            assert recoveries.via == "a:1"
            recoveries.tell("sub:4" if pool == "sub:3" else pool)
            await settle()
            assert network.opened[0].sent[-1] is sent, "to whom it was sent"
            network.opened[0].reply(sent, 1)
            assert (await future).result == 1

    holds(test)


def test_an_error_that_tells_of_another_request_is_an_answer(holds: Any) -> None:
    async def test(caller: ActorCaller, network: Network, recoveries: Recoveries) -> None:
        future = await caller.call(network, "a:1", sent := send(), wait=False)
        error: Any = ConnectionRefusedError("it is being restarted")
        error.address, error.turned_away = "b:2", b"another"
        network.opened[0].incoming.put_nowait(ErrorMessage(sent.message_id, error=error))
        assert (await future).error is error
        assert not recoveries.asked

    holds(test)


@pytest.mark.parametrize("how", ["request", "future", "task", "stop"])
@pytest.mark.parametrize("when", ["waiting", "on its way again", "asking for the actor"])
def test_cancelling(holds: Any, how: str, when: str) -> None:
    async def test(caller: ActorCaller, network: Network, recoveries: Recoveries) -> None:
        network.failure = REFUSED
        sent = send()
        task = None
        if how == "task":
            task = asyncio.ensure_future(caller.call(network, "a:1", sent))
        else:
            future = await caller.call(network, "a:1", sent, wait=False)
        await settle()
        network.failure = None
        if when != "waiting":
            recoveries.tell("a:1" if when == "on its way again" else "b:2")
            await settle()
        if how == "request":
            cancel = CancelMessage(new_message_id(), "a:1", sent.message_id)
            answering = await caller.call(network, "a:1", cancel, wait=False)
            if when == "on its way again":
                network.opened[-1].reply(cancel, True)
                future.cancel()
            assert (await answering).result is True
        elif how == "future":
            future.cancel()
        elif how == "stop":
            caller.close("stop")
            await settle()
            assert not future.cancelled()
            with pytest.raises((ConnectionRefusedError, ServerClosed)):
                await future
            return
        else:
            assert task is not None
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            return
        with pytest.raises(asyncio.CancelledError):
            await future

    holds(test)


def test_one_that_every_pool_dies_of_ends(holds: Any) -> None:
    async def test(caller: ActorCaller, network: Network, recoveries: Recoveries) -> None:
        future = await caller.call(network, "a:1", send(), wait=False)
        while True:
            network.opened[-1].hang_up()
            await settle()
            if future.done():
                break
            await asyncio.sleep(30)
            recoveries.tell("a:1")
            await asyncio.sleep(5)
        with pytest.raises(ServerClosed):
            await future
        assert len(network.opened) == MOST_EXECUTIONS

    holds(test)


def test_a_pool_that_is_said_to_be_there_but_cannot_be_reached(holds: Any) -> None:
    async def test(caller: ActorCaller, network: Network, recoveries: Recoveries) -> None:
        network.failure = REFUSED
        future = await caller.call(network, "a:1", send(), wait=False)
        while not future.done():
            recoveries.tell("a:1")
            await asyncio.sleep(0.3)
        assert network.dials == 1 + holding.MOST_SHORT
        with pytest.raises(ConnectionRefusedError):
            await future

    holds(test)


def test_refused_again_it_waits_within_what_is_left(holds: Any) -> None:
    async def test(caller: ActorCaller, network: Network, recoveries: Recoveries) -> None:
        started = caller.loop.time()
        network.failure = REFUSED
        future = await caller.call(network, "a:1", send(), wait=False)
        while not future.done():
            await asyncio.sleep(7)
            recoveries.tell("a:1")
        assert 60 <= caller.loop.time() - started < 70
        with pytest.raises(ConnectionRefusedError):
            await future

    holds(test)


def test_the_recovery_itself_does_not_wait(holds: Any) -> None:
    async def test(caller: ActorCaller, network: Network, recoveries: Recoveries) -> None:
        network.failure = REFUSED
        outlives: asyncio.Task[Any]
        go_on = asyncio.Event()

        async def later() -> Any:
            await go_on.wait()
            return await caller.call(network, "a:1", send(), wait=False)

        with holding.off():
            outlives = asyncio.ensure_future(later())
            await settle()
            with pytest.raises(ConnectionRefusedError):
                await caller.call(network, "a:1", send())
        go_on.set()
        future = await outlives
        await settle()
        assert len(recoveries.asked) == 1, "what outlives it waits as any call does"
        recoveries.tell(None)
        with pytest.raises(ConnectionRefusedError):
            await future

    holds(test)


def test_bounds(holds: Any, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    async def test(caller: ActorCaller, network: Network, recoveries: Recoveries) -> None:
        size = bounds.size_of(send())
        assert size is not None
        monkeypatch.setattr(bounds, "process", Bounds(calls=3, size=2 * size + size // 2))
        waiting = [await begin(caller, network, send()) for _ in range(2)]
        network.failure = REFUSED
        for _ in range(2):
            with pytest.raises(ConnectionRefusedError):
                await caller.call(network, "a:1", send())
        (record,) = [each for each in caplog.records if each.levelname == "WARNING"]
        assert "calls to pool a:1 do not wait for its recovery: 2 calls" in record.getMessage()
        recoveries.tell(None)
        await asyncio.gather(*waiting, return_exceptions=True)

    holds(test)


def test_a_message_is_as_large_as_what_it_carries() -> None:
    ref = create_actor_ref("a:1", b"x")
    for carried in (0, 10**6):
        message = SendMessage(new_message_id(), ref, ("m", 0, (b"x" * carried,), {}))
        size = bounds.size_of(message)
        assert size is not None
        assert carried < size < carried * 1.1 + 1000


EXECUTED, UNEXECUTED = (Failure(EOFError(), "a:1", executed) for executed in (True, False))


def test_what_a_failure_says() -> None:
    closed_here, unsent = ServerClosed("closed"), ServerClosed("closed")
    closed_here.closed_here = unsent.unexecuted = True
    refused = PoolUnavailable(111, "down")
    refused.unexecuted = True  # type: ignore[attr-defined]
    gone: Any = FileNotFoundError(2, "no such socket")
    for error, executed in (
        (ServerClosed("closed"), True),
        (ConnectionResetError(104, "reset"), True),
        (unsent, False),
        (refused, False),
    ):
        assert failure_of(error, "a:1") == Failure(error, "a:1", executed)
    for error in (closed_here, ValueError("no"), TimeoutError(), gone):
        assert failure_of(error, "a:1") is None
    gone.unexecuted = True
    assert failure_of(gone, "a:1") == Failure(gone, "a:1", False)


@pytest.mark.parametrize("error", [REFUSED, FileNotFoundError(2, "no file"), ServerClosed("no")])
def test_an_answer_that_cannot_be_read_is_one(holds: Any, error: BaseException) -> None:
    """Its call has been executed, whatever reading it raises."""

    async def test(caller: ActorCaller, network: Network, recoveries: Recoveries) -> None:
        future = await caller.call(network, "a:1", sent := send(), wait=False)
        failure = DeserializeMessageFailed(sent.message_id)
        failure.__cause__ = copy.copy(error)
        network.opened[0].incoming.put_nowait(failure)
        with pytest.raises(type(error)):
            await future
        assert not recoveries.asked
        assert network.opened[0].sent == [sent]

    holds(test)


@pytest.mark.parametrize("kind", MessageType)
def test_which_calls_may_wait(kind: MessageType) -> None:
    held = (
        MessageType.send,
        MessageType.tell,
        MessageType.create_actor,
        MessageType.destroy_actor,
        MessageType.has_actor,
        MessageType.actor_ref,
    )
    called = kind in (MessageType.send, MessageType.tell)
    asks = kind in (MessageType.has_actor, MessageType.actor_ref)
    assert may_wait(UNEXECUTED, kind, "m", ("unsent",), 0) is (kind in held)
    assert may_wait(EXECUTED, kind, "m", ("unsent",), 1) is asks
    assert may_wait(EXECUTED, kind, "m", ("unsent", "m"), 1) is (called or asks)
    assert may_wait(EXECUTED, kind, "model", ("unsent", "m*l"), 1) is (called or asks)
    assert may_wait(EXECUTED, kind, "unsent", ("unsent",), 1) is asks
    for failure in (UNEXECUTED, EXECUTED):
        assert not may_wait(failure, kind, "__xoscar_next__", ("unsent", "*"), 1)
    assert not may_wait(EXECUTED, kind, "m", ("unsent", "*"), MOST_EXECUTIONS)
    assert may_wait(UNEXECUTED, kind, "m", ("unsent", "*"), MOST_EXECUTIONS) is (kind in held)


def test_a_create_goes_to_no_other_pool(holds: Any) -> None:
    async def test(caller: ActorCaller, network: Network, recoveries: Recoveries) -> None:
        create = CreateActorMessage(new_message_id(), object, b"uid", (), {}, None)
        future = await begin(caller, network, create)
        recoveries.tell("b:2")
        with pytest.raises(ConnectionRefusedError):
            await future

    holds(test)


# -- orders of events that lose, hang or repeat calls --------------------------------------------


def test_a_deadline_leaves_a_connection_that_answers(holds: Any) -> None:
    """One that has shown signs of life since the call was sent serves the next call, too."""

    async def test(caller: ActorCaller, network: Network, recoveries: Recoveries) -> None:
        with deadline(5):
            late = await caller.call(network, "a:1", send(), wait=False)
        await answered(caller, network)
        with pytest.raises(CallTimeout):
            await late
        await answered(caller, network)
        assert network.dials == 1

    holds(test)


async def answered(caller: ActorCaller, network: Network) -> None:
    future = await caller.call(network, "a:1", sent := send(), wait=False)
    network.opened[-1].reply(sent)
    await future


def test_a_deadline_cancels_where_the_call_is_by_now(holds: Any) -> None:
    async def test(caller: ActorCaller, network: Network, recoveries: Recoveries) -> None:
        network.failure = REFUSED
        with deadline(5):
            future = await caller.call(network, "a:1", sent := send(), wait=False)
        network.failure = None
        await settle()
        recoveries.tell("b:2")
        await settle()
        (connection,) = network.opened
        connection.reply(connection.sent[0], True)
        with pytest.raises(CallTimeout):
            await future
        await settle()
        fresh = network.opened[-1]
        assert fresh.dest_address == "b:2", "nothing had come since it was sent there"
        (cancel,) = fresh.sent
        assert isinstance(cancel, CancelMessage)
        assert cancel.cancel_message_id == sent.message_id

    holds(test)


def test_nothing_is_cancelled_of_what_waits_at_its_deadline(holds: Any) -> None:
    async def test(caller: ActorCaller, network: Network, recoveries: Recoveries) -> None:
        network.failure = REFUSED
        with deadline(5), pytest.raises(ConnectionRefusedError):
            await caller.call(network, "a:1", send())
        await settle()
        assert network.dials == 1

    holds(test)


def test_what_nobody_wants_any_more_is_not_executed_again(holds: Any) -> None:
    """Its pool dies before it answers the request to cancel it."""

    async def test(caller: ActorCaller, network: Network, recoveries: Recoveries) -> None:
        future = await caller.call(network, "a:1", sent := send(), wait=False)
        cancel = CancelMessage(new_message_id(), "a:1", sent.message_id)
        answering = await caller.call(network, "a:1", cancel, wait=False)
        network.opened[0].hang_up()
        for each in (future, answering):
            with pytest.raises(ServerClosed):
                await each
        assert not recoveries.asked

    holds(test)


def test_a_pool_that_dies_just_at_the_deadline(holds: Any) -> None:
    async def test(caller: ActorCaller, network: Network, recoveries: Recoveries) -> None:
        with deadline(5):
            future = await caller.call(network, "a:1", sent := send(), wait=False)
        (client,) = caller.connections()
        lost = partial(client._fail, client._requests[sent.message_id], ServerClosed("lost"))
        caller.loop.call_at(caller.loop.time() + 5 - 5e-10, lost)  # in the same turn of the loop
        await asyncio.sleep(6)
        assert future.done()
        assert not recoveries.asked

    holds(test)


def test_what_is_being_written_again_may_be_executed(holds: Any) -> None:
    """So its deadline is missed, and it is cancelled there."""

    async def test(caller: ActorCaller, network: Network, recoveries: Recoveries) -> None:
        network.failure = REFUSED
        with deadline(5):
            future = await caller.call(network, "a:1", sent := send(), wait=False)
        network.failure = None
        await answered(caller, network)
        (connection,) = network.opened
        connection.sending.clear()
        recoveries.tell("a:1")
        with pytest.raises(CallTimeout):
            await future
        connection.sending.set()
        await settle()
        cancels = [e for c in network.opened for e in c.sent if isinstance(e, CancelMessage)]
        assert [each.cancel_message_id for each in cancels] == [sent.message_id]

    holds(test)


def test_a_request_to_cancel_what_is_being_written_again(holds: Any) -> None:
    async def test(caller: ActorCaller, network: Network, recoveries: Recoveries) -> None:
        future = await begin(caller, network, sent := send())
        await answered(caller, network)
        (connection,) = network.opened
        connection.sending.clear()
        recoveries.tell("a:1")
        await settle()
        cancel = CancelMessage(new_message_id(), "a:1", sent.message_id)
        cancelling = asyncio.ensure_future(caller.call(network, "a:1", cancel))
        await settle()
        assert future.cancelled(), "the request could overtake it"
        connection.sending.set()
        await settle()
        assert connection.sent[-1] is cancel, "the pool may have it all the same"
        connection.reply(cancel, True)
        await cancelling

    holds(test)


def test_one_of_two_calls_of_one_id_is_not_forgotten(holds: Any) -> None:
    """As a main pool has that passes a call on to itself."""

    async def test(caller: ActorCaller, network: Network, recoveries: Recoveries) -> None:
        waiting = await begin(caller, network, sent := send())
        inner = await caller.call(network, "b:2", sent, wait=False)
        network.opened[0].reply(sent)
        await inner
        caller._holding.give_up()
        assert isinstance(waiting.exception(), ConnectionRefusedError)

    holds(test)


def test_an_answer_does_not_outlive_its_caller(holds: Any) -> None:
    """Nobody waits for the garbage collector."""

    async def test(caller: ActorCaller, network: Network, recoveries: Recoveries) -> None:
        answers: weakref.WeakSet[Any] = weakref.WeakSet()
        arguments: weakref.WeakSet[Any] = weakref.WeakSet()
        gc.collect()
        gc.disable()
        try:
            for refused in (False, True):
                arguments.add(argument := Something())
                sent = SendMessage(
                    new_message_id(), create_actor_ref("a:1", b"uid"), ("work", 0, (argument,), {})
                )
                network.failure = REFUSED if refused else None
                future = await caller.call(network, "a:1", sent, wait=False)
                network.failure = None
                if refused:
                    await settle()
                    recoveries.tell("a:1")
                    await settle()
                network.opened[0].reply(sent, answer := Something())
                answers.add(answer)
                await future
                network.opened[0].sent.clear()
                del sent, argument, answer, future
                await settle()
                assert not answers
                assert not arguments
        finally:
            gc.enable()

    holds(test)


class Something:
    pass


def test_who_comes_later_has_time_of_their_own(holds: Any) -> None:
    """Clocks differ by a moment: uvloop's has milliseconds."""

    async def test(caller: ActorCaller, network: Network, recoveries: Recoveries) -> None:
        own = recoveries.recovered

        async def recovered(address: str, timeout: float, *asked: Any) -> str | None:
            return await own(address, timeout - 0.002, *asked)

        recoveries.recovered = recovered  # type: ignore[assignment, method-assign]
        first = await begin(caller, network, send())
        await asyncio.sleep(30)
        second = await begin(caller, network, send())
        await asyncio.sleep(31)
        assert first.done()
        assert not second.done()
        recoveries.tell("a:1")
        await settle()
        network.opened[0].reply(network.opened[0].sent[0], 1)
        assert (await second).result == 1
        with pytest.raises(ConnectionRefusedError):
            await first

    holds(test)


@pytest.mark.parametrize("how", ["lost", "turned away"])
def test_the_question_for_the_actor_fails(holds: Any, how: str) -> None:
    """The call itself has not been executed: it waits for the next one."""

    async def test(caller: ActorCaller, network: Network, recoveries: Recoveries) -> None:
        future = await begin(caller, network, send("once"))
        recoveries.tell("b:2")
        await settle()
        connection = network.opened[-1]
        if how == "lost":
            connection.hang_up()
        else:
            error: Any = ConnectionRefusedError("it is being restarted")
            error.address, error.turned_away = "b:2", connection.sent[0].message_id
            connection.incoming.put_nowait(ErrorMessage(connection.sent[0].message_id, error=error))
        await settle()
        assert [address for address, *_ in recoveries.asked] == ["a:1", "a:1"]
        recoveries.tell("c:3")
        await asyncio.sleep(1)
        connection = network.opened[-1]
        connection.reply(connection.sent[0], True)
        await settle()
        connection.reply(connection.sent[1], 3)
        assert (await future).result == 3

    holds(test)


def test_what_waits_when_its_loop_is_closed_takes_no_room(holds: Any) -> None:
    async def test(caller: ActorCaller, network: Network, recoveries: Recoveries) -> None:
        future = await begin(caller, network, send())
        caller.sever("loop")
        assert not bounds.process.by_pool(), "whether the loop runs on or not"
        await settle()
        with pytest.raises(ConnectionRefusedError):
            await future

    holds(test)


@pytest.mark.parametrize("when", ["connecting", "waiting", "in flight"])
def test_nothing_waits_any_more_when_all_is_put_back(holds: Any, when: str) -> None:
    """xoscar's own code would not know how to cancel it."""

    async def test(caller: ActorCaller, network: Network, recoveries: Recoveries) -> None:
        if when == "waiting":
            future = await begin(caller, network, send())
            caller.retire("stop")
        elif when == "in flight":
            future = await caller.call(network, "a:1", send(), wait=False)
            caller.retire("stop")
            network.opened[0].hang_up()
        else:
            network.dialing.clear()
            future = asyncio.ensure_future(caller.call(network, "a:1", send()))
            await settle()
            caller.close("stop")
        await settle()
        assert future.done()
        with pytest.raises((ConnectionRefusedError, ServerClosed)):
            await future
        caller.resume()
        recoveries.asked.clear()
        network.dialing.set()
        future = await begin(caller, network, send())
        assert recoveries.asked
        recoveries.tell(None)
        with pytest.raises(ConnectionRefusedError):
            await future

    holds(test)


def test_what_cannot_be_measured_does_not_wait(holds: Any) -> None:
    async def test(caller: ActorCaller, network: Network, recoveries: Recoveries) -> None:
        ref = create_actor_ref("a:1", b"uid")
        sent = SendMessage(new_message_id(), ref, ("work", 0, (threading.Lock(),), {}))
        network.failure = REFUSED
        with pytest.raises(ConnectionRefusedError):
            await caller.call(network, "a:1", sent)
        network.failure = None
        future = await caller.call(network, "a:1", sent, wait=False)
        network.opened[0].hang_up()
        with pytest.raises(ServerClosed):
            await asyncio.wait_for(future, 1)

    holds(test)


def test_only_the_time_in_which_it_waits_counts(holds: Any) -> None:
    async def test(caller: ActorCaller, network: Network, recoveries: Recoveries) -> None:
        future = await begin(caller, network, sent := send("once"))
        await asyncio.sleep(40)
        recoveries.tell("a:1")
        await asyncio.sleep(100)  # in the queue of a pool that is busy
        error: Any = ConnectionRefusedError("it is being restarted")
        error.address, error.turned_away = "a:1", sent.message_id
        network.opened[0].incoming.put_nowait(ErrorMessage(sent.message_id, error=error))
        await asyncio.sleep(19)
        assert not future.done()
        await asyncio.sleep(2)
        with pytest.raises(ConnectionRefusedError):
            await future

    holds(test)


def test_a_pool_that_listens_on_all_addresses(holds: Any) -> None:
    async def test(caller: ActorCaller, network: Network, recoveries: Recoveries) -> None:
        future = await caller.call(network, "a:1", sent := send("once"), wait=False)
        error: Any = ConnectionRefusedError("it is being restarted")
        error.address, error.turned_away = "0.0.0.0:1", sent.message_id
        network.opened[0].incoming.put_nowait(ErrorMessage(sent.message_id, error=error))
        await settle()
        assert recoveries.asked == [("a:1", 60, 1)], "as it is called"
        recoveries.tell(None)
        with pytest.raises(ConnectionRefusedError):
            await future

    holds(test)


def test_waiting_is_switched_off_meanwhile(holds: Any) -> None:
    """What waits already can be cancelled as before, and comes to its end."""

    async def test(caller: ActorCaller, network: Network, recoveries: Recoveries) -> None:
        futures = [await begin(caller, network, sent := send()) for _ in range(2)]
        config.use(config.current().changed(recovery_timeout=0))
        cancel = CancelMessage(new_message_id(), "a:1", sent.message_id)
        assert (await caller.call(network, "a:1", cancel)).result is True
        assert futures[1].cancelled()
        recoveries.tell("a:1")
        await settle()
        network.opened[0].hang_up()
        with pytest.raises(ServerClosed):
            await futures[0]

    holds(test)
