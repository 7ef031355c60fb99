"""Asking processes which calls are under way: real pools, well and not well, and scripted ones."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from xoscar_idle import side_channel
from xoscar_idle.connection import exchange, underway
from xoscar_idle.connection.loops import BLOCKED, PATIENCE, RUNNING, Loop
from xoscar_idle.connection.underway import ACCEPTING, CALLING, IN_FLIGHT, IN_PROCESS, Call
from xoscar_idle.supervision.state import PoolInfo, State
from xoscar_idle.telemetry import asking, calls, kernel, pool_query, questions, snapshot, targets
from xoscar_idle.telemetry.asking import Question
from xoscar_idle.telemetry.calls import CALLS, SUB_POOLS, Underway, exit_status
from xoscar_idle.telemetry.snapshot import Snapshot, Unobservable
from xoscar_idle.telemetry.targets import Target

from ..support import processes
from ..support.endpoints import refusing
from ..support.environment import environment
from ..support.hosting import Pools, pools, worker
from ..support.patients import blocked, stopped
from ..support.waiting import BOUND, eventually

integration = pytest.mark.integration

ACTIVE: dict[str, Any] = {"XOSCAR_IDLE_TIMEOUT": "60"}


@pytest.fixture(autouse=True)
def sockets(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where monitors are, for these tests alone."""
    with tempfile.TemporaryDirectory() as directory:
        monkeypatch.setenv("XOSCAR_IDLE_MONITOR", directory)
        yield Path(directory)


def look(*named: Target) -> tuple[list[Underway], list[str]]:
    return asyncio.run(calls.look(named))


def seen(*named: Target) -> list[Underway]:
    """Without a complaint."""
    found, complaints = look(*named)
    assert complaints == []
    return found


def of(found: Sequence[Underway], method: str) -> list[tuple[int | None, Call]]:
    """The calls of a method, and the processes that tell them."""
    return [(one.seen.pid, each) for one in found for each in one.calls if each.method == method]


# -- real processes --------------------------------------------------------------------------------

CALLER = """
import asyncio, sys, xoscar as xo

async def main():
    actor = await xo.actor_ref(uid="worker", address=sys.argv[1])
    calls = [asyncio.ensure_future(actor.hold()) for _ in range(int(sys.argv[2]))]
    asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    print("ready", flush=True)
    await asyncio.wait(calls)

asyncio.run(main())
"""


@contextlib.contextmanager
def calling(address: str, count: int = 1) -> Iterator[subprocess.Popen[str]]:
    """A process without pools, with calls in process at the worker there."""
    env = environment(XOSCAR_IDLE_MONITOR=os.environ["XOSCAR_IDLE_MONITOR"], **ACTIVE)
    command = (sys.executable, "-c", CALLER, address, f"{count}")
    with processes.started(*command, env=env, orderly=True) as process:
        assert processes.line(process) == "ready"
        eventually(lambda: len(of(look(process.pid)[0], "hold")) == min(count, underway.MOST))
        try:
            yield process
        finally:
            asyncio.run(_release(address, count))


async def _release(address: str, count: int) -> None:
    there = await worker(address)
    await asyncio.gather(*(there.release() for _ in range(count)))


@contextlib.contextmanager
def blocked_sub_pool(hosted: Pools, place: Path) -> Iterator[int]:
    """The event loop of the first one is blocked, in a call; its process."""
    address = hosted.addresses[1]

    async def pid() -> int:
        return int(await (await worker(address)).pid())

    number = asyncio.run(pid())
    with blocked(address, place):
        yield number


