"""What is under way in a process, read from outside its event loops: calls, and the loops."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import uvloop
import xoscar as xo
from xoscar.backends.message import (
    CancelMessage,
    ControlMessage,
    ControlMessageType,
    CreateActorMessage,
    DestroyActorMessage,
    HasActorMessage,
    SendMessage,
    TellMessage,
    new_message_id,
)
from xoscar.core import create_actor_ref

from xoscar_idle import config
from xoscar_idle.connection import exchange, losses, statistics, underway
from xoscar_idle.connection.caller import ActorCaller
from xoscar_idle.connection.loops import AT_REST, BLOCKED, PATIENCE, RUNNING, Loop, stack_of
from xoscar_idle.connection.underway import (
    ACCEPTING,
    CALLING,
    CONNECTING,
    HELD,
    IN_FLIGHT,
    IN_PROCESS,
    LONGEST,
    MOST,
    MOST_LOOPS,
    Call,
    told,
)

from ..conftest import Run
from ..support import crashing
from ..support.crashing import error_of, sub_pools, victim
from ..support.hosting import Worker, pools, worker
from ..support.memory import Network, message, settle
from ..support.processes import run
from ..support.waiting import BOUND, bounded, eventually, eventually_here, eventually_told

integration = pytest.mark.integration

Test = Callable[[ActorCaller, Network], Coroutine[Any, Any, None]]

REF = create_actor_ref("a:1", b"model")


def calls() -> list[Call]:
    return [Call.from_dict(each) for each in told()["calls"]]


def loops() -> list[Loop]:
    return [Loop.from_dict(each) for each in told()["loops"]]


# -- calls, in virtual time ------------------------------------------------------------------------


@pytest.fixture
def listed(in_virtual_time: Run, monkeypatch: pytest.MonkeyPatch) -> Callable[[Test], None]:
    """Run a test with a caller that is the only one of the process, and nothing is accepted."""

    async def alone(test: Test, caller: ActorCaller, network: Network) -> None:
        monkeypatch.setattr(statistics, "callers", lambda: [caller])
        monkeypatch.setattr(statistics, "serving", list)
        await test(caller, network)

    return lambda test: in_virtual_time(lambda c, n: alone(test, c, n))


def send(method: str = "work", uid: bytes = b"model") -> SendMessage:
    return SendMessage(new_message_id(), create_actor_ref("a:1", uid), (method, 0, (), {}))


def test_nothing_is_under_way(listed: Any) -> None:
    async def test(caller: ActorCaller, network: Network) -> None:
        thread = threading.current_thread()
        answer = told()
        assert (answer["calls"], answer["left_out"], answer["note"]) == ([], 0, "")
        assert loops() == [Loop(caller.thread, thread.name, RUNNING)]
        assert json.loads(json.dumps(answer)) == answer

    listed(test)


KINDS = [
    (send(), "send", "model", "work"),
    (TellMessage(new_message_id(), REF, ("work", 0, (), {})), "tell", "model", "work"),
    (HasActorMessage(new_message_id(), REF), "has_actor", "model", ""),
    (DestroyActorMessage(new_message_id(), REF), "destroy_actor", "model", ""),
    (CreateActorMessage(new_message_id(), Worker, b"model", (), {}), "create_actor", "model", ""),
    (CancelMessage(new_message_id(), "a:1", b"x"), "cancel", "", ""),
    (
        ControlMessage(new_message_id(), "a:1", ControlMessageType.stop, 5),
        "control stop",
        "",
        "",
    ),
    (send("do\nit", b"\xff" * 32), "send", "ff" * 8, "do\nit"),
]


@pytest.mark.parametrize(("sent", "kind", "actor", "method"), KINDS)
def test_each_kind_of_message_has_a_name(
    listed: Any, sent: Any, kind: str, actor: str, method: str
) -> None:
    async def test(caller: ActorCaller, network: Network) -> None:
        future = await caller.call(network, "a:1", sent, wait=False)
        await asyncio.sleep(2.5)
        assert calls() == [
            Call(CALLING, IN_FLIGHT, 2.5, kind, "a:1", actor, method, thread=caller.thread)
        ]
        network.opened[0].reply(sent)
        await future
        assert calls() == []

    listed(test)


def test_one_that_a_proxy_passes_on(listed: Any) -> None:
    async def test(caller: ActorCaller, network: Network) -> None:
        sent = send()
        future = await caller.call(network, "b:2", sent, wait=False, proxy_addresses=["p:1"])
        (one,) = calls()
        assert (one.kind, one.peer, one.via, one.method) == ("send", "b:2", "p:1", "work")
        network.opened[0].reply(sent)
        await future

    listed(test)


def test_long_names_are_cut(listed: Any) -> None:
    async def test(caller: ActorCaller, network: Network) -> None:
        sent = send("m" * 1000, b"a" * 1000)
        future = await caller.call(network, "a:1", sent, wait=False)
        (one,) = calls()
        assert one.actor == "a" * (LONGEST - 3) + "..."
        assert one.method == "m" * (LONGEST - 3) + "..."
        network.opened[0].reply(sent)
        await future

    listed(test)


def test_questions_of_ours_are_no_calls(listed: Any) -> None:
    async def test(caller: ActorCaller, network: Network) -> None:
        await caller.get_client(network, "a:1")
        (client,) = caller.connections()
        ours = [
            asyncio.ensure_future(client.ask(message("anything"), 60)),
            *(
                asyncio.ensure_future(caller.call(network, "a:1", each))
                for each in (message("xoscar_idle drain"), exchange.question_for_name("a:1"))
            ),
        ]
        await settle()
        assert len(client.waiting()) == 3
        assert told()["calls"] == []
        for each in network.opened[0].sent:
            network.opened[0].reply(each)
        await asyncio.gather(*ours)

    listed(test)


def test_calls_that_wait_for_a_connection(listed: Any) -> None:
    async def test(caller: ActorCaller, network: Network) -> None:
        network.dialing.clear()
        sent = [send() for _ in range(3)]
        waiting = [asyncio.ensure_future(caller.call(network, "a:1", each)) for each in sent]
        await settle()
        waiting.pop().cancel()
        await asyncio.sleep(1.5)
        assert calls() == [
            Call(CALLING, CONNECTING, 1.5, "connect", "a:1", thread=caller.thread, count=2)
        ]
        for each in waiting:
            each.cancel()
        await settle()
        assert calls() == [], "nobody waits for it any more"
        network.dialing.set()

    listed(test)


def test_calls_that_wait_for_a_recovery(listed: Any) -> None:
    class Recovering:
        def __init__(self) -> None:
            self.there: asyncio.Future[str] = asyncio.get_running_loop().create_future()

        def met(self, *_: Any) -> None:
            pass

        async def refused(self, address: str) -> None:
            return None

        async def recovered(self, *_: Any) -> str | None:
            return await self.there

    async def test(caller: ActorCaller, network: Network) -> None:
        config.use(config.current().changed(recovery_timeout=60))
        recovering: Any = Recovering()
        losses.tell(recovering)
        try:
            network.failure = ConnectionRefusedError(111, "Connect call failed")
            sent = send()
            future = await caller.call(network, "a:1", sent, wait=False)
            (one,) = calls()
            assert (one.side, one.state, one.peer) == (CALLING, HELD, "a:1")
            assert (one.kind, one.actor, one.method) == ("send", "model", "work")
            network.failure = None
            recovering.there.set_result("a:1")
            await settle()
            assert [each.state for each in calls()] == [IN_FLIGHT], "it is there once"
            network.opened[0].reply(sent)
            await future
            assert calls() == []
        finally:
            losses.tell(None)

    listed(test)


def test_the_oldest_are_told_and_the_others_counted(listed: Any) -> None:
    async def test(caller: ActorCaller, network: Network) -> None:
        sent: list[Any] = []
        for age in range(4):
            sent.extend(send(f"{age}") for _ in range(500))
            for each in sent[-500:]:
                await caller.call(network, f"a:{age}", each, wait=False)
            await asyncio.sleep(1)
        answer = told()
        assert len(answer["calls"]) == MOST == 1000
        assert answer["left_out"] == 1000
        assert [each["seconds"] for each in answer["calls"]] == [4.0] * 500 + [3.0] * 500
        assert {each["method"] for each in answer["calls"]} == {"0", "1"}

    listed(test)


def test_what_cannot_be_read_is_said(listed: Any) -> None:
    """The other calls are told, and nobody is disturbed."""

    class Odd:
        @property
        def message_type(self) -> None:
            raise RuntimeError("what is\nthis?")

    async def test(caller: ActorCaller, network: Network) -> None:
        sent = send()
        future = await caller.call(network, "a:1", sent, wait=False)
        (client,) = caller.connections()
        client.waiting()[0].message = Odd()
        other = await caller.call(network, "a:1", send("else"), wait=False)
        answer = told()
        assert [each["method"] for each in answer["calls"]] == ["else"]
        assert answer["note"] == "something could not be read: what is this?"
        network.opened[0].reply(sent)
        await future
        other.cancel()

    listed(test)


def test_what_another_version_tells() -> None:
    """Of a later one there is more, of one before it there is less."""
    call = Call(CALLING, IN_FLIGHT, 1.0, "send", "a:1")
    assert Call.from_dict({**dataclasses.asdict(call), "color": "red"}) == call
    assert Call.from_dict({**dict(list(vars(call).items())[:5])}) == call
    loop = Loop(7, "MainThread", RUNNING)
    assert Loop.from_dict({**dataclasses.asdict(loop), "color": "red"}) == loop


# -- event loops -----------------------------------------------------------------------------------


class Runner:
    """A loop with a caller, in a thread of its own."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.thread = threading.Thread(target=loop.run_forever, name="the other", daemon=True)
        self.thread.start()
        eventually(loop.is_running)
        made = asyncio.run_coroutine_threadsafe(self._made(), loop)
        self.caller = made.result(BOUND)

    async def _made(self) -> ActorCaller:
        return ActorCaller()

    def block(self, until: threading.Event) -> None:
        """It stands still; returns as soon as it does."""
        begun = threading.Event()

        def stand_still() -> None:
            begun.set()
            until.wait(BOUND)

        self.loop.call_soon_threadsafe(stand_still)
        assert begun.wait(BOUND)

    def end(self) -> None:
        if self.loop.is_running():
            self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(BOUND)
        self.loop.close()


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def runner(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Runner]:
    made = Runner(request.param())
    monkeypatch.setattr(statistics, "callers", lambda: [made.caller])
    monkeypatch.setattr(statistics, "serving", list)
    try:
        yield made
    finally:
        made.end()


