"""What has happened, in numbers without a gap: the journal alone, and that of real pools."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import xoscar as xo

import xoscar_idle
from xoscar_idle import InstructionFailed
from xoscar_idle.journal import UNNAMED
from xoscar_idle.supervision.events import REMEMBERED, Event, Events, journal
from xoscar_idle.supervision.lineage import Lineage
from xoscar_idle.supervision.state import PoolInfo

from ..support import crashing
from ..support.crashing import Failing, error_of, revived, sub_pools, victim
from ..support.processes import run
from ..support.waiting import BOUND, bounded, eventually_here

LINEAGE = Lineage(3, "10.0.0.7:41235", label="llama", incarnation=2)


def filled(count: int) -> Events:
    made = Events(REMEMBERED)
    for number in range(1, count + 1):
        assert made.happened("state", LINEAGE, "healthy", f"{number}") == number
    return made


def sequences(found: list[Event]) -> list[int]:
    return [each.sequence for each in found]


# -- the journal alone -----------------------------------------------------------------------------


def test_an_event_tells_all_of_its_sub_pool() -> None:
    made, begun = Events(REMEMBERED), time.time()
    assert made.last == 0
    assert made.since(0) == (0, [])
    assert made.happened("crash", LINEAGE, "healthy", "killed") == 1
    _, (event,) = made.since(0)
    assert begun <= event.when <= time.time()
    assert event == Event(
        *(1, event.when, "crash", "10.0.0.7:41235", 3, 2, 0, "llama", "healthy", "killed")
    )
    assert Event.from_dict(json.loads(json.dumps(vars(event)))) == event
    assert Event.from_dict({**vars(event), "of a later version": 1}) == event
    with pytest.raises(dataclasses.FrozenInstanceError):
        event.sequence = 2  # type: ignore[misc]


@pytest.mark.parametrize(
    ("count", "since", "missed", "first"),
    [
        (3, 0, 0, 1),
        (3, 2, 0, 3),
        (REMEMBERED, 0, 0, 1),
        (REMEMBERED + 1, 0, 1, 2),
        (REMEMBERED + 1, 1, 0, 2),
        (REMEMBERED + 500, 0, 500, 501),
        (REMEMBERED + 500, 499, 1, 501),
        (REMEMBERED + 500, 500, 0, 501),
        (REMEMBERED + 500, 501, 0, 502),
    ],
)
def test_the_last_thousand_are_remembered(count: int, since: int, missed: int, first: int) -> None:
    made = filled(count)
    assert made.last == count
    forgotten, found = made.since(since)
    assert forgotten == missed
    assert sequences(found) == list(range(first, count + 1))
    assert [each.text for each in found] == [f"{n}" for n in range(first, count + 1)]


@pytest.mark.parametrize("since", [3, 4, 10**30])
def test_after_the_last_there_is_nothing(since: int) -> None:
    assert filled(3).since(since) == (0, [])


def test_who_asks_in_turns_misses_nothing() -> None:
    made = filled(5)
    told = made.told(UNNAMED, 0)
    assert (told["pid"], told["journal"], told["missed"]) == (os.getpid(), made.name, 0)
    assert told["last"] == 5
    assert [each["sequence"] for each in told["events"]] == [1, 2, 3, 4, 5]
    json.dumps(told, allow_nan=False)
    again = made.told(told["journal"], told["last"])
    assert (again["missed"], again["last"], again["events"]) == (0, 5, [])
    made.happened("state", LINEAGE, "busy")
    again = made.told(told["journal"], told["last"])
    assert (again["missed"], again["last"]) == (0, 6)
    assert [each["state"] for each in again["events"]] == ["busy"]


def test_what_is_forgotten_is_counted() -> None:
    told = filled(REMEMBERED + 7).told(UNNAMED, 0)
    assert (told["missed"], told["last"]) == (7, REMEMBERED + 7)
    assert told["events"][0]["sequence"] == 8


@pytest.mark.parametrize("number", [-1, 4, 10**30])
def test_a_number_that_this_journal_never_had(number: int) -> None:
    """Of what it was of nothing is known: all is told, from the beginning."""
    made = filled(3)
    for name in (made.name, UNNAMED):
        assert made.position(name, number) == (0, False)
        told = made.told(name, number)
        assert (told["missed"], told["last"]) == (None, 3)
        assert len(told["events"]) == 3


@pytest.mark.parametrize("name", ["", "1a21386b308.30d8", "-1", " -", "-\0"])
@pytest.mark.parametrize("number", [0, 2, 3])
def test_the_number_of_another_process(name: str, number: int) -> None:
    made = filled(3)
    assert made.position(name, number) == (0, False)
    assert made.told(name, number)["missed"] is None


def test_numbers_of_this_journal() -> None:
    made = filled(3)
    for number in range(4):
        assert made.position(made.name, number) == (number, True)
    assert made.position(UNNAMED, 0) == (0, True)
    assert Events(REMEMBERED).position(UNNAMED, 0) == (0, True)


def test_it_begins_anew() -> None:
    made, calls = filled(3), list[int]()
    made.listen(lambda: calls.append(made.last))
    made.clear()
    assert (made.last, made.since(0)) == (0, (0, []))
    assert made.happened("state", LINEAGE, "healthy") == 1
    assert calls == [], "who listened did so in another process"


def test_who_listens_is_called_after_each_event() -> None:
    made, heard, others = Events(REMEMBERED), list[int](), list[int]()

    def listener() -> None:
        heard.append(made.since(0)[1][-1].sequence)

    def other() -> None:
        others.append(made.last)

    made.listen(listener)
    made.listen(listener)
    made.listen(other)
    made.happened("state", LINEAGE, "busy")
    made.happened("state", LINEAGE, "healthy")
    assert (heard, others) == ([1, 2], [1, 2]), "once each, though it was asked for twice"
    made.ignore(listener)
    made.ignore(listener)
    made.happened("state", LINEAGE, "busy")
    assert (heard, others) == ([1, 2], [1, 2, 3])


def test_one_that_fails_disturbs_nobody(caplog: pytest.LogCaptureFixture) -> None:
    made, heard = Events(REMEMBERED), list[int]()
    loop = asyncio.new_event_loop()
    loop.close()

    def fail() -> None:
        raise RuntimeError("it fails")

    def closed() -> None:
        loop.call_soon_threadsafe(print)

    made.listen(fail)
    made.listen(closed)
    made.listen(lambda: heard.append(made.last))
    assert made.happened("state", LINEAGE, "busy") == 1
    assert heard == [1]
    assert not caplog.records


def test_one_that_goes_while_it_is_called() -> None:
    made, heard = Events(REMEMBERED), list[str]()

    def first() -> None:
        heard.append("first")
        made.ignore(first)
        made.ignore(second)

    def second() -> None:
        heard.append("second")

    made.listen(first)
    made.listen(second)
    made.happened("state", LINEAGE, "busy")
    made.happened("state", LINEAGE, "healthy")
    assert heard == ["first", "second"], "the second was to be called by then"


@pytest.mark.integration
def test_many_threads_lose_and_repeat_nothing() -> None:
    """Those that add, and one that asks in turns as a stream does."""
    made, count, per = Events(REMEMBERED), 8, 400
    numbers: list[list[int]] = [[] for _ in range(count)]
    seen, forgotten, calls = list[int](), 0, list[None]()
    begin, done = threading.Barrier(count + 1), threading.Event()
    made.listen(lambda: calls.append(None))

    def add(into: list[int]) -> None:
        begin.wait(BOUND)
        for _ in range(per):
            into.append(made.happened("state", LINEAGE, "healthy"))

    def read() -> None:
        nonlocal forgotten
        name, number = UNNAMED, 0
        begin.wait(BOUND)
        is_last = False
        while not is_last:
            is_last = done.is_set()
            told = made.told(name, number)
            assert told["missed"] is not None
            forgotten += told["missed"]
            seen.extend(each["sequence"] for each in told["events"])
            name, number = told["journal"], told["last"]

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        adding = [threading.Thread(target=add, args=(each,)) for each in numbers]
        reading = threading.Thread(target=read)
        for thread in (*adding, reading):
            thread.start()
        for thread in adding:
            thread.join(BOUND)
        done.set()
        reading.join(BOUND)
    finally:
        sys.setswitchinterval(interval)
    assert sorted(n for each in numbers for n in each) == list(range(1, count * per + 1))
    assert all(each == sorted(each) for each in numbers)
    assert seen == sorted(set(seen)), "nothing twice, and in their order"
    assert len(seen) + forgotten == count * per
    assert seen[-1] == made.last == count * per == len(calls)


FORKS = """
import os, threading
from xoscar_idle.supervision import events, supervisor
from xoscar_idle.supervision.events import journal
from xoscar_idle.supervision.lineage import Lineage

