"""The accepting side: what is closed when idle, and what is left alone."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import xoscar as xo
from xoscar.backends.communication.nixl import NixlChannel, NixlServer
from xoscar.backends.communication.socket import SocketChannel, SocketClient, SocketServer
from xoscar.backends.message import HasActorMessage, SendMessage, new_message_id
from xoscar.backends.pool import AbstractActorPool
from xoscar.serialization import AioSerializer

import xoscar_idle
from xoscar_idle import config
from xoscar_idle.connection import (
    accepted,
    counters,
    deadlines,
    exchange,
    frames,
    history,
    statistics,
    transports,
)
from xoscar_idle.connection.accepted import Accepted
from xoscar_idle.connection.frames import MIN_RATE, AcceptedChannel
from xoscar_idle.connection.idle import IdleQueue, Lane

from ..support.hosting import Worker, pools, worker
from ..support.memory import VirtualTimeLoop, message, settle
from ..support.processes import run
from ..support.waiting import bounded

TIMEOUT = 10.0


# -- in virtual time -----------------------------------------------------------------------------


class Wire:
    """A writer and its transport; what is written is kept."""

    def __init__(self, reader: asyncio.StreamReader) -> None:
        self.reader = reader
        self.transport: Any = self
        self.unsent = 0
        self.closed = False
        self.written = b""
        self.socket: socket.socket | None = None

    def get_extra_info(self, _: str) -> socket.socket | None:
        return self.socket

    def get_write_buffer_size(self) -> int:
        return self.unsent

    def is_closing(self) -> bool:
        return self.closed

    def write(self, data: Any) -> None:
        self.written += bytes(data)

    async def drain(self) -> None:
        pass

    def close(self) -> None:
        self.closed = True
        if not self.reader.at_eof():
            self.reader.feed_eof()

    async def wait_closed(self) -> None:
        pass


class Pool:
    """xoscar's way with an accepted connection, with requests that take until they are let go."""

    _handle_buffer_meta_message = AbstractActorPool._handle_buffer_meta_message
    on_new_channel = accepted.serve(AbstractActorPool.on_new_channel)

    def __init__(self) -> None:
        self._stopped = asyncio.Event()
        self.executed = 0
        self.go = asyncio.Event()
        self.go.set()

    async def _work(self, _message: Any, _channel: Any) -> None:
        self.executed += 1
        await self.go.wait()

    process_message = accepted.process(_work)

    def accept(self) -> tuple[asyncio.StreamReader, Wire]:
        """A new connection."""
        reader = asyncio.StreamReader()
        writer = Wire(reader)
        channel = AcceptedChannel(reader, writer, local_address="here:1")
        self._task = asyncio.ensure_future(self.on_new_channel(channel))
        return reader, writer


Test = Callable[[Pool, asyncio.StreamReader, Wire], Coroutine[Any, Any, None]]


@pytest.fixture
def settings() -> config.Settings:
    return config.Settings(idle_timeout=1, server_idle_timeout=TIMEOUT)


@pytest.fixture
def with_accepted(virtual_time: VirtualTimeLoop) -> Callable[[Test], None]:
    """Run a test with an accepted connection."""

    def run(test: Test) -> None:
        async def main() -> None:
            accepted._loops[virtual_time] = Accepted(clock=virtual_time.time)
            pool = Pool()
            reader, writer = pool.accept()
            await settle()
            await test(pool, reader, writer)
            writer.close()
            await settle()
            assert not accepted._loops.keys() & {virtual_time}

        virtual_time.run_until_complete(main())

    return run


async def frame(content: Any = None) -> bytes:
    return b"".join(map(bytes, await AioSerializer(message(content)).run()))


def test_an_idle_connection_is_closed_at_its_timeout(with_accepted: Any) -> None:
    async def test(pool: Pool, reader: Any, writer: Wire) -> None:
        await asyncio.sleep(6)
        reader.feed_data(await frame())
        await asyncio.sleep(TIMEOUT - 0.1)
        assert pool.executed == 1
        assert not writer.closed
        await asyncio.sleep(0.2)
        assert writer.closed

    with_accepted(test)


