"""Asking processes for what has happened, a bit at a time: scripted ones, and real ones."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

from xoscar_idle.connection import history as connections
from xoscar_idle.connection.history import Happening
from xoscar_idle.supervision.events import Event
from xoscar_idle.telemetry import history, sources
from xoscar_idle.telemetry.asking import Question, Silent, Unanswered
from xoscar_idle.telemetry.history import Happened, History
from xoscar_idle.telemetry.snapshot import Unobservable
from xoscar_idle.telemetry.sources import CONNECTIONS, SUB_POOLS
from xoscar_idle.telemetry.targets import Target

from ..support import crashing, processes
from ..support.crashing import Host
from ..support.endpoints import refusing
from ..support.environment import environment
from ..support.hosting import pools
from ..support.patients import blocked
from ..support.waiting import bounded, eventually, eventually_told

# -- scripted --------------------------------------------------------------------------------------


def page(*numbers: int, journal: str = "a.1", **more: Any) -> dict[str, Any]:
    """An answer with the entries of these numbers."""
    events = [{"sequence": n, "when": n, "kind": "opened", "peer": "", "text": ""} for n in numbers]
    last = numbers[-1] if numbers else more.pop("last", 0)
    return {"pid": 1, "journal": journal, "missed": 0, "last": last, "events": events, **more}


@dataclass
class Scripted:
    """A source that gives these answers, and then the last of them."""

    answers: list[Any]
    name: Target = 1
    tells: Sequence[str] = (CONNECTIONS,)
    asked: list[str] = field(default_factory=list)

    @asynccontextmanager
    async def conversation(self) -> AsyncIterator[Callable[[Question], Awaitable[str]]]:
        async def ask(question: Question) -> str:
            self.asked.append(question.text.removeprefix(history.QUESTION[CONNECTIONS]).strip())
            answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
            if isinstance(answer, Exception):
                raise answer
            return answer if isinstance(answer, str) else json.dumps(answer)

        yield ask


@contextlib.contextmanager
def scripted(*those: Scripted, named: bool = True, **options: Any) -> Iterator[History]:
    made = History([each.name for each in those] if named else [], **options)

    async def now() -> tuple[list[Any], list[str]]:
        return list(those), []

    made._sources.now = now  # type: ignore[method-assign]
    try:
        yield made
    finally:
        made.close()


def numbers(happened: Sequence[Happened]) -> list[int]:
    return [event.sequence for each in happened for event in each.events]


async def test_in_turns() -> None:
    one = Scripted([page(1, 2, newest=2), page(last=2, newest=2), page(3, newest=3)])
    with scripted(one) as asked:
        (first,), complaints = await asked.look()
        assert ([first.name, first.of, first.pid, first.missed], complaints) == (
            [1, CONNECTIONS, 1, 0],
            [],
        )
        assert (first.begins, first.journal, numbers([first])) == (True, "a.1", [1, 2])
        (nothing,), _ = await asked.look()
        assert (nothing.begins, nothing.events) == (False, [])
        assert numbers((await asked.look())[0]) == [3]
    assert one.asked == ["0 -", "2 a.1", "2 a.1"]


async def test_an_answer_that_is_a_part() -> None:
    """It is asked on for what there was at first; what comes meanwhile is for the next look."""
    one = Scripted(
        [
            page(6, 7, newest=9, missed=5, oldest=6),
            page(8, 9, newest=11, oldest=7, missed=1),
            page(10, 11, newest=11),
        ]
    )
    with scripted(one, since=4.0) as asked:
        (first,), _ = await asked.look()
        assert (numbers([first]), first.missed, first.oldest) == ([6, 7, 8, 9], 6, 6)
        assert one.asked == ["0 - 4.0", "7 a.1 4.0"]
        assert numbers((await asked.look())[0]) == [10, 11]


async def test_who_tells_less_than_it_says() -> None:
    one = Scripted([page(1, newest=9)])
    with scripted(one) as asked:
        assert numbers((await bounded(asked.look()))[0]) == [1, 1]
    assert one.asked == ["0 -", "1 a.1"]


async def test_another_process() -> None:
    """It comes between two looks, or between two parts of one."""
    other = page(1, 2, journal="b.2", missed=None, newest=2)
    one = Scripted([page(1, newest=3), other, page(last=2, journal="b.2", newest=2)])
    with scripted(one) as asked:
        (first,), _ = await asked.look()
        assert (first.missed, first.begins, numbers([first])) == (None, True, [1, 1, 2])
        assert (await asked.look())[0][0].missed == 0
    two = Scripted([page(1, newest=1), other])
    with scripted(two) as asked:
        await asked.look()
        (second,), _ = await asked.look()
        assert (second.missed, second.begins, numbers([second])) == (None, True, [1, 2])


async def test_who_is_named_twice_is_told_once() -> None:
    first, second = Scripted([page(1, newest=1)]), Scripted([page(1, newest=1)], name="a:1")
    with scripted(first, second) as asked:
        (only,), _ = await asked.look()
        assert only.name == 1


@pytest.mark.parametrize(
    "answer",
    [
        "no JSON",
        "[]",
        "1",
        {},
        page(1, missed="some"),
        page(1, pid="x"),
        {**page(1), "events": [{}]},
        {**page(1), "events": [{**page(1)["events"][0], "when": "now"}]},
        {**page(1), "events": 7},
    ],
    ids=str,
)
async def test_who_does_not_tell_as_expected(answer: Any) -> None:
    well = Scripted([page(1, journal="b.2", newest=1)], name=2)
    with scripted(Scripted([answer]), well) as asked:
        happened, (complaint,) = await asked.look()
        assert [each.name for each in happened] == [2]
        assert complaint.startswith("1 does not tell what happened: ")


@pytest.mark.parametrize("known", [SUB_POOLS, CONNECTIONS])
async def test_one_that_knows_one_question_alone(known: str) -> None:
    answers: list[Any] = [page(), Unobservable("it is older")]
    one = Scripted(answers if known == SUB_POOLS else answers[::-1], tells=(SUB_POOLS, CONNECTIONS))
    with scripted(one) as asked:
        (told,), complaints = await asked.look()
        assert (told.of, complaints) == (known, ["it is older"])


async def test_one_that_knows_neither_is_complained_of_once() -> None:
    answers = [Unobservable("no sub-pools"), Unobservable("no connections")]
    with scripted(Scripted([*answers], tells=(SUB_POOLS, CONNECTIONS))) as asked:
        assert await asked.look() == ([], ["no sub-pools"])


async def test_what_was_told_before_it_was_stopped_is_not_lost() -> None:
    one = Scripted([page(1), Unanswered("it did not answer")], tells=(CONNECTIONS, CONNECTIONS))
    with scripted(one) as asked:
        happened, complaints = await asked.look()
        assert (numbers(happened), complaints) == ([1], ["it did not answer"])


async def test_who_has_just_gone_is_no_matter_unless_it_is_named() -> None:
    for named in (True, False):
        with scripted(Scripted([Silent("there is no process 1")]), named=named) as asked:
            assert await asked.look() == ([], ["there is no process 1"] if named else [])


async def test_who_is_stopped_is_not_asked_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor are the others let wait; but that it is, is told each time."""
    one = Scripted([Unanswered("it did not answer"), page(1, newest=1)])
    with scripted(one) as asked:
        for _ in range(3):
            assert await asked.look() == ([], ["it did not answer"])
        assert len(one.asked) == 1
        monkeypatch.setattr(history, "AGAIN", 0.0)
        asked._silent.clear()
        assert numbers((await asked.look())[0]) == [1]


