"""What has happened to connections: each of it once, for real, and no more than is remembered."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import gc
import json
import os
import re
import signal
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import xoscar as xo
from xoscar.errors import ServerClosed

import xoscar_idle
from xoscar_idle import config
from xoscar_idle.connection import history
from xoscar_idle.connection.history import KINDS, REPEATED, Happening, Happenings, note, told
from xoscar_idle.journal import UNNAMED

from ..support.endpoints import ELSEWHERE, refusing
from ..support.hosting import Worker, pools, worker
from ..support.processes import run
from ..support.waiting import BOUND, bounded, eventually_here

NEVER = 600.0
"""Seconds; no test takes so long."""


@pytest.fixture
def journal(monkeypatch: pytest.MonkeyPatch) -> Iterator[Happenings]:
    """That of this process, with what the test does alone in it."""
    made = Happenings(config.Settings.history)
    monkeypatch.setattr(history, "journal", made)
    yield made
    xoscar_idle.uninstall()


def entries(journal: Happenings, *kinds: str) -> list[Happening]:
    return [each for each in journal.since(0)[1] if not kinds or each.kind in kinds]


def shown(journal: Happenings, *kinds: str) -> list[tuple[str, str, str]]:
    return [(each.kind, each.peer, each.text) for each in entries(journal, *kinds)]


# -- each kind, for real ---------------------------------------------------------------------------


@pytest.mark.integration
async def test_opened_and_closed_since_it_is_idle(journal: Happenings) -> None:
    xoscar_idle.install(idle_timeout=0.2)
    with pools() as hosted:
        (address,) = hosted.addresses
        begun = time.time()
        assert await (await worker(address)).echo(1) == 1
        await eventually_here(lambda: entries(journal, "closed"))
        opened, closed = entries(journal)
        assert (opened.kind, opened.peer, opened.text) == ("opened", address, "")
        assert (closed.kind, closed.peer) == ("closed", address)
        assert re.fullmatch(r"idle, after \d+\.\d s and 2 calls", closed.text)
        assert begun <= opened.when <= closed.when <= time.time()
        assert (opened.sequence, closed.sequence) == (1, 2)


@pytest.mark.integration
async def test_closed_by_its_peer(journal: Happenings) -> None:
    xoscar_idle.install(idle_timeout=NEVER)
    with pools(quiet=True) as hosted:
        (address,) = hosted.addresses
        held = asyncio.ensure_future((await worker(address)).hold())
        actor = await worker(address)
        assert await actor.echo(1) == 1
        os.kill(hosted.pid, signal.SIGKILL)
        with pytest.raises(ServerClosed):
            await bounded(held)
    (closed,) = entries(journal, "closed")
    assert closed.peer == address
    pattern = r"(peer|error), after \d+\.\d s and 4 calls, 1 of them in flight: .+"
    assert re.fullmatch(pattern, closed.text)


@pytest.mark.integration
async def test_connect_failed(journal: Happenings) -> None:
    xoscar_idle.install(idle_timeout=NEVER)
    with refusing() as address, pytest.raises(ConnectionError):
        await bounded(worker(address))
    ((kind, peer, text),) = shown(journal)
    assert (kind, peer) == ("connect failed", address)
    assert "refused" in text.lower() or "Connect call failed" in text
    assert text.startswith("after 0.")


@pytest.mark.integration
async def test_cap_exceeded(journal: Happenings) -> None:
    xoscar_idle.install(idle_timeout=NEVER, max_connections=1)
    with pools(2) as hosted:
        first, second = hosted.addresses
        actor = await worker(first)
        held = asyncio.ensure_future(actor.hold())
        await eventually_here(lambda: xoscar_idle.statistics().active)
        await bounded(worker(second))
        assert shown(journal, "cap exceeded") == [
            ("cap exceeded", second, "all in use: 1 connection")
        ]
        held.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await held


@pytest.mark.integration
async def test_deadline_missed(journal: Happenings) -> None:
    xoscar_idle.install(idle_timeout=NEVER)
    with pools() as hosted:
        (address,) = hosted.addresses
        actor = await worker(address)
        with xoscar_idle.deadline(0.1), pytest.raises(TimeoutError):
            await bounded(actor.hold())
        assert shown(journal, "deadline missed") == [
            ("deadline missed", address, "hold() of actor worker: no reply in 0.1 s")
        ]


@pytest.mark.integration
async def test_probe(journal: Happenings) -> None:
    """One that is answered is nothing to speak of."""
    xoscar_idle.install(idle_timeout=NEVER, probe_interval=0.4, probe_timeout=BOUND)
    with pools() as hosted:
        (address,) = hosted.addresses
        actor = await worker(address)
        held = asyncio.ensure_future(actor.hold())
        await eventually_here(lambda: xoscar_idle.statistics().probes)
        xoscar_idle.configure(probe_timeout=0.4)
        os.kill(hosted.pid, signal.SIGSTOP)
        try:
            with pytest.raises(ServerClosed):
                await bounded(held)
        finally:
            os.kill(hosted.pid, signal.SIGCONT)
        assert shown(journal, "probe") == [
            ("probe", address, "it did not answer a probe within 0.4 s")
        ]
        (closed,) = entries(journal, "closed")
        assert closed.text.startswith("silent, after ")


@pytest.mark.integration
async def test_accepted_and_hung_up(journal: Happenings) -> None:
    xoscar_idle.install(idle_timeout=NEVER)
    own = await xo.create_actor_pool(ELSEWHERE, n_process=0)
    async with own:
        await xo.create_actor(Worker, uid="worker", address=own.external_address)
        with pools(XOSCAR_IDLE_TIMEOUT="0.2") as hosted:
            visitor = await worker(hosted.addresses[0])
            assert await bounded(visitor.visit([own.external_address], 7)) == [7]
            await eventually_here(lambda: entries(journal, "hung up"))
        accepted, ended = entries(journal, "accepted", "hung up")
        assert (accepted.kind, ended.kind) == ("accepted", "hung up")
        host, _, port = accepted.peer.rpartition(":")
        assert (host, int(port) > 0) == ("127.0.0.1", True)
        assert ended.peer == accepted.peer
        assert ended.text.startswith("peer, after ")
        assert " request" in ended.text


@pytest.mark.integration
async def test_who_only_looks_whether_the_port_is_open(journal: Happenings) -> None:
    """As load balancers do, again and again: one line for all of a minute."""
    xoscar_idle.install(idle_timeout=NEVER)
    own = await xo.create_actor_pool(ELSEWHERE, n_process=0)
    async with own:
        host, _, port = own.external_address.rpartition(":")
        for number in range(1, 11):
            _, writer = await asyncio.open_connection(host, int(port))
            writer.close()
            await writer.wait_closed()
            await eventually_here(
                lambda: sum(each.times for each in entries(journal, "unused")) == number  # noqa: B023
            )
    ((kind, peer, text),) = shown(journal)
    assert (kind, text) == ("unused", "a connection without a request: peer")
    assert peer.startswith("127.")


# -- what repeats ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", REPEATED)
def test_what_repeats_is_counted(
    journal: Happenings, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """In its first entry, whatever else happens meanwhile, and for a minute."""
    now = 1000.0
    monkeypatch.setattr(time, "time", lambda: now)
    for number in range(3000):
        note(kind, "a:1", f"[Errno 111] embed1, after {number / 1000:.3f} s")
        note(kind, "b:1", f"[Errno 111] embed1, after {number} s")
        now += 0.01
    (first, second) = entries(journal)
    assert (first.peer, first.when, first.text) == (
        "a:1",
        1000,
        "[Errno 111] embed1, after 0.000 s",
    )
    assert (first.times, second.times) == (3000, 3000)
    assert first.until == pytest.approx(1029.99)
    note(kind, "a:1", "[Errno 111] embed2, after 0 s")
    assert len(entries(journal)) == 3, "another one, though with figures in its name"
    now = 1000 + history.COUNTED_FOR
    note(kind, "a:1", "[Errno 111] embed1, after 0 s")
    assert [each.times for each in entries(journal)] == [3000, 3000, 1, 1]
    now = 1000
    note(kind, "a:1", "[Errno 111] embed1, after 0 s")
    assert len(entries(journal)) == 5, "the clock has been put back"


def test_what_does_not_repeat_is_not_counted(journal: Happenings) -> None:
    for kind in set(KINDS) - set(REPEATED):
        note(kind, "a:1", "idle")
        note(kind, "a:1", "idle")
    assert {each.times for each in entries(journal)} == {1}
    assert len(entries(journal)) == 2 * (len(KINDS) - len(REPEATED))


def test_what_is_counted_and_forgotten_stands_there_anew(journal: Happenings) -> None:
    journal.remember(2)
    for each in ("connect failed", "opened", "opened", "connect failed"):
        note(each, "a:1", "why")
    assert [(each.kind, each.times) for each in entries(journal)] == [
        ("opened", 1),
        ("connect failed", 1),
    ]


def test_no_more_is_counted_than_there_is_room_for(
    journal: Happenings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history, "MOST_COUNTED", 5)
    for _ in range(2):
        for peer in range(20):
            note("connect failed", f"{peer}:1", "why")
    assert len(journal._counted) <= 5
    assert sum(each.times for each in entries(journal)) == 40


@pytest.mark.integration
async def test_a_loop_that_calls_who_is_gone(journal: Happenings) -> None:
    """It leaves one entry, and what was before it."""
    xoscar_idle.install(idle_timeout=NEVER, history=10)
    note("opened", "a:1")
    with refusing() as address:
        for _ in range(50):
            with pytest.raises(ConnectionError):
                await bounded(worker(address))
    opened, failed = entries(journal)
    assert (opened.kind, failed.kind, failed.times) == ("opened", "connect failed", 50)
    assert failed.until is not None
    assert failed.until >= failed.when


# -- how much --------------------------------------------------------------------------------------


def test_no_text_is_long(journal: Happenings) -> None:
    note("closed", "a:1", "x" * history.LONGEST)
    note("connect failed", "a:1", "x" * 100_000)
    exact, cut = entries(journal)
    assert exact.text == "x" * history.LONGEST
    assert cut.text == "x" * (history.LONGEST - 3) + "..."


@pytest.mark.integration
def test_no_more_is_remembered_than_is_set(journal: Happenings) -> None:
    """A change holds at once, for what there is, too."""
    xoscar_idle.install(idle_timeout=NEVER, history=10)

    def fill(count: int = 25) -> None:
        for _ in range(count):
            note("opened", "a:1")

    fill()
    assert journal.since(0)[0] == 15
    assert len(entries(journal)) == 10
    xoscar_idle.configure(history=3)
    assert [each.sequence for each in entries(journal)] == [23, 24, 25]
    xoscar_idle.configure(history=20)
    assert [each.sequence for each in entries(journal)] == [23, 24, 25]
    fill()
    assert len(entries(journal)) == 20
    xoscar_idle.configure(history=0)
    fill()
    assert (journal.last, entries(journal), journal._ring) == (50, [], [])


@pytest.mark.integration
async def test_none_at_all(journal: Happenings) -> None:
    """Then it costs nothing: nothing is made, and nothing counted."""
    xoscar_idle.install(idle_timeout=NEVER, history=0)
    with pools() as hosted:
        assert await (await worker(hosted.addresses[0])).echo(1) == 1
    assert (journal.last, journal._ring, journal._counted) == (0, [], {})
    note("opened", "a:1")
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for _ in range(1000):
            note("opened", "a:1")
            note("connect failed", "a:1", "why")
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < 1000


def test_an_entry_takes_a_few_hundred_bytes(journal: Happenings) -> None:
    count = 1000
    gc.collect()
    tracemalloc.start()
    try:
        made = Happenings(count)
        for number in range(count):
            peer, text = f"10.0.0.{number % 250}:{number}", f"{number}: peer, after 30.0 s"
            made.happened("closed", peer, text)
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert taken / count < 400


# -- telling it ------------------------------------------------------------------------------------


def test_what_is_told(journal: Happenings, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "time", lambda: now)
    monkeypatch.setattr(history, "AT_ONCE", 2)
    for each in ("a:1", "b:1", "c:1"):
        note("opened", each)
        now += 1
    first = told(f"0 {UNNAMED}")
    json.dumps(first, allow_nan=False)
    assert (first["last"], first["newest"], first["missed"]) == (2, 3, 0)
    assert (first["oldest"], first["remembered"], first["pid"]) == (1000, 1000, os.getpid())
    assert [Happening.from_dict(each) for each in first["events"]] == entries(journal)[:2]
    rest = told(f"2 {journal.name}")
    assert (rest["last"], [each["peer"] for each in rest["events"]]) == (3, ["c:1"])
    since = told(f"0 {UNNAMED} {1001.0 + history.COUNTED_FOR}")
    assert [each["peer"] for each in since["events"]] == ["b:1", "c:1"]
    note("connect failed", "d:1", "why")
    now += history.COUNTED_FOR - 1
    note("connect failed", "d:1", "why")
    (one,) = told(f"3 {journal.name} {now!r}")["events"]
    assert one["when"] < one["until"] == now, "it has repeated until then"
    assert told("2 of.another")["missed"] is None
    for each in ("", "x -", "1", "0 - x", "0 - 1 2 3x"):
        with contextlib.suppress(ValueError):  # whoever asks so is not answered
            json.dumps(told(each))


def test_one_of_a_later_version() -> None:
    one = Happening(1, 2.0, "closed", "a:1", "idle")
    assert Happening.from_dict({**dataclasses.asdict(one), "new": 1}) == one
    assert Happening.from_dict({"sequence": 1, "when": 2.0, "kind": "x", "peer": "", "text": ""})


# -- forks, threads and finalizers -----------------------------------------------------------------

FORKS = """
import os
import xoscar_idle
from xoscar_idle.connection.history import journal, note