def test_what_the_kernel_has_is_waited_for(with_accepted: Any) -> None:
    """A loop that stood still may look at the clock before it reads."""

    async def test(pool: Pool, reader: Any, writer: Wire) -> None:
        here, there = socket.socketpair()
        with here, there:
            writer.socket = here
            there.send(b"x")
            await asyncio.sleep(TIMEOUT + 0.1)
            assert not writer.closed
            here.recv(1)
            await asyncio.sleep(TIMEOUT)
            assert writer.closed
            writer.socket = None

    with_accepted(test)


@pytest.mark.parametrize("cut", [1, 11, 40])
def test_a_pause_within_a_message_is_no_idling(with_accepted: Any, cut: int) -> None:
    """Be it in a part of the message or between two, where the reader's buffer is empty."""

    async def test(pool: Pool, reader: Any, writer: Wire) -> None:
        whole = await frame()
        assert len(whole) > 40
        await asyncio.sleep(TIMEOUT - 1)
        reader.feed_data(whole[:cut])
        await asyncio.sleep(TIMEOUT - 1)
        assert not writer.closed
        reader.feed_data(whole[cut:])
        await settle()
        assert pool.executed == 1
        await asyncio.sleep(TIMEOUT - 0.1)
        assert not writer.closed
        await asyncio.sleep(0.2)
        assert writer.closed

    with_accepted(test)


def test_time_for_a_message_begins_with_its_own_first_byte(with_accepted: Any) -> None:
    async def test(pool: Pool, reader: Any, writer: Wire) -> None:
        whole = await frame()
        for n in range(5):
            reader.feed_data(whole)
            await asyncio.sleep(TIMEOUT - 1)
            assert pool.executed == n + 1
        for cut in range(0, 40, 20):  # in parts, each in time, and in time as a whole
            reader.feed_data(whole[cut : cut + 20])
            await asyncio.sleep(TIMEOUT / 2 - 1)
        assert not writer.closed
        reader.feed_data(whole[40:])
        await settle()
        assert pool.executed == 6

    with_accepted(test)


@pytest.mark.parametrize("sent", [1, 11, 40])
def test_a_message_that_stalls_is_given_up(with_accepted: Any, sent: int) -> None:
    async def test(pool: Pool, reader: Any, writer: Wire) -> None:
        await asyncio.sleep(7)
        reader.feed_data((await frame())[:sent])
        await asyncio.sleep(TIMEOUT - 0.1)
        assert not writer.closed
        await asyncio.sleep(0.2)
        assert writer.closed
        assert not pool.executed

    with_accepted(test)


def test_a_message_in_drops_is_given_up(with_accepted: Any) -> None:
    async def test(pool: Pool, reader: Any, writer: Wire) -> None:
        whole, time = await frame(b"x" * 1000), asyncio.get_running_loop().time
        began = time()
        for i in range(len(whole)):
            reader.feed_data(whole[i : i + 1])
            await asyncio.sleep(1)
            if writer.closed:
                break
        assert TIMEOUT <= time() - began <= TIMEOUT + 1 + i / MIN_RATE
        assert not pool.executed

    with_accepted(test)


def test_a_large_message_that_flows_may_take_long(with_accepted: Any) -> None:
    async def test(pool: Pool, reader: Any, writer: Wire) -> None:
        whole, pause = await frame(b"x" * 1_000_000), TIMEOUT - 1
        for at in range(0, len(whole), 10_000):
            await asyncio.sleep(pause)
            reader.feed_data(whole[at : at + 10_000])
            assert not writer.closed
        await settle()
        assert pool.executed == 1

    with_accepted(test)


def test_two_messages_at_once_and_half_a_third(with_accepted: Any) -> None:
    async def test(pool: Pool, reader: Any, writer: Wire) -> None:
        whole = await frame()
        reader.feed_data(whole + whole + whole[:20])
        await asyncio.sleep(TIMEOUT - 1)
        assert pool.executed == 2
        reader.feed_data(whole[20:])
        await asyncio.sleep(TIMEOUT - 1)
        assert pool.executed == 3
        assert not writer.closed
        await asyncio.sleep(1.1)
        assert writer.closed

    with_accepted(test)