@integration
def test_a_call_on_both_sides() -> None:
    """Of a process without pools to a sub-pool, named by PID and by address; and all there are."""
    with pools(1, 1, **ACTIVE) as hosted:
        main_pool, sub_pool = hosted.addresses
        with calling(sub_pool) as caller:
            found = seen(caller.pid, main_pool)
            first, own, second = found
            assert (first.seen.pid, own.seen.pid) == (caller.pid, hosted.pid)
            assert [each.seen.address for each in (own, second)] == [main_pool, sub_pool]
            (_, out), (pid, into) = of(found, "hold")
            assert (out.side, out.state, out.peer) == (CALLING, IN_FLIGHT, sub_pool)
            assert (into.side, into.state, into.address) == (ACCEPTING, IN_PROCESS, sub_pool)
            assert {each.actor for each in (out, into)} == {"worker"}
            assert (pid, second.told_by) == (second.seen.pid, None)
            assert all(0 <= each.seconds < BOUND for each in (out, into))
            assert [loop.state for each in found for loop in each.loops] == [RUNNING] * 3
            assert exit_status(found) == 0
            everybody = seen()
            assert {each.seen.pid for each in everybody} == {caller.pid, hosted.pid, pid}
            assert len(of(everybody, "hold")) == 2
        eventually(lambda: of(seen(main_pool), "hold") == [])
        assert [(each.calls, each.left_out) for each in seen(main_pool)] == [([], 0)] * 2


@integration
def test_a_blocked_sub_pool(tmp_path: Path) -> None:
    """Over its local socket, named by PID and by address; the stack has the method."""
    with pools(1, 1, **ACTIVE) as hosted, blocked_sub_pool(hosted, tmp_path) as pid:
        main_pool, sub_pool = hosted.addresses
        (by_pid,) = seen(pid)
        main, by_address = seen(main_pool)
        named, beside = seen(sub_pool)
    assert [each.seen.address for each in (main, beside)] == [main_pool] * 2
    assert [each.is_blocked for each in (main, beside)] == [False] * 2
    for each in (by_pid, by_address, named):
        assert (each.seen.pid, each.told_by, each.is_blocked) == (pid, None, True)
        (call,) = (call for _, call in of([each], "block"))
        assert (call.side, call.state, call.actor) == (ACCEPTING, IN_PROCESS, f"patient {sub_pool}")
        (loop,) = each.blocked
        assert loop.stack.splitlines()[0].endswith("in block")
        assert loop.seconds >= PATIENCE
    assert (by_pid.seen.status, named.seen.status) == (snapshot.BLOCKED, snapshot.BLOCKED)
    assert exit_status([main, by_address]) == 3


@integration
@pytest.mark.parametrize("supervise", ["off", "observe"])
def test_a_stopped_sub_pool(tmp_path: Path, supervise: str) -> None:
    """What its main pool knows; with supervision, what it did when it was last heard of."""
    settings = {**ACTIVE, "XOSCAR_SUPERVISE": supervise}
    with pools(1, 1, **settings) as hosted, blocked_sub_pool(hosted, tmp_path) as pid:
        main_pool, sub_pool = hosted.addresses

        def doing() -> bool:
            (told,) = json.loads(side_channel.ask(hosted.pid, SUB_POOLS.text) or b"")["pools"]
            return supervise == "off" or bool(told["doing"])

        eventually(doing)
        with stopped(pid):
            (by_pid,) = seen(pid)
            _, by_address = seen(main_pool)
            (named,) = seen(sub_pool)  # which cannot tell of those beside it
    for each in (by_pid, by_address, named):
        assert (each.seen.pid, each.told_by, each.is_blocked) == (pid, hosted.pid, True)
        assert "it is stopped" in each.seen.note
        (call,) = (call for _, call in of([each], "block"))
        assert (call.side, call.state, call.actor) == (ACCEPTING, IN_PROCESS, f"patient {sub_pool}")
        assert (call.address, each.left_out) == (sub_pool, 0)
        assert 0 < call.seconds < 2 * BOUND
        (loop,) = each.blocked
        assert ("in block" in loop.stack) == (supervise == "observe")


@integration
def test_a_stopped_process_of_which_nobody_knows() -> None:
    with pools(**ACTIVE) as hosted, stopped(hosted.pid):
        (one,), (complaint,) = look(*hosted.addresses)
    assert (one.calls, one.loops, one.told_by, one.is_blocked) == ((), (), None, True)
    assert complaint.startswith(f"{hosted.addresses[0]}: did not answer in 5 s, nor over its local")
    assert exit_status([one]) == 3


