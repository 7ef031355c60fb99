"""Closing connections from outside the program: whose, when, and what becomes of calls."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
import xoscar as xo
from xoscar.errors import ServerClosed

import xoscar_idle
from xoscar_idle import changes, config, side_channel
from xoscar_idle.connection import accepted, closing, counters, history, registry, statistics
from xoscar_idle.connection.accepted import Accepted
from xoscar_idle.connection.closing import Closed, NoSuchPeer

from ..support.endpoints import ELSEWHERE, deaf
from ..support.hosting import Worker, pools, worker
from ..support.memory import VirtualTimeLoop, settle
from ..support.waiting import BOUND, bounded, eventually_here
from .test_accepted import Pool, frame

# -- what is meant ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("peer", "name", "is_meant"),
    [
        ("10.0.0.7:9000", "10.0.0.7:9000", True),
        ("10.0.0.7:9000", "10.0.0.7:90001", False),
        ("10.0.0.7", "10.0.0.7:9000", False),
        ("10.0.0.*:*", "10.0.0.7:9000", True),
        ("10.0.0.*:*", "10.0.1.7:9000", False),
        ("10.0.0.?:9000", "10.0.0.7:9000", True),
        ("10.0.0.?:9000", "10.0.0.17:9000", False),
        ("*", "unixsocket:///4711", True),
        ("unixsocket:///*", "unixsocket:///4711", True),
        ("[fd00::7]:9000", "[fd00::7]:9000", True),
        ("[fd00::*]:*", "[fd00::7]:9000", True),
        ("[12]:9000", "1:9000", False),
        ("pid 4711", "pid 4711", True),
        ("HOST:1", "host:1", False),
        (".*", "10.0.0.7:9000", False),
        ("*" * 100 + "x", "a" * 100, False),
    ],
)
def test_which_names_a_pattern_means(peer: str, name: str, is_meant: bool) -> None:
    """Brackets are those of IPv6 addresses, and nothing is guessed."""
    assert closing._matcher(peer)(name) is is_meant


@pytest.mark.parametrize("peer", ["", "a\nb:1", "a\0:1", "\x1b[2J", "x" * 201, "\ud800"])
def test_what_is_no_peer(peer: str) -> None:
    with pytest.raises(ValueError, match="the peer must be an address, or a pattern") as error:
        closing.close(peer)
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 250


# -- on real pools ---------------------------------------------------------------------------------

real = pytest.mark.integration


async def close(*arguments: Any) -> Closed:
    """As the side thread does, which runs none of the loops."""
    return await bounded(asyncio.to_thread(closing.close, *arguments))


def closed() -> int:
    """How many connections an operator has closed."""
    return counters.so_far()[1]["operator"]


async def at_rest(*actors: Any) -> None:
    """Until none is in use on this loop: the first answer of a pool is followed by a question."""
    for each in actors:
        await each.echo(0)
    me = threading.get_ident()
    await eventually_here(
        lambda: not any(c.references for c in xoscar_idle.connections() if c.thread == me)
    )


@real
async def test_what_is_idle_is_closed_and_opened_again(package: None) -> None:
    with pools(3) as hosted:
        actors = [await worker(address) for address in hosted.addresses]
        await at_rest(*actors)
        before, last = closed(), history.journal.last
        assert await close(hosted.addresses[1]) == Closed(closed=1, draining=0, late=0)
        await eventually_here(lambda: len(xoscar_idle.connections()) == 2)
        assert closed() - before == 1
        told = [
            (each.kind, each.peer, each.text.partition(",")[0])
            for each in history.journal.since(last)[1]
            if each.kind == "closed"
        ]
        assert told == [("closed", hosted.addresses[1], "operator")]
        opened = xoscar_idle.statistics().opened
        assert await actors[1].echo(7) == 7
        assert xoscar_idle.statistics().opened == opened + 1
        await at_rest(*actors)
        assert await close("127.0.0.3:*") == Closed(3, 0, 0)
        with pytest.raises(NoSuchPeer, match=r"^it has no connection open$"):
            await close("*")


@real
async def test_nothing_that_is_meant_is_there(package: None) -> None:
    """It names what is there: a few of it."""
    with pools(7) as hosted:
        for address in hosted.addresses:
            await worker(address)
        with pytest.raises(NoSuchPeer) as error:
            await close("10.0.0.7:*")
        five = ", ".join(sorted(hosted.addresses)[: closing.NAMED])
        told = f"it has no connection open with '10.0.0.7:*', but with {five} and 2 more"
        assert str(error.value) == told
        assert len(xoscar_idle.connections()) == 7


@real
async def test_what_is_in_use_drains(package: None) -> None:
    """It takes no new calls, and those in flight have their results."""
    with pools() as hosted:
        (address,) = hosted.addresses
        actor = await worker(address)
        before = closed()
        call = asyncio.ensure_future(actor.hold("held"))
        await eventually_here(lambda: xoscar_idle.statistics().requests_in_flight == 1)
        for _ in range(3):
            assert await close(address) == Closed(closed=0, draining=1, late=0)
        (draining,) = xoscar_idle.connections()
        assert (draining.state, draining.in_flight) == ("retired", 1)
        await actor.release()
        assert await bounded(call) == "held"
        await eventually_here(lambda: len(xoscar_idle.connections()) == 1)
        assert closed() - before == 1


@real
async def test_now_closes_what_is_in_use(package: None) -> None:
    with pools() as hosted:
        (address,) = hosted.addresses
        actor = await worker(address)
        calls = [asyncio.ensure_future(actor.hold()) for _ in range(3)]
        await eventually_here(lambda: xoscar_idle.statistics().requests_in_flight == 3)
        lost = xoscar_idle.statistics().lost
        assert await close(address, True) == Closed(closed=1, draining=0, late=0)
        for error in await bounded(asyncio.gather(*calls, return_exceptions=True)):
            assert isinstance(error, ServerClosed)
            assert (
                str(error) == f"Remote server {address} closed: an operator closed the connection"
            )
        assert xoscar_idle.statistics().lost == lost + 3
        assert await actor.echo("again") == "again"


@real
async def test_a_draining_one_can_be_closed_now(package: None) -> None:
    with pools() as hosted:
        (address,) = hosted.addresses
        call = asyncio.ensure_future((await worker(address)).hold())
        await eventually_here(lambda: xoscar_idle.statistics().requests_in_flight == 1)
        assert await close("*") == Closed(closed=0, draining=1, late=0)
        assert await close("*", True) == Closed(closed=1, draining=0, late=0)
        with pytest.raises(ServerClosed, match="an operator closed the connection"):
            await bounded(call)


@real
@pytest.mark.parametrize("now", [False, True])
async def test_many_calls_while_it_is_closed_again_and_again(package: None, now: bool) -> None:
    """None is lost; with ``now`` each has its result, or one error that says why."""
    with pools(2, quiet=now) as hosted:
        actors = [await worker(address) for address in hosted.addresses]
        over = False

        async def call(number: int) -> Counter[str]:
            outcomes = Counter[str]()
            while not over:
                actor = actors[number % 2]
                try:
                    assert await actor.sleep(number % 5 / 1000, number) == number
                    outcomes["result"] += 1
                except ServerClosed as error:
                    outcomes[str(error).partition(" closed: ")[2]] += 1
            return outcomes

        calling = [asyncio.ensure_future(call(number)) for number in range(200)]
        before = closed()
        asked = 0
        while asked < 50:
            with contextlib.suppress(NoSuchPeer):  # all are just connecting
                told = await close("*", now)
                assert told.closed + told.draining > 0
                assert told.late == 0
                asked += 1
        over = True
        outcomes = sum(await bounded(asyncio.gather(*calling)), Counter[str]())
        assert closed() > before
        assert outcomes.pop("result") >= 200
        assert outcomes.keys() == ({"an operator closed the connection"} if now else set())
        for caller in registry.everywhere():
            caller._validate()


@real
async def test_what_is_connecting_is_left_alone(package: None) -> None:
    with deaf() as address:
        call = asyncio.ensure_future(worker(address))
        await eventually_here(lambda: xoscar_idle.statistics().connecting == 1)
        with pytest.raises(NoSuchPeer, match="it has no connection open"):
            await close("*", True)
        assert xoscar_idle.statistics().connecting == 1
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)


@real
async def test_a_blocked_loop_does_it_when_it_runs_again(package: None) -> None:
    """All others do it at once."""
    with pools(2) as hosted:
        blocked, go_on = threading.Event(), threading.Event()

        async def elsewhere() -> None:
            for address in hosted.addresses:
                await (await worker(address)).echo(1)
            blocked.set()
            go_on.wait(BOUND)
            await eventually_here(lambda: not mine())

        def mine() -> list[Any]:
            return [c for c in xoscar_idle.connections() if c.thread == thread.ident]

        thread = threading.Thread(target=lambda: asyncio.run(elsewhere()))
        thread.start()
        try:
            await eventually_here(blocked.is_set)
            await at_rest(*[await worker(address) for address in hosted.addresses])
            assert await close("*") == Closed(closed=2, draining=0, late=1)
            assert len(mine()) == 2
            # Its connections are not looked at before: what they do then, they do at once.
            assert await close(hosted.addresses[0]) == Closed(closed=0, draining=0, late=1)
            assert len(mine()) == 2
        finally:
            go_on.set()
            await bounded(asyncio.to_thread(thread.join))
        assert not mine()


@real
def test_a_loop_that_has_been_closed_is_not_waited_for(package: None) -> None:
    with pools() as hosted:
        loop = asyncio.new_event_loop()
        loop.run_until_complete(worker(hosted.addresses[0]))
        (caller,) = [each for each in registry.everywhere() if each.loop is loop]
        assert closing.close("*") == Closed(closed=0, draining=0, late=1), "it rests"
        holders = list(closing._opened(lambda _: True, False))
        (closed_for,) = [each for each in holders if each.loop is loop]
        loop.close()
        assert closing._on_its_loop(closed_for).result(0) == (0, 0)
        assert not caller.connections()


# -- what pools have accepted ----------------------------------------------------------------------


@real
async def test_accepted_ones_are_closed_when_nothing_is_in_process(package: None) -> None:
    pool = await xo.create_actor_pool(ELSEWHERE, n_process=0)
    address = pool.external_address
    try:
        with pools() as one, pools() as other:
            await xo.create_actor(Worker, uid="worker", address=address)
            visitors = [await worker(each.addresses[0]) for each in (one, other)]
            before = statistics.statistics().accepted_closed["operator"]
            for each in visitors:
                assert await each.visit([address], 7) == [7]
            peers = sorted(each.peer for each in xoscar_idle.accepted())
            assert len(peers) == len(set(peers)) == 2
            with pytest.raises(NoSuchPeer) as error:
                await close("10.0.0.7:*", False, True)
            told = "it has no connection accepted with '10.0.0.7:*', but with"
            assert str(error.value) == f"{told} {', '.join(peers)}"
            assert await close(peers[0], False, True) == Closed(closed=1, draining=0, late=0)
            await eventually_here(lambda: len(xoscar_idle.accepted()) == 1)
            assert await close("*", False, True) == Closed(closed=1, draining=0, late=0)
            await eventually_here(lambda: not xoscar_idle.accepted())
            assert statistics.statistics().accepted_closed["operator"] == before + 2
            for each in visitors:
                assert await each.visit([address], 8) == [8]
    finally:
        await pool.stop()


@real
@pytest.mark.parametrize("uvloop", ["0", "1"])
def test_an_accepted_one_that_is_in_use_drains(
    package: None, monkeypatch: pytest.MonkeyPatch, uvloop: str
) -> None:
    """With other processes in between: the call is one of theirs."""

    def ask(pid: int, **given: object) -> dict[str, Any]:
        asked = f"{changes.CLOSE} {json.dumps({'peer': '*', 'accepted': True} | given)}"
        told = side_channel.ask(pid, asked)
        assert told is not None
        found: dict[str, Any] = json.loads(told)
        return found

    async def main(pid: int, address: str) -> None:
        actor = await worker(address)
        call = asyncio.ensure_future(actor.hold("held"))
        await eventually_here(lambda: xoscar_idle.statistics().requests_in_flight == 1)
        for _ in range(3):
            told = await asyncio.to_thread(ask, pid)
            assert told == {"closed": 0, "draining": 1, "late": 0}
        assert await actor.echo(5) == 5, "it goes on as long as the call does"
        await actor.release()
        assert await bounded(call) == "held"
        await eventually_here(lambda: not xoscar_idle.connections())
        assert await actor.echo(6) == 6
        call = asyncio.ensure_future(actor.hold())
        await eventually_here(lambda: xoscar_idle.statistics().requests_in_flight == 1)
        told = await asyncio.to_thread(ask, pid, now=True)
        assert told == {"closed": 1, "draining": 0, "late": 0}
        with pytest.raises(ServerClosed):
            await bounded(call)

    with tempfile.TemporaryDirectory() as directory:
        monkeypatch.setenv("XOSCAR_IDLE_MONITOR", directory)
        with pools(XOSCAR_USE_UVLOOP=uvloop) as hosted:
            asyncio.run(main(hosted.pid, hosted.addresses[0]))


@pytest.fixture
def settings() -> config.Settings:
    return config.Settings(idle_timeout=1, server_idle_timeout=0)


class Draining:
    """A connection that has been accepted in virtual time."""

    def __init__(self, loop: VirtualTimeLoop) -> None:
        self.mine = accepted._loops[loop] = Accepted(clock=loop.time)
        self.pool = Pool()
        self.reader, self.wire = self.pool.accept()

    def close(self, now: bool = False) -> tuple[int, int]:
        return closing._close_accepted(self.mine, lambda _: True, now)


Test = Callable[[Draining], Coroutine[Any, Any, None]]


@pytest.fixture
def in_time(virtual_time: VirtualTimeLoop) -> Callable[[Test], None]:
    def run(test: Test) -> None:
        async def main() -> None:
            draining = Draining(virtual_time)
            await settle()
            await test(draining)
            draining.wire.close()
            await settle()

        virtual_time.run_until_complete(main())

    return run


def test_a_request_in_process_is_waited_for(in_time: Any) -> None:
    async def test(each: Draining) -> None:
        each.pool.go.clear()
        each.reader.feed_data(await frame() + await frame())
        await settle()
        assert each.close() == (0, 1)
        await asyncio.sleep(100)
        assert not each.wire.closed
        each.reader.feed_data(await frame())
        each.pool.go.set()
        await settle()
        assert each.pool.executed == 3
        assert each.wire.closed

    in_time(test)


@pytest.mark.parametrize("cut", [1, 11, 40])
def test_a_message_that_is_under_way_is_waited_for(in_time: Any, cut: int) -> None:
    async def test(each: Draining) -> None:
        whole = await frame()
        each.reader.feed_data(whole[:cut])
        await settle()
        assert each.close() == (0, 1)
        for _ in range(10):
            await asyncio.sleep(closing.PATIENCE)
            assert not each.wire.closed
        config.use(config.Settings(idle_timeout=2))
        each.mine.apply_settings()
        each.reader.feed_data(whole[cut:])
        await settle()
        assert each.pool.executed == 1
        assert each.wire.closed

    in_time(test)


def test_what_the_kernel_has_is_waited_for(in_time: Any) -> None:
    """It is looked at again; and what never becomes a message does not hold up ``now``."""

    async def test(each: Draining) -> None:
        here, there = socket.socketpair()
        with here, there:
            each.wire.socket = here
            there.send(b"x")
            assert each.close() == (0, 1)
            await asyncio.sleep(10)
            assert not each.wire.closed
            here.recv(1)
            await asyncio.sleep(2 * accepted.LOOK_AGAIN)
            assert each.wire.closed
            each.wire.socket = None

    in_time(test)


def test_half_a_message_does_not_hold_up_now(in_time: Any) -> None:
    async def test(each: Draining) -> None:
        each.reader.feed_data((await frame())[:11])
        await settle()
        assert each.close() == (0, 1)
        assert each.close(now=True) == (1, 0)
        assert each.wire.closed

    in_time(test)


def test_one_whose_peer_does_not_read_is_cut_off_by_a_second_now(in_time: Any) -> None:
    async def test(each: Draining) -> None:
        aborted = list[bool]()

        def close(self: Any = None) -> None:
            pass  # as long as something is to be sent

        each.wire.close = close  # type: ignore[method-assign]
        each.wire.abort = lambda: aborted.append(True)  # type: ignore[attr-defined]
        assert each.close(now=True) == (1, 0)
        assert aborted == []
        assert each.close() == (1, 0), "there is nothing to wait for"
        assert aborted == []
        assert each.close(now=True) == (1, 0)
        assert aborted == [True]
        del each.wire.close

    in_time(test)


def test_a_half_message_is_cut_by_the_timeout_of_the_server(in_time: Any) -> None:
    async def test(each: Draining) -> None:
        config.use(config.Settings(idle_timeout=1, server_idle_timeout=20))
        each.mine.apply_settings()
        each.reader.feed_data((await frame())[:11])
        await settle()
        assert each.close() == (0, 1)
        await asyncio.sleep(19)
        assert not each.wire.closed
        await asyncio.sleep(2)
        assert each.wire.closed

    in_time(test)