import xoscar, xoscar_idle
xoscar_idle.install(idle_timeout=30)
lineage, calls = Lineage(1, "a:1"), []
journal.listen(lambda: calls.append(os.getpid()))
for _ in range(3):
    journal.happened("state", lineage, "healthy")
name, read_write = journal.name, os.pipe()

def hold():  # what a thread holds that the child does not have
    with journal._lock:
        held.set()
        go_on.wait()

held, go_on = threading.Event(), threading.Event()
holding = threading.Thread(target=hold)
holding.start()
held.wait()
if not (child := os.fork()):
    begun = (journal.last, journal.since(0), journal.name != name, journal.position(name, 2))
    added = journal.happened("state", lineage, "busy")
    told = journal.told(name, 3)
    print(begun, added, told["missed"], len(told["events"]), len(calls), flush=True)
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
go_on.set()
holding.join()
journal.happened("state", lineage, "busy")
print(journal.name == name, journal.last, len(calls), set(calls) == {os.getpid()})
"""


@pytest.mark.integration
def test_a_forked_child_begins_anew() -> None:
    """Under another name; its parent goes on."""
    done = run(sys.executable, "-c", FORKS)
    assert done.stdout.splitlines() == [
        "(0, (0, []), True, (0, False)) 1 None 1 3",
        "True 4 4 True",
    ]


# -- that of real pools ----------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def anew() -> None:
    """The journal of this process has room for a test; others may have filled it."""
    with journal._lock:
        listeners = list(journal._listeners)
        journal.clear()
        journal._listeners.extend(listeners)


def told(address: str) -> PoolInfo:
    (found,) = [each for each in xoscar_idle.pools() if each.address == address]
    return found


def since(number: int, *kinds: str) -> list[Event]:
    """What has happened, without a gap."""
    missed, found = journal.since(number)
    assert missed == 0
    assert sequences(found) == list(range(number + 1, number + 1 + len(found)))
    return [each for each in found if not kinds or each.kind in kinds]


def happened(number: int) -> list[tuple[str, str, int]]:
    return [(each.kind, each.state, each.incarnation) for each in since(number)]


@pytest.mark.integration
async def test_a_kill_and_its_recovery(acting: Any) -> None:
    before = journal.last
    async with crashing.pool(2) as pool:
        first, second = sub_pools(pool)
        created = since(before)
        assert {(each.kind, each.state) for each in created} == {("state", "healthy")}
        assert [each.lineage for each in created] == [
            told(each).lineage for each in (first, second)
        ]
        for address, event in zip((first, second), created, strict=True):
            info = told(address)
            assert (info.sequence, info.address) == (event.sequence, event.address)
            assert info.pid == event.pid
            assert info.since == pytest.approx(event.when, abs=1)
        before, pid = journal.last, told(first).pid
        await error_of((await victim(first)).die("kill"))
        await revived(first)
        await eventually_here(lambda: told(first).state == "healthy")
        assert happened(before) == [
            ("crash", "healthy", 1),
            ("state", "recovering", 1),
            ("state", "starting", 1),
            ("state", "healthy", 2),
        ]
        crash, recovering, starting, healthy = since(before)
        assert {each.lineage for each in since(before)} == {told(first).lineage}
        assert crash.text == told(first).last_failure
        assert f"(pid {pid}) was killed by SIGKILL" in crash.text
        assert (crash.pid, recovering.pid, healthy.pid) == (pid, pid, told(first).pid)
        assert starting.text == f"process {healthy.pid} is starting"
        assert crash.when <= recovering.when <= starting.when <= healthy.when
        assert told(first).sequence == healthy.sequence == before + 4
        assert told(second).sequence == created[1].sequence, "nothing has happened to the other"


@pytest.mark.integration
async def test_the_number_of_the_last_change_of_its_state(acting: Any) -> None:
    """Whatever happens: what is told and the journal agree."""
    acting(hang_timeout=0)
    async with crashing.pool(2) as pool:
        first, second = sub_pools(pool)
        await bounded(xoscar_idle.apply("pause", first))
        await bounded(xoscar_idle.apply("restart", second))
        await bounded(xoscar_idle.apply("resume", first))
        await error_of((await victim(second)).die("exit 7"))
        await revived(second)
        await eventually_here(lambda: {each.state for each in xoscar_idle.pools()} == {"healthy"})
        for address in (first, second):
            info = told(address)
            changes = [e for e in since(0, "state") if e.lineage == info.lineage]
            assert info.sequence == changes[-1].sequence
            assert (info.state, info.pid) == (changes[-1].state, changes[-1].pid)
            states = [each.state for each in changes]
            assert all(a != b for a, b in itertools.pairwise(states)), states


@pytest.mark.integration
async def test_an_instruction_is_told_when_it_begins_and_ends(acting: Any) -> None:
    async with crashing.pool(1) as pool:
        (address,) = sub_pools(pool)
        before = journal.last
        await bounded(xoscar_idle.apply("restart", address, request_id="roll-2"))
        found = since(before)
        running, *between, succeeded = found
        assert (running.kind, running.state) == ("instruction", "running")
        assert running.text == "restart (request_id roll-2)"
        assert (succeeded.kind, succeeded.state) == ("instruction", "succeeded")
        assert succeeded.text == "restart (request_id roll-2): it has been replaced"
        assert (running.incarnation, succeeded.incarnation) == (1, 2)
        assert [each.state for each in between] == ["recovering", "starting", "healthy"]
        assert not since(before, "crash")
        before = journal.last
        await bounded(xoscar_idle.apply("restart", address, request_id="roll-2"))
        assert since(before) == [], "it is the same request"


@pytest.mark.integration
async def test_an_instruction_that_fails(acting: Any, tmp_path: Path) -> None:
    acting(restart_limit="1/60", restart_cooldown=3600)
    bad = tmp_path / "bad"
    async with crashing.pool(1) as pool:
        (address,) = sub_pools(pool)
        await xo.create_actor(Failing, str(bad), uid="failing", address=address)
        bad.touch()
        await error_of((await victim(address)).die("kill"))
        await eventually_here(lambda: told(address).state == "degraded")
        before = journal.last
        with pytest.raises(InstructionFailed, match="there is that file"):
            await bounded(xoscar_idle.apply("retry", address, request_id="r"))
        await eventually_here(lambda: len(since(before, "instruction")) == 2)
        running, failed = since(before, "instruction")
        assert (running.state, running.text) == ("running", "retry (request_id r)")
        assert failed.state == "failed"
        assert failed.text.startswith("retry (request_id r): ")
        assert "there is that file" in failed.text
        bad.unlink()


@pytest.mark.integration
async def test_one_that_is_refused_has_not_happened(acting: Any) -> None:
    async with crashing.pool(1) as pool:
        (address,) = sub_pools(pool)
        before = journal.last
        with pytest.raises(xoscar_idle.InstructionRefused):
            await xoscar_idle.apply("restart", address, expect_incarnation=7)
        assert since(before) == []


@pytest.mark.integration
async def test_nobody_is_called_for_pools_that_have_gone(acting: Any) -> None:
    """The side thread hears of what happens as long as there is something to look at."""
    async with crashing.pool(1):
        assert journal._listeners
    await eventually_here(lambda: not journal._listeners)
    async with crashing.pool(1):
        assert journal._listeners
        xoscar_idle.configure(supervise="off")
        assert not journal._listeners
        xoscar_idle.configure(supervise="act")
        assert journal._listeners
        xoscar_idle.uninstall()
        assert not journal._listeners


@pytest.mark.integration
async def test_without_supervision_they_are_told_as_well() -> None:
    """As the states are: of deaths and recoveries, not of health."""
    xoscar_idle.install(idle_timeout=600)
    try:
        async with crashing.pool(1) as pool:
            (address,) = sub_pools(pool)
            before = journal.last
            pool.sub_processes[address].kill()
            await eventually_here(lambda: told(address).incarnation == 2)
            await eventually_here(lambda: told(address).state == "healthy")
            assert [each[:2] for each in happened(before)] == [
                ("crash", "healthy"),
                ("state", "recovering"),
                ("state", "starting"),
                ("state", "healthy"),
            ]
    finally:
        xoscar_idle.uninstall()