@integration
def test_of_many_calls_the_oldest() -> None:
    with pools(1, 1, **ACTIVE) as hosted:
        main_pool, sub_pool = hosted.addresses
        with calling(sub_pool, 2000) as caller:
            eventually(
                lambda: [each.left_out for each in seen(sub_pool, caller.pid)][1:] == [1000] * 2
            )
            for each in seen(caller.pid, main_pool):
                assert (len(each.calls), each.left_out) in ((0, 0), (1000, 1000))
                ages = [call.seconds for call in each.calls]
                assert ages == sorted(ages, reverse=True)


@integration
def test_those_that_cannot_tell() -> None:
    """Where it is not active, where nobody is, and where there is no monitor."""
    with pools() as hosted, refusing() as refused:
        program = processes.started(sys.executable, "-c", "input()")
        with program as alone:
            found, complaints = look(*hosted.addresses, refused, alone.pid)
    assert [each.seen.pid for each in found] == [hosted.pid, None, alone.pid]
    inactive, nobody, silent = complaints
    assert inactive == f"{hosted.addresses[0]}: xoscar-idle is not active there"
    assert nobody.startswith(f"no pool answers at {refused}: ")
    assert silent.startswith(f"process {alone.pid} offers this user no monitor: start it with")
    assert exit_status(found) == 1


def test_nobody_offers_a_monitor() -> None:
    found, (complaint,) = look()
    assert (found, exit_status(found)) == ([], 1)
    assert complaint.startswith("no process of this user offers a monitor")


@integration
@pytest.mark.parametrize("told", ["", "null", "7", "[]", '{"calls": [{}]}', "{"])
def test_one_that_tells_something_else(monkeypatch: pytest.MonkeyPatch, told: str) -> None:
    answers = {snapshot.QUESTION: lambda _: Snapshot(os.getpid(), process="x").to_json()}
    monkeypatch.setattr(side_channel, "_answers", {**answers, CALLS.text: lambda _: told})
    side_channel.start()
    try:
        (one,), (complaint,) = look(os.getpid())
    finally:
        side_channel.stop()
    assert complaint.startswith(f"{os.getpid()} does not tell of its calls: ")
    assert exit_status([one]) == 1