async def test_only_of_what_is_asked_for() -> None:
    one = Scripted([page(1, newest=1)], tells=(SUB_POOLS, CONNECTIONS))
    with scripted(one, of=[CONNECTIONS]) as asked:
        await asked.look()
    assert one.asked == ["0 -"]


# -- real ones -------------------------------------------------------------------------------------

integration = pytest.mark.integration


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where monitors are, for these tests alone."""
    with tempfile.TemporaryDirectory() as directory:
        monkeypatch.setenv("XOSCAR_IDLE_MONITOR", directory)
        yield Path(directory)


@contextlib.contextmanager
def program(text: str = "", **variables: str) -> Iterator[subprocess.Popen[str]]:
    """A process that is active and has run ``text``; each line of its input is run, too."""
    text = f"""
import sys, xoscar
from xoscar_idle.connection.history import journal, note
{text}
print('ready', flush=True)
for line in sys.stdin:
    exec(line)
    print('done', flush=True)
"""
    monitor = os.environ["XOSCAR_IDLE_MONITOR"]
    env = environment(XOSCAR_IDLE_MONITOR=monitor, XOSCAR_IDLE_TIMEOUT="600", **variables)
    with processes.started(sys.executable, "-c", text, env=env) as process:
        assert processes.line(process) == "ready"
        yield process


@contextlib.contextmanager
def asking(*named: Target, since: float = -math.inf) -> Iterator[Callable[[], Any]]:
    """Looks, one after the other, of one History."""
    made, loop = History(named, since=since), asyncio.new_event_loop()
    try:
        yield lambda: loop.run_until_complete(bounded(made.look()))
    finally:
        made.close()
        loop.close()


def of_connections(happened: Sequence[Happened]) -> dict[Target, list[Happening]]:
    return {
        each.name: [event for event in each.events if isinstance(event, Happening)]
        for each in happened
        if each.of == CONNECTIONS
    }


@integration
def test_a_process_of_this_machine(place: Path) -> None:
    """More than one answer has, and than it remembers; then what comes."""
    assert connections.AT_ONCE < 2000
    fill = "for n in range(2500): note('opened', f'a:{n}')"
    with program(fill, XOSCAR_HISTORY="2000") as process, asking(process.pid) as look:
        happened, complaints = look()
        assert complaints == []
        (told,) = (each for each in happened if each.of == CONNECTIONS)
        assert [each.peer for each in told.events if isinstance(each, Happening)] == [
            f"a:{n}" for n in range(500, 2500)
        ]
        assert (told.missed, told.remembered, told.pid) == (500, 2000, process.pid)
        assert told.oldest == told.events[0].when
        assert [each.events for each in happened if each.of == SUB_POOLS] == [[]]
        processes.tell(process, "note('closed', 'a:1', 'idle')")
        assert processes.line(process) == "done"
        happened, _ = look()
        assert [each.kind for each in of_connections(happened)[process.pid]] == ["closed"]
        middle = told.events[1500].when
        # So long before it one may have begun that has repeated until then.
        with asking(process.pid, since=middle + connections.COUNTED_FOR) as since:
            (later,) = of_connections(since()[0]).values()
        assert [each.sequence for each in later] == [*range(later[0].sequence, 2502)]
        assert later[0].when >= middle > told.events[later[0].sequence - 502].when


@integration
def test_one_whose_version_is_older(place: Path) -> None:
    """It tells what it can."""
    with (
        program(
            "from xoscar_idle import side_channel as s; s._answers.pop('xoscar_idle happened ')"
        ) as process,
        asking(process.pid) as look,
    ):
        (told,), (complaint,) = look()
        assert told.of == SUB_POOLS
        assert complaint == (
            f"process {process.pid} cannot tell of its connections: the xoscar-idle in it is older"
        )


@integration
def test_all_that_offer_a_monitor(place: Path) -> None:
    with asking() as look:
        happened, (complaint,) = look()
        assert happened == []
        assert complaint.startswith("no process of this user offers a monitor")
        with program("note('opened', 'a:1')") as first, program("note('opened', 'b:1')") as second:
            happened, complaints = look()
            assert complaints == []
            peers = {k: [e.peer for e in v] for k, v in of_connections(happened).items()}
            assert peers == {first.pid: ["a:1"], second.pid: ["b:1"]}
            os.kill(second.pid, signal.SIGSTOP)
            eventually(lambda: psutil.Process(second.pid).status() == psutil.STATUS_STOPPED)
            try:
                _, complaints = look()
                assert complaints == [f"process {second.pid} did not answer in 2 s"]
            finally:
                os.kill(second.pid, signal.SIGCONT)


@integration
def test_all_processes_of_a_pool_by_any_of_them(place: Path) -> None:
    with pools(1, 2, XOSCAR_IDLE_TIMEOUT="600") as hosted:
        for address in hosted.addresses[:2]:
            with asking(address) as look:
                happened, complaints = look()
                assert complaints == []
                told = of_connections(happened)
                assert list(told) == hosted.addresses
                assert all(any(e.kind == "opened" for e in each) for each in told.values())
                (main,) = (each for each in happened if each.of == SUB_POOLS)
                assert (main.name, main.pid) == (hosted.addresses[0], hosted.pid)
                assert len({each.pid for each in happened}) == 3
                happened, _ = look()
                assert numbers(happened) == [], "who looks leaves no trace"


@integration
@pytest.mark.parametrize("which", [0, 1], ids=["main", "sub-pool"])
def test_one_that_is_blocked_tells_over_its_side_channel(
    place: Path, monkeypatch: pytest.MonkeyPatch, which: int
) -> None:
    monkeypatch.setattr("xoscar_idle.telemetry.pool_query.TIMEOUT", 2.0)
    with pools(1, 1, XOSCAR_IDLE_TIMEOUT="600", XOSCAR_SUPERVISE="observe") as hosted:
        address = hosted.addresses[which]
        with blocked(address, place), asking(hosted.addresses[0]) as look:
            for _ in range(2):
                happened, complaints = look()
                assert complaints == []
                assert set(hosted.addresses) == {each.name for each in happened}
                assert [e.name for e in happened if e.of == SUB_POOLS] == [hosted.addresses[0]]


@integration
def test_one_that_is_blocked_and_offers_no_monitor(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("xoscar_idle.telemetry.pool_query.TIMEOUT", 2.0)
    with pools(1, 1, XOSCAR_IDLE_TIMEOUT="600", XOSCAR_IDLE_MONITOR="0") as hosted:
        main, sub_pool = hosted.addresses
        with blocked(sub_pool, place), asking(main) as look:
            happened, (complaint,) = look()
            assert {each.name for each in happened} == {main}
            assert complaint.startswith(f"{sub_pool}: did not answer in 2 s; no monitor")


@pytest.fixture
def host(place: Path) -> Iterator[Host]:
    with crashing.host(
        XOSCAR_IDLE_TIMEOUT="600", XOSCAR_SUPERVISE="observe", XOSCAR_IDLE_MONITOR=f"{place}"
    ) as made:
        yield made


@integration
async def test_what_takes_the_place_of_one(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is told as another process; and it is looked again who there is."""
    monkeypatch.setattr(sources, "REFRESH", 0.0)
    made = History([host.main])
    try:
        happened, _ = await made.look()
        (told,) = (each for each in happened if each.name == host.first)
        os.kill(told.pid, signal.SIGKILL)
        seen: list[Happened] = []

        async def is_back() -> bool:
            happened, _ = await made.look()
            seen.extend(happened)
            return any(each.name == host.first and each.missed is None for each in happened)

        await eventually_told(is_back)

        async def is_well() -> bool:
            happened, complaints = await made.look()
            seen.extend(happened)
            return not complaints

        await eventually_told(is_well)
        kinds = [event.kind for each in seen for event in each.events if isinstance(event, Event)]
        assert kinds[0] == "crash"
        assert kinds.count("crash") == 1
    finally:
        made.close()