def test_a_request_in_process_is_never_cut(with_accepted: Any) -> None:
    """Nor is it by half a message behind it; that has its time once the request has ended."""

    async def test(pool: Pool, reader: Any, writer: Wire) -> None:
        whole = await frame()
        pool.go.clear()
        reader.feed_data(whole + whole[:20])
        await asyncio.sleep(1000)
        assert not writer.closed
        pool.go.set()
        await asyncio.sleep(TIMEOUT - 0.1)
        assert not writer.closed
        await asyncio.sleep(0.2)
        assert writer.closed

    with_accepted(test)


def test_a_reply_that_is_being_written_is_never_cut(with_accepted: Any) -> None:
    async def test(pool: Pool, reader: Any, writer: Wire) -> None:
        writer.unsent = 1
        reader.feed_data(await frame())
        await asyncio.sleep(1000)
        assert not writer.closed
        writer.unsent = 0
        await asyncio.sleep(TIMEOUT)
        assert writer.closed

    with_accepted(test)


def test_what_has_been_forgotten_is_not_closed(with_accepted: Any) -> None:
    async def test(pool: Pool, reader: Any, writer: Wire) -> None:
        mine = accepted._loops[asyncio.get_running_loop()]
        await asyncio.sleep(5)
        accepted.forget()
        mine.sweep(1e9)
        await asyncio.sleep(1000)
        assert not writer.closed
        reader.feed_data(await frame())
        await settle()
        assert pool.executed == 1
        loop = asyncio.get_running_loop()
        accepted._loops[loop] = Accepted(clock=loop.time)
        _, young = pool.accept()
        await asyncio.sleep(TIMEOUT + 0.1)
        assert young.closed
        assert not writer.closed

    with_accepted(test)