@integration
def test_one_of_an_older_version(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {snapshot.QUESTION: lambda _: Snapshot(os.getpid(), process="x").to_json()}
    monkeypatch.setattr(side_channel, "_answers", answers)
    side_channel.start()
    try:
        _, (complaint,) = look(os.getpid())
    finally:
        side_channel.stop()
    assert complaint == (
        f"process {os.getpid()} cannot tell of its calls: the xoscar-idle in it is older"
    )


async def test_one_of_an_older_version_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """It passes over what it does not know, and answers with its configuration."""

    async def ask(*_: object) -> object:
        return object()

    monkeypatch.setattr(exchange, "ask", ask)
    with pytest.raises(Unobservable, match=r"^a:1: xoscar-idle is not active there, or is older$"):
        await pool_query.tell("a:1", CALLS.text, asyncio.Semaphore())


# -- the answer ------------------------------------------------------------------------------------


async def test_a_loop_that_answers_goes_on_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer waits for its sign, in a thread."""
    loop, signs = asyncio.get_running_loop(), []

    def told(rest: str) -> dict[str, Any]:
        sign = threading.Event()
        loop.call_soon_threadsafe(sign.set)
        signs.append((rest, sign.wait(BOUND), threading.current_thread().name))
        return {}

    monkeypatch.setitem(questions._ANSWERS, "calls", told)
    assert await questions.answer_there(CALLS.text) == "{}"
    assert await questions.answer_there(f"{CALLS.text} x") == "{}"
    assert signs == [(rest, True, "xoscar-idle-answer_0") for rest in ("", "x")]


async def test_an_answer_without_a_thread_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    told = json.loads(await questions.answer_there(CALLS.text) or "")
    assert told["pid"] == os.getpid()


@pytest.mark.parametrize("asked", [None, 7, "calls", "xoscar_idle", "xoscar_idle other"])
async def test_what_is_no_question(asked: object) -> None:
    assert await questions.answer_there(asked) is None


# -- scripted --------------------------------------------------------------------------------------


class Fleet:
    """Processes that tell what the test says."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seen: list[tuple[Target, Snapshot]] = []
        self.over_xoscar: dict[tuple[str, str], Any] = {}
        self.beside: dict[tuple[int, str], Any] = {}
        self.listeners: dict[str, int] = {}
        self.parents: dict[int, int] = {}
        self.asked: list[object] = []
        monkeypatch.setattr(targets, "look_at", self._look_at)
        monkeypatch.setattr(pool_query, "tell", self._tell)
        monkeypatch.setattr(kernel, "listeners", self._listeners)
        monkeypatch.setattr(asking, "ask_process", self._ask_process)
        monkeypatch.setattr(calls, "_parent", self.parents.get)

    async def _look_at(self, _: object) -> list[tuple[Target, Snapshot]]:
        return self.seen

    async def _tell(self, address: str, question: str, _: object) -> str:
        return self._answer(self.over_xoscar, (address, question))

    def _listeners(self, addresses: list[str]) -> dict[str, int]:
        return {each: self.listeners[each] for each in addresses if each in self.listeners}

    def _ask_process(self, pid: int, question: Question) -> bytes:
        return self._answer(self.beside, (pid, question.text)).encode()

    def _answer(self, told: dict[Any, Any], asked: object) -> str:
        self.asked.append(asked)
        answer = told.get(asked, Unobservable(f"{asked} is silent"))
        if isinstance(answer, Exception):
            raise answer
        return json.dumps(answer)

    def look(self) -> tuple[list[Underway], list[str]]:
        return look("named")


@pytest.fixture
def fleet(monkeypatch: pytest.MonkeyPatch) -> Fleet:
    return Fleet(monkeypatch)


NOTHING = {"calls": [], "left_out": 0, "loops": [], "note": ""}


def info(address: str, pid: int = 1, **more: Any) -> dict[str, Any]:
    told = PoolInfo(address, pid, 1, 1, State.HEALTHY.value, 0.0, 1.0, 0)
    return {**vars(told), **more}


def test_one_that_falls_silent_after_it_was_looked_at(fleet: Fleet) -> None:
    """Over its local socket, if it is of this machine."""
    fleet.seen = [("a:1", Snapshot(1, address="a:1")), ("b:1", Snapshot(2, address="b:1"))]
    for address in ("a:1", "b:1"):
        silent = pool_query.Silent(f"{address} did not answer in 5 s")
        fleet.over_xoscar[address, CALLS.text] = silent
    fleet.listeners["a:1"] = 11
    fleet.beside[11, CALLS.text] = NOTHING
    (here, there), complaints = fleet.look()
    assert (here.complaint, there.complaint) == ("", "b:1 did not answer in 5 s")
    assert complaints == [there.complaint]


def test_what_a_main_pool_elsewhere_knows(fleet: Fleet) -> None:
    """It is asked once for all of its sub-pools."""
    pools = [{"address": each, "main": "a:0"} for each in ("a:0", "a:1", "a:2", "a:3")]
    silent: dict[str, Any] = {"status": snapshot.BLOCKED, "note": "did not answer in 5 s"}
    fleet.seen = [
        ("a:0", Snapshot(10, address="a:0", pools=pools)),
        *(("a:0", Snapshot(None, address=each, **silent)) for each in ("a:1", "a:2", "a:3")),
    ]
    request = {"actor": "model", "method": "generate", "seconds": 7.5}
    odd = {"actor": "model", "method": "create_actor", "seconds": "long", "more": 1}
    known = [
        info("a:1", state="unhealthy", requests=[request, odd], in_process=5, loop_lag=7.12345),
        info("a:2", pid=2, more="of a later version"),
        info("a:3", pid=0),
    ]
    fleet.over_xoscar["a:0", CALLS.text] = NOTHING
    fleet.over_xoscar["a:0", SUB_POOLS.text] = {"pid": 10, "pools": known}
    (_, first, second, third), complaints = fleet.look()
    assert first.calls == [
        Call(ACCEPTING, IN_PROCESS, 7.5, "send", "", "model", "generate", "a:1"),
        Call(ACCEPTING, IN_PROCESS, 0.0, "create_actor", "", "model", "", "a:1"),
    ]
    assert (first.left_out, first.told_by) == (3, "a:0")
    assert first.loops == [Loop(0, "", BLOCKED, 7.123)]
    assert (second.calls, second.told_by, second.complaint) == ([], "a:0", "")
    assert [each.state for each in second.blocked] == [BLOCKED], "it does not answer either"
    assert (third.told_by, complaints) == (None, ["a:3: did not answer in 5 s"])
    assert fleet.asked.count(("a:0", SUB_POOLS.text)) == 1


def test_a_main_pool_that_was_not_looked_at(fleet: Fleet) -> None:
    """Where somebody beside the silent one knows its address."""
    beside = [{"address": "a:1", "main": "a:0"}]
    fleet.seen = [
        (2, Snapshot(2, pools=beside)),
        ("a:1", Snapshot(None, address="a:1", status=snapshot.BLOCKED, note="silent")),
    ]
    fleet.beside[2, CALLS.text] = NOTHING
    fleet.over_xoscar["a:0", SUB_POOLS.text] = {"pools": [info("a:1")]}
    (_, one), complaints = fleet.look()
    assert (one.told_by, complaints) == ("a:0", [])


def test_a_main_pool_that_is_blocked_itself(fleet: Fleet) -> None:
    beside: list[dict[str, Any]] = [{"address": "a:1", "main": "a:0"}, {"address": 7}, {}]
    fleet.seen = [
        ("a:1", Snapshot(9, address="a:0", status=snapshot.BLOCKED, statistics={}, pools=beside)),
        ("a:1", Snapshot(None, address="a:1", status=snapshot.BLOCKED, note="silent")),
    ]
    fleet.beside[9, CALLS.text] = NOTHING
    fleet.beside[9, SUB_POOLS.text] = {"pools": [info("a:1")]}
    (_, one), complaints = fleet.look()
    assert (one.told_by, complaints) == ("a:0", [])


@pytest.mark.parametrize("told", [{"pools": 7}, {}, [], {"pools": [{"odd": 1}]}])
def test_a_main_pool_that_does_not_tell(fleet: Fleet, told: Any) -> None:
    """Nor does the process that has started it, which is none."""
    fleet.seen = [(1, Snapshot(1, status=snapshot.BLOCKED, note="process 1 is stopped"))]
    fleet.parents[1] = 5
    fleet.beside[5, SUB_POOLS.text] = told
    (one,), complaints = fleet.look()
    assert (one.told_by, complaints) == (None, ["process 1 is stopped"])
    assert fleet.asked == [(5, SUB_POOLS.text)], "it is not asked what it did not answer"


@pytest.mark.parametrize("status", snapshot.MISSING)
def test_of_those_that_are_gone_nobody_is_asked(fleet: Fleet, status: str) -> None:
    fleet.seen = [(1, Snapshot(1, status=status, note="there is no process 1"))]
    fleet.parents[1] = 5
    (one,), complaints = fleet.look()
    assert (one.complaint, complaints) == ("there is no process 1", [one.complaint])
    assert fleet.asked == []


def test_an_answer_of_a_later_version(fleet: Fleet) -> None:
    call = {"side": CALLING, "state": "dreaming", "seconds": 1, "kind": "send", "peer": "b", "x": 1}
    loop = {"thread": 1, "name": "x", "state": "asleep", "x": 1}
    fleet.seen = [(1, Snapshot(1))]
    fleet.beside[1, CALLS.text] = {"calls": [call], "loops": [loop], "x": 1}
    (one,), complaints = fleet.look()
    assert complaints == []
    assert one.calls == [Call(CALLING, "dreaming", 1, "send", "b")]
    assert one.loops == [Loop(1, "x", "asleep")]
    assert (one.left_out, one.note, one.is_blocked) == (0, "", False)


def test_the_exit_status() -> None:
    well, untold = Underway(Snapshot(1)), Underway(Snapshot(1), complaint="it does not tell")
    blocked = Underway(Snapshot(1), loops=[Loop(1, "", BLOCKED)])
    silent = Underway(Snapshot(1, status=snapshot.BLOCKED), complaint="it does not answer")
    assert exit_status([well, well]) == 0
    assert exit_status([well, untold]) == exit_status([]) == 1
    assert exit_status([blocked, untold]) == exit_status([well, silent]) == 3