xoscar_idle.install(idle_timeout=30)
note("connect failed", "a:1", "why")
note("opened", "a:1")
name = journal.name
if not os.fork():
    print(journal.last, journal.since(0), journal.name != name, flush=True)
    note("connect failed", "a:1", "why")
    print([(each.sequence, each.times) for each in journal.since(0)[1]], flush=True)
    os._exit(0)
assert os.wait()[1] == 0
note("opened", "a:1")
print(journal.last, journal.name == name)
"""


@pytest.mark.integration
def test_a_forked_child_begins_anew() -> None:
    done = run(sys.executable, "-c", FORKS)
    assert done.stdout.splitlines() == ["0 (0, []) True", "[(1, 1)]", "3 True"]


class Ending:
    """Ends as the owner of a connection does, wherever memory is allocated."""

    def __init__(self, end: Callable[[], object]) -> None:
        self._end = end
        self._self = self

    def __del__(self) -> None:
        self._end()


@pytest.mark.parametrize("kind", ["closed", "connect failed"])
def test_a_finalizer_while_it_is_locked(
    journal: Happenings, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Of the thread that holds it, or of another one: nobody waits for ever."""
    made = Happening.__init__

    def collecting(self: Any, *args: Any, **kwargs: Any) -> None:
        made(self, *args, **kwargs)
        if self.text == "why":  # in `happened`, where the journal is locked
            Ending(lambda: note(kind, "b:1", "finalizer"))
            gc.collect()

    monkeypatch.setattr(Happening, "__init__", collecting)
    threads = [
        threading.Thread(target=note, args=(each, "a:1", "why"), daemon=True)
        for each in ("opened", "connect failed")
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(BOUND)
    assert not any(thread.is_alive() for thread in threads)
    texts = [each.text for each in entries(journal) for _ in range(each.times)]
    assert sorted(texts) == ["finalizer", "finalizer", "why", "why"]


@pytest.mark.integration
def test_many_threads_lose_nothing_of_what_repeats(journal: Happenings) -> None:
    begin = threading.Barrier(8)

    def fail() -> None:
        begin.wait(BOUND)
        for _ in range(500):
            note("connect failed", "a:1", "why")

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        threads = [threading.Thread(target=fail) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(BOUND)
    finally:
        sys.setswitchinterval(interval)
    (one,) = entries(journal)
    assert one.times == 4000