@pytest.mark.parametrize(
    "place",
    [
        (transports, "keep_alive"),
        (transports, "limit_unacknowledged"),
        (frames, "watch"),
        (IdleQueue, "join"),
        (Lane, "fell_idle"),
        (Accepted, "add"),
        (Accepted, "_patience_ends"),
    ],
    ids=lambda place: place[1],
)
def test_whatever_fails_the_connection_is_served(
    with_accepted: Any,
    place: Any,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def broken(*_: Any) -> Any:
        raise MemoryError("injected")

    async def test(pool: Pool, reader: Any, writer: Wire) -> None:
        with monkeypatch.context() as patched:
            patched.setattr(place[0], place[1], broken)
            connections = [pool.accept() for _ in range(2)]
            await settle()
            accepted._loops[asyncio.get_running_loop()].apply_settings()
            await asyncio.sleep(TIMEOUT + 0.1)
        for i, (its_reader, its_writer) in enumerate(connections, 1):
            its_reader.feed_data(await frame())
            await settle()
            assert pool.executed == i
            assert not its_writer.closed
            its_writer.close()

    monkeypatch.setattr(accepted, "_told", False)
    with_accepted(test)
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "accepted connections of here:1 are served" in record.getMessage()


# -- what is told of them ------------------------------------------------------------------------


@contextlib.contextmanager
def told() -> Iterator[dict[str, int]]:
    """How many are accepted and closed in the block, by reason; with each end in the history."""
    before = statistics.statistics()
    after: dict[str, int] = {}
    history.journal._counted.clear()
    last = history.journal.last
    yield after
    now = statistics.statistics()
    assert now.accepted == now.accepted_open + sum(now.accepted_closed.values())
    after.update(
        (reason, count)
        for reason in counters.ACCEPTED_REASONS
        if (count := now.accepted_closed[reason] - before.accepted_closed[reason])
    )
    _, happened = history.journal.since(last)
    ends = [each.text for each in happened if each.kind in ("hung up", "unused")]
    assert len(ends) == len(after)


def test_what_is_told_of_a_connection(with_accepted: Any) -> None:
    async def test(pool: Pool, reader: Any, writer: Wire) -> None:
        def mine() -> tuple[int, int, float, float | None]:
            (one,) = statistics.accepted()
            assert (one.address, one.transport, one.descriptor) == ("here:1", "socket", None)
            assert (one.peer, one.thread) == ("?", threading.get_ident())
            return one.in_process, one.requests, one.age, one.idle

        def counted() -> tuple[int, int, int]:
            now = statistics.statistics()
            return now.accepted_active, now.accepted_idle, now.requests_in_process

        await asyncio.sleep(2)
        assert mine() == (0, 0, 2, 2)
        assert counted() == (0, 1, 0)
        pool.go.clear()
        reader.feed_data(await frame() + await frame())
        await asyncio.sleep(3)
        assert mine() == (2, 2, 5, None)
        assert counted() == (1, 0, 2)
        pool.go.set()
        await asyncio.sleep(4)
        assert mine() == (0, 2, 9, 4)
        assert counted() == (0, 1, 0)

    with_accepted(test)
    assert statistics.accepted() == []


def _hang_up(pool: Pool, reader: Any, writer: Wire) -> None:
    reader.feed_eof()


def _reset(pool: Pool, reader: Any, writer: Wire) -> None:
    reader.set_exception(ConnectionResetError(104, "reset"))


def _garbage(pool: Pool, reader: Any, writer: Wire) -> None:
    reader.feed_data(b"\0" + (1).to_bytes(8, "little") + b"\0\0" + b"z")


def _stop(pool: Pool, reader: Any, writer: Wire) -> None:
    pool._stopped.set()
    writer.close()


def _cancel(pool: Pool, reader: Any, writer: Wire) -> None:
    pool._task.cancel()


def _operate(pool: Pool, reader: Any, writer: Wire) -> None:
    here = asyncio.get_running_loop()
    (mine,) = [each for each in accepted.everywhere() if each.loop is here]
    assert mine.close(lambda each: each.peer == "another", now=True) == 0
    assert mine.close(lambda each: each.peer == "?", now=False) == 1


def _forget(pool: Pool, reader: Any, writer: Wire) -> None:
    accepted.forget()


@pytest.mark.parametrize(
    ("end", "reason"),
    [
        (None, "idle"),
        (_hang_up, "peer"),
        (_reset, "error"),
        (_garbage, "error"),
        (_stop, "stop"),
        (_cancel, "stop"),
        (_operate, "operator"),
        (_forget, "stop"),
    ],
    ids=lambda each: getattr(each, "__name__", str(each)),
)
def test_each_end_has_its_reason(with_accepted: Any, end: Any, reason: str) -> None:
    async def test(pool: Pool, reader: Any, writer: Wire) -> None:
        with told() as closed:
            if end is None:
                await asyncio.sleep(TIMEOUT + 0.1)
            else:
                end(pool, reader, writer)
                with contextlib.suppress(asyncio.CancelledError, Exception):
                    if end is not _forget:
                        await pool._task
            await settle()
        assert closed == {reason: 1}

    with_accepted(test)


def test_when_it_is_in_the_history(with_accepted: Any) -> None:
    """Not before its first request; and who looks leaves no trace there."""

    async def test(pool: Pool, reader: Any, writer: Wire) -> None:
        def happened() -> list[str]:
            return [each.kind for each in history.journal.since(last)[1]]

        history.journal._counted.clear()
        last = history.journal.last
        question = exchange.question_for_name("here:1")
        asking, _ = pool.accept()
        await settle()
        for each in (question, exchange.question_for_config("here:1", "xoscar_idle")):
            asking.feed_data(b"".join(map(bytes, await AioSerializer(each).run())))
            await settle()
        asking.feed_eof()
        await settle()
        assert pool.executed == 2
        assert happened() == []
        reader.feed_data(await frame())
        await settle()
        reader.feed_data(await frame())
        await settle()
        assert happened() == ["accepted"]
        reader.feed_eof()
        await settle()
        assert happened() == ["accepted", "hung up"]
        silent, _ = pool.accept()
        await settle()
        silent.feed_eof()
        await settle()
        assert happened() == ["accepted", "hung up", "unused"]

    with_accepted(test)


def test_who_is_lost_with_a_request_in_process(with_accepted: Any) -> None:
    async def test(pool: Pool, reader: Any, writer: Wire) -> None:
        pool.go.clear()
        reader.feed_data(await frame())
        await settle()
        with told() as closed:
            reader.feed_eof()
            await settle()
        assert closed == {"peer": 1}
        _, happened = history.journal.since(history.journal.last - 1)
        assert happened[0].text == "peer, after 0.0 s and 1 request, 1 of them in process"
        pool.go.set()
        await settle()  # its end is of no connection any more
        assert statistics.statistics().requests_in_process == 0

    with_accepted(test)


# -- for real ------------------------------------------------------------------------------------

integration = pytest.mark.integration


@pytest.fixture
def short() -> Iterator[dict[str, Any]]:
    yield {"XOSCAR_IDLE_TIMEOUT": "0.2", "XOSCAR_SERVER_IDLE_TIMEOUT": "0.5"}
    xoscar_idle.uninstall()
    accepted.forget()


@integration
def test_half_a_message_holds_no_descriptor(short: dict[str, Any]) -> None:
    async def main() -> None:
        for address in hosted.addresses:
            reader, writer = await asyncio.open_connection(*address.split(":"))
            writer.write(b"\x01")
            assert await bounded(reader.read()) == b"", "closed by the server"
            writer.close()

    with pools(1, 1, **short) as hosted:  # the sub-pool is on uvloop
        asyncio.run(main())


@integration
@pytest.mark.parametrize("n", [0, 1], ids=["asyncio", "uvloop"])
def test_what_came_while_the_loop_stood_still_is_answered(n: int, short: dict[str, Any]) -> None:
    """A request that the kernel has, at a time when its connection has expired."""

    async def main() -> None:
        address = hosted.addresses[n]
        pid = await (await worker(address)).pid()
        client = await SocketClient.connect(address)
        ref = xo.create_actor_ref(address, b"worker")
        os.kill(pid, signal.SIGSTOP)
        try:
            await client.send(HasActorMessage(new_message_id(), ref))
            await asyncio.sleep(2.2)
        finally:
            os.kill(pid, signal.SIGCONT)
        assert (await bounded(client.recv())).result is True
        await client.close()

    # Long enough for it to be stopped before it finds the connection idle.
    with pools(1, 1, **short | {"XOSCAR_SERVER_IDLE_TIMEOUT": "2"}) as hosted:
        asyncio.run(main())


@integration
def test_what_begins_between_two_installs_is_not_cut() -> None:
    async def main() -> None:
        pool = await xo.create_actor_pool("127.0.0.1", n_process=0)
        async with pool:
            address = pool.external_address
            await xo.create_actor(Worker, uid="worker", address=address)
            before = await SocketClient.connect(address)
            xoscar_idle.install(idle_timeout=0.2, server_idle_timeout=0.4)
            client = await SocketClient.connect(address)
            ref = xo.create_actor_ref(address, b"worker")
            await client.send(HasActorMessage(new_message_id(), ref))
            assert (await bounded(client.recv())).result is True
            xoscar_idle.uninstall()
            accepted.forget()
            await client.send(SendMessage(new_message_id(), ref, ("sleep", 0, (1.2, 7), {})))
            await asyncio.sleep(0.1)
            xoscar_idle.install(idle_timeout=0.2)
            xoscar_idle.configure(server_idle_timeout=0.4)
            late = await SocketClient.connect(address)
            assert (await bounded(client.recv())).result == 7
            with pytest.raises(EOFError):  # a pool that was there before is served all the same
                await bounded(late.recv())
            await before.send(HasActorMessage(new_message_id(), ref))
            assert (await bounded(before.recv())).result is True
            for each in (before, client, late):
                await each.close()

    try:
        asyncio.run(main())
    finally:
        xoscar_idle.uninstall()
        accepted.forget()


class Relay(Worker):
    """Asks the worker at the address that it is given."""

    async def echo(self, value: Any) -> Any:
        return await (await worker(value)).echo("reached")


@integration
def test_requests_do_not_know_the_deadline_that_their_pool_was_made_in(active: None) -> None:
    xoscar_idle.install(idle_timeout=30)

    async def main() -> None:
        with xoscar_idle.deadline(60):
            pool = await xo.create_actor_pool("127.0.0.1", n_process=0)
            await xo.create_actor(Relay, uid="worker", address=pool.external_address)
            near, far = [await worker(address) for address in hosted.addresses]
            scope = deadlines._scope.get()
            assert scope is not None
        object.__setattr__(scope.limit, "at", 0.0)  # it passes
        async with pool:
            reached = await near.visit([pool.external_address], hosted.addresses[1])
            assert reached == ["reached"]
            assert await far.echo(1) == 1

    with pools(2) as hosted:
        asyncio.run(main())


def test_whose_channels_are_replaced(active: None) -> None:
    xoscar_idle.install()
    assert SocketServer.channel_class is AcceptedChannel
    assert SocketClient.channel_class is SocketChannel
    assert NixlServer.channel_class is NixlChannel
    xoscar_idle.uninstall()
    assert SocketServer.channel_class is SocketChannel


def test_a_reader_of_another_kind_is_left_alone() -> None:
    class Own(asyncio.StreamReader):
        pass

    async def main() -> None:
        for channel_class, reader in (
            (AcceptedChannel, Own()),
            (SocketChannel, asyncio.StreamReader()),
        ):
            channel = channel_class(reader, SimpleNamespace(get_extra_info=lambda _: None))
            kind = type(reader)
            assert not frames.watch(channel, asyncio.get_running_loop().time)
            assert type(reader) is kind

    asyncio.run(main())


@integration
def test_a_reset_is_seen_by_the_loop_before_it_is_timed() -> None:
    """What the kernel has to say comes first."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        client = socket.create_connection(listening.getsockname())
        peer, _ = listening.accept()
        with peer:
            transport = SimpleNamespace(get_extra_info=lambda _: peer)
            assert not accepted._readable(transport)
            client.sendall(b"x")
            assert accepted._readable(transport)
            peer.recv(1)
            assert not accepted._readable(transport)
            client.close()
            assert accepted._readable(transport)
        assert not accepted._readable(transport)


@integration
def test_who_is_connected(active: None) -> None:
    """From another process and from this one, over TCP and over a unix socket."""
    xoscar_idle.install(idle_timeout=30)

    async def main() -> None:
        pool = await xo.create_actor_pool("127.0.0.1", n_process=1)
        async with pool:
            main_pool, sub_pool = pool._config.get_external_addresses()
            await xo.create_actor(Worker, uid="worker", address=sub_pool)
            relay = await xo.create_actor(Worker, uid="worker", address=main_pool)
            pid = await (await worker(sub_pool)).pid()
            client = await SocketClient.connect(main_pool)
            name = client.channel.writer.get_extra_info("sockname")
            ref = xo.create_actor_ref(main_pool, b"worker")
            await client.send(HasActorMessage(new_message_id(), ref))
            assert (await bounded(client.recv())).result is True
            assert await (await worker(sub_pool)).visit([main_pool], 7) == [7]
            assert await relay.echo(1) == 1
            seen = {each.peer: each for each in xoscar_idle.accepted()}
            mine = seen[f"127.0.0.1:{name[1]}"]
            assert (mine.requests, mine.in_process, mine.transport) == (1, 0, "socket")
            assert mine.descriptor is not None
            assert mine.address == main_pool
            if sys.platform == "linux":
                theirs = seen[f"pid {pid}"]
                assert (theirs.transport, theirs.requests >= 1) == ("unixsocket", True)
            await client.close()

    asyncio.run(main())


FORKED = """
import asyncio, os, sys
import xoscar as xo
import xoscar_idle
from tests.support.hosting import Worker, worker
from xoscar.backends.communication.socket import SocketClient
from xoscar_idle.connection import hosted
from tests.support.waiting import eventually_here

async def main():
    pool = await xo.create_actor_pool("127.0.0.1", n_process=0)
    async with pool:
        await xo.create_actor(Worker, uid="worker", address=pool.external_address)
        client = await SocketClient.connect(pool.external_address)
        await eventually_here(lambda: xoscar_idle.statistics().accepted_open == 1)
        if (pid := os.fork()) == 0:
            now = xoscar_idle.statistics()
            status = (now.accepted_open, now.accepted_closed["fork"], len(xoscar_idle.accepted()))
            os._exit(0 if (*status, len(hosted.pools())) == (0, 1, 0, 0) else 1)
        _, status = await asyncio.to_thread(os.waitpid, pid, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        assert len(hosted.pools()) == 1
        assert xoscar_idle.statistics().accepted_open == 1
        await client.close()
        await eventually_here(lambda: xoscar_idle.statistics().accepted_closed["peer"] == 1)

xoscar_idle.install(idle_timeout=30)
asyncio.run(main())
"""


@integration
@pytest.mark.skipif(sys.platform == "win32", reason="no fork")
def test_what_a_parent_accepted_is_none_of_its_child() -> None:
    run(sys.executable, "-c", FORKED)