@integration
def test_a_blocked_loop(runner: Runner) -> None:
    thread, go_on = runner.thread.ident or 0, threading.Event()
    assert loops() == [Loop(thread, "the other", RUNNING)]
    runner.block(go_on)
    try:
        began = time.monotonic()
        (first,) = loops()
        assert (first.thread, first.name, first.state) == (thread, "the other", BLOCKED)
        assert PATIENCE <= first.seconds <= time.monotonic() - began + 0.001
        innermost, *_ = (each for each in first.stack.splitlines() if "File" in each)
        assert "threading.py" in innermost
        assert "in stand_still" in first.stack
        eventually(lambda: loops()[0].seconds > first.seconds)  # the same sign is missing
    finally:
        go_on.set()
    eventually(lambda: loops() == [Loop(thread, "the other", RUNNING)])
    runner.block(go_on := threading.Event())
    try:
        began = time.monotonic()
        (again,) = loops()
        assert again.state == BLOCKED
        assert again.seconds <= time.monotonic() - began + 0.001, "it is counted anew"
    finally:
        go_on.set()


@integration
def test_a_stack_is_cut_at_its_outer_end(runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    go_on = threading.Event()
    runner.block(go_on)
    try:
        (whole,) = loops()
        monkeypatch.setattr("xoscar_idle.connection.loops.LONGEST_STACK", 100)
        (one,) = loops()
        assert one.stack == whole.stack[:100] != whole.stack
    finally:
        go_on.set()


@integration
def test_a_loop_that_nobody_runs(runner: Runner) -> None:
    """It is not blocked, and what is asked of it does not pile up; it may run again."""
    runner.loop.call_soon_threadsafe(runner.loop.stop)
    runner.thread.join(BOUND)
    thread = runner.thread.ident or 0
    assert loops() == loops() == [Loop(thread, "", AT_REST)]
    runner.thread = threading.Thread(target=runner.loop.run_forever, name="a new one", daemon=True)
    runner.thread.start()
    eventually(runner.loop.is_running)
    (one,) = loops()
    assert one.state == RUNNING
    go_on = threading.Event()
    runner.block(go_on)
    loops()  # what is missing from now on
    runner.loop.call_soon_threadsafe(runner.loop.stop)
    go_on.set()
    runner.thread.join(BOUND)
    assert [each.state for each in loops()] == [AT_REST]


@integration
def test_a_closed_loop_is_none(runner: Runner) -> None:
    runner.loop.call_soon_threadsafe(runner.loop.stop)
    runner.thread.join(BOUND)
    runner.loop.close()
    assert told()["loops"] == []


@integration
async def test_a_loop_is_not_waited_for_on_a_loop(
    runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Itself runs; of the others it is known by the next time."""
    own = ActorCaller()
    monkeypatch.setattr(statistics, "callers", lambda: [own, runner.caller])
    monkeypatch.setattr(threading.Event, "wait", lambda *_: pytest.fail("it waits"))
    assert [each.state for each in loops()] == [RUNNING, RUNNING]


def test_many_loops(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that are blocked come first, whatever they are called."""

    def seen(number: int) -> SimpleNamespace:
        state = BLOCKED if number == 2 * MOST_LOOPS - 1 else RUNNING
        loop = Loop(number, "", state)
        return SimpleNamespace(loop=number, wait=lambda: None, seen=lambda: loop)

    monkeypatch.setattr(statistics, "callers", lambda: list(range(2 * MOST_LOOPS)))
    monkeypatch.setattr(statistics, "serving", list)
    monkeypatch.setattr(underway, "_asked", lambda number: [seen(number)])
    monkeypatch.setattr(underway, "_calling", lambda _: [])
    found = loops()
    assert [each.thread for each in found] == [2 * MOST_LOOPS - 1, *range(MOST_LOOPS - 1)]


def test_the_stack_of_a_thread_that_has_ended() -> None:
    thread = threading.Thread(target=lambda: None)
    thread.start()
    thread.join()
    assert stack_of(thread.ident or 0) == ""


# -- real pools ------------------------------------------------------------------------------------


@asynccontextmanager
async def made(call: Coroutine[Any, Any, Any]) -> AsyncIterator[asyncio.Task[Any]]:
    """A call in the background, which is waited for in the end."""
    task = asyncio.ensure_future(call)
    yield task
    await bounded(task)


@integration
@pytest.mark.usefixtures("package")
async def test_calls_to_pools_elsewhere_and_to_a_sub_pool() -> None:
    """Seen from a thread, as over the side channel, while the loop goes on."""
    with pools(1, 0) as hosted:
        (address,) = hosted.addresses
        there = await worker(address)
        async with made(there.hold()):

            async def seen() -> list[Call]:
                found = await asyncio.to_thread(calls)
                return [each for each in found if each.method == "hold"]

            (one,) = await eventually_told(seen)
            assert (one.side, one.state, one.peer) == (CALLING, IN_FLIGHT, address)
            assert (one.kind, one.actor, one.thread) == ("send", "worker", threading.get_ident())
            assert 0 <= one.seconds < BOUND
            await there.release()
        assert [each for each in await asyncio.to_thread(calls) if each.peer == address] == []


@integration
@pytest.mark.parametrize("on_uvloop", [False, True])
def test_held_while_a_pool_is_recovered(acting: Callable[..., None], on_uvloop: bool) -> None:
    acting(recovery_timeout=BOUND, retry="wait")

    async def main() -> None:
        async with crashing.pool(1) as pool:
            (address,) = sub_pools(pool)
            ref, go_on = await victim(address), crashing.gated(pool)
            await error_of(ref.die("kill"))
            async with made(ref.pid()):

                async def held() -> list[Call]:
                    found = await asyncio.to_thread(calls)
                    return [each for each in found if each.state == HELD]

                (one,) = await eventually_told(held)
                assert (one.side, one.peer, one.method) == (CALLING, address, "pid")
                assert one.actor == address
                assert 0 <= one.seconds < BOUND
                await eventually_here(lambda: calls()[0].seconds > one.seconds)
                go_on.set()
            assert not await held()

    crashing.run(main(), on_uvloop)


CALLER = """
import asyncio, sys, xoscar as xo

async def main():
    actor = await xo.actor_ref(uid="worker", address=sys.argv[1])
    await actor.hold()

asyncio.run(main())
"""


@integration
@pytest.mark.usefixtures("package")
async def test_what_is_in_process_at_the_accepting_side() -> None:
    """For a process that has no part in this package."""
    pool = await xo.create_actor_pool("127.0.0.1", n_process=0)
    async with pool:
        address = pool.external_address
        actor = await xo.create_actor(Worker, uid="worker", address=address)

        async def seen() -> list[Call]:
            found = await asyncio.to_thread(calls)
            return [each for each in found if each.method == "hold"]

        async with made(asyncio.to_thread(run, sys.executable, "-c", CALLER, address)):
            (one,) = await eventually_told(seen)
            assert (one.side, one.state, one.kind) == (ACCEPTING, IN_PROCESS, "send")
            assert (one.actor, one.thread) == ("worker", threading.get_ident())
            assert one.address
            assert one.peer
            await actor.release()
        assert await seen() == []