@integration
def test_over_both_ways_it_is_the_same(host: Host) -> None:
    """And who is named twice, by its PID and its pool, tells once."""
    with asking(host.pid) as look:
        over_side_channel, _ = look()
    with asking(host.main) as look:
        over_xoscar, _ = look()
    with asking(host.pid, host.main) as look:
        both, _ = look()
    local = {each.of: each.events for each in over_side_channel}
    remote = {each.of: each.events for each in over_xoscar if each.pid == host.pid}
    assert local.keys() == remote.keys() == {SUB_POOLS, CONNECTIONS}
    assert local[SUB_POOLS] == remote[SUB_POOLS]
    assert remote[CONNECTIONS][: len(local[CONNECTIONS])] == local[CONNECTIONS]
    assert [each.name for each in both if each.pid == host.pid] == [host.pid, host.pid]
    assert len(both) == len(over_xoscar)


@integration
def test_a_pool_that_does_not_tell_which_is_its_main_pool(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An older one: that is asked for, as whoever names a sub-pool has it done."""
    monkeypatch.setattr(sources, "_is_main", lambda one: False)
    for address in (host.main, host.first):
        with asking(address) as look:
            for has_all in (True, False):
                happened, complaints = look()
                assert complaints == []
                (told,) = (each for each in happened if each.of == SUB_POOLS)
                assert (told.name, bool(told.events)) == (address, has_all)


@integration
def test_a_pool_whose_version_is_older(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """To a question that it does not know it answers as xoscar does."""
    monkeypatch.setitem(history.QUESTION, CONNECTIONS, "xoscar_idle of a later version")
    with asking(host.main) as look:
        (told,), complaints = look()
        assert told.of == SUB_POOLS
        assert complaints == [
            f"{each} cannot tell of its connections: xoscar-idle is not active there, or is older"
            for each in (host.main, host.first, host.second)
        ]


@integration
def test_one_that_is_stopped_meanwhile(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "TIMEOUT", 2.0)
    with asking(host.main) as look:
        happened, _ = look()
        (stopped,) = (each.pid for each in happened if each.name == host.first)
        os.kill(stopped, signal.SIGSTOP)
        eventually(lambda: psutil.Process(stopped).status() == psutil.STATUS_STOPPED)
        try:
            happened, complaints = look()
        finally:
            os.kill(stopped, signal.SIGCONT)
        assert {each.name for each in happened} == {host.main, host.second}
        assert complaints == [f"{host.first} did not answer in 2 s"]


@integration
def test_a_pool_that_is_not_there(place: Path) -> None:
    with refusing() as address, asking(address) as look:
        happened, (complaint,) = look()
        assert happened == []
        assert re.match(f"no pool answers at {address}: ", complaint)
        assert look()[1] == [complaint]
