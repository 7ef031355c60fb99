"""Situations that stock xoscar gets wrong.

``python -m tests.whole.scenarios NAME`` exits with 1 there.

What decides is an order of events or a count, never a time; a wait that would be endless is
bounded and counts as wrong.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import sys
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

import uvloop
from xoscar.backends.communication.socket import SocketServer
from xoscar.backends.core import ActorCaller
from xoscar.backends.message import ControlMessage, ControlMessageType, ResultMessage
from xoscar.backends.router import Router
from xoscar.errors import ServerClosed

from ..support.endpoints import deaf
from ..support.hosting import pools, sockets, worker

# Seconds; what has not happened by then never will. Stock xoscar is known to fail.
BOUND = 20.0 if "XOSCAR_IDLE_TIMEOUT" in os.environ else 3.0
new_event_loop: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop


def run(main: Any) -> Any:
    """``asyncio.run`` on the loop that is tested."""
    loop = new_event_loop()
    try:
        return loop.run_until_complete(main)
    finally:
        for task in (tasks := asyncio.all_tasks(loop)):
            task.cancel()
        if tasks:
            loop.run_until_complete(asyncio.wait(tasks))
        loop.close()


def message(n: int) -> ControlMessage:
    return ControlMessage(bytes([n]) * 32, "x", ControlMessageType.get_config)


@contextlib.asynccontextmanager
async def peer(handler: Any) -> AsyncIterator[str]:
    """A peer that speaks xoscar's protocol and does what ``handler(channel)`` does."""
    server = await SocketServer.create(
        {"address": "127.0.0.1:0", "handle_channel": handler, "start_serving": True}
    )
    try:
        yield server.address
    finally:
        await server.stop()


def dead_endpoint() -> None:
    """A call on an open connection waits for no other address's connect."""

    async def main(address: str, dead: str) -> None:
        healthy = await worker(address)
        assert await healthy.echo(1) == 1
        dials = [asyncio.ensure_future(worker(dead)) for _ in range(3)]
        await asyncio.sleep(0.1)
        call = asyncio.ensure_future(healthy.echo(2))
        done, _ = await asyncio.wait(
            [call, *dials], timeout=BOUND, return_when=asyncio.FIRST_COMPLETED
        )
        assert done == {call}, "the connects to a dead address ended before the healthy call"
        for dial in dials:
            dial.cancel()

    with pools() as hosted, deaf() as address:
        run(main(hosted.addresses[0], address))


def waiters() -> None:
    """When a connection ends, all who wait hear of it, whoever was cancelled before."""

    async def main() -> None:
        received = asyncio.Semaphore(0)

        async def read_two_and_hang_up(channel: Any) -> None:
            for _ in range(2):
                await channel.recv()
            received.release()
            await go_on.wait()

        go_on = asyncio.Event()
        caller, router = ActorCaller(), Router([], None)
        async with peer(read_two_and_hang_up) as address:
            cancelled, other = [
                await caller.call(router, address, message(n), wait=False) for n in (1, 2)
            ]
            await received.acquire()
            cancelled.cancel()
            go_on.set()
            try:
                await asyncio.wait_for(other, BOUND)
            except ServerClosed:
                pass
            else:
                raise AssertionError("no error")

    run(main())


def unknown_reply() -> None:
    """A reply that nobody asked for harms no call."""

    async def main() -> None:
        async def reply_twice(channel: Any) -> None:
            asked = await channel.recv()
            await channel.send(ResultMessage(b"?" * 32, "never asked for"))
            await channel.send(ResultMessage(asked.message_id, "asked for"))
            with contextlib.suppress(EOFError, ConnectionError):
                await channel.recv()

        caller, router = ActorCaller(), Router([], None)
        async with peer(reply_twice) as address:
            reply = await caller.call(router, address, message(1))
            assert reply.result == "asked for"
            await caller.stop()

    run(main())


def changed_route() -> None:
    """A changed route cuts no call in flight."""

    async def main(first: str, second: str) -> None:
        arrived, go_on = asyncio.Event(), asyncio.Event()

        async def reply_late(channel: Any) -> None:
            asked = await channel.recv()
            arrived.set()
            await go_on.wait()
            await channel.send(ResultMessage(asked.message_id, "late"))
            with contextlib.suppress(EOFError, ConnectionError):
                await channel.recv()

        async with peer(reply_late) as address:
            caller, router = ActorCaller(), Router([], None)
            late = await caller.call(router, address, message(1), wait=False)
            await arrived.wait()
            router.set_mapping({address: first})
            await caller.call(router, address, message(2))
            go_on.set()
            assert (await asyncio.wait_for(late, BOUND)).result == "late"
            await caller.stop()

    with pools(2) as hosted:
        run(main(*hosted.addresses))


async def visit(addresses: list[str]) -> None:
    for address in addresses:
        assert await (await worker(address)).echo(address) == address


def closed_loops() -> None:
    """The connections of a closed loop are gone."""
    with pools(10) as hosted:
        before = sockets()
        for _ in range(5):
            loop = new_event_loop()
            loop.run_until_complete(visit(hosted.addresses))
            loop.close()
            del loop
        gc.collect()
        assert sockets() == before, f"{sockets() - before} sockets left"


def many_runs() -> None:
    """``asyncio.run`` again and again leaves nothing, also with calls in flight."""

    async def main(addresses: list[str]) -> None:
        await visit(addresses)
        slow = await worker(addresses[0])
        in_flight.append(asyncio.ensure_future(slow.sleep(60)))
        await asyncio.sleep(0.05)

    in_flight: list[asyncio.Future[Any]] = []

    with pools(5, quiet=True) as hosted:
        before = sockets()
        for _ in range(5):
            asyncio.run(main(hosted.addresses))
        gc.collect()
        assert sockets() == before, f"{sockets() - before} sockets left"


def loops_in_threads() -> None:
    """Threads that end leave nothing, whether or not they closed their loop."""

    def thread(close: bool) -> None:
        loop = new_event_loop()
        loop.run_until_complete(visit(hosted.addresses))
        if close:
            loop.close()
        else:
            abandoned.append(loop)

    abandoned: list[asyncio.AbstractEventLoop] = []
    with pools(5) as hosted:
        before = len(_peers_of(os.getpid()))
        threads = [threading.Thread(target=thread, args=(n % 2 == 0,)) for n in range(4)]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
        left = len(_peers_of(os.getpid())) - before
        assert not left, f"{left} connections left"
        for loop in abandoned:
            loop.close()


def fork() -> None:
    """A child has none of its parent's connections, and the parent keeps them all."""

    async def main(addresses: list[str]) -> None:
        await visit(addresses)
        opened = sockets()
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                left = [each for each in _peers_of(os.getpid()) if each in addresses]
                status = 0 if not left else 1
            finally:
                os._exit(status)
        _, status = await asyncio.to_thread(os.waitpid, pid, 0)
        assert status == 0, "the child has connections"
        await visit(addresses)
        assert sockets() == opened, "the parent has lost connections"

    with pools(5) as hosted:
        run(main(hosted.addresses))


def _peers_of(pid: int) -> list[str]:
    import psutil

    return [
        f"{c.raddr.ip}:{c.raddr.port}"
        for c in psutil.Process(pid).net_connections("tcp")
        if c.raddr
    ]


class SlowToPickle:
    """Lets the connection end while it is being serialized."""

    def __init__(self, started: threading.Event, go_on: threading.Event) -> None:
        self.events = started, go_on

    def __reduce__(self) -> Any:
        started, go_on = self.events
        started.set()
        go_on.wait(BOUND)
        return str, ("pickled",)


def closed_before_write() -> None:
    """A call whose connection ends before any byte of it was written goes to a new one."""

    async def main() -> None:
        connections = asyncio.Queue[Any]()

        async def answer(channel: Any) -> None:
            connections.put_nowait(channel)
            with contextlib.suppress(EOFError, ConnectionError):
                while True:
                    asked = await channel.recv()
                    await channel.send(ResultMessage(asked.message_id, "answer"))

        caller, router = ActorCaller(), Router([], None)
        async with peer(answer) as address:
            await caller.call(router, address, message(1))
            first = await connections.get()
            started, go_on = threading.Event(), threading.Event()
            # More than a hundred objects are serialized in a thread, while the loop runs.
            content = [[i] for i in range(200)] + [SlowToPickle(started, go_on)]
            asked = ControlMessage(b"2" * 32, "x", ControlMessageType.get_config, content)
            call = asyncio.ensure_future(caller.call(router, address, asked))
            await asyncio.to_thread(started.wait, BOUND)
            assert started.is_set()
            assert not call.done()
            await first.close()
            await asyncio.sleep(0.2)
            go_on.set()
            assert (await asyncio.wait_for(call, BOUND)).result == "answer"
            await caller.stop()

    run(main())


SCENARIOS = {
    scenario.__name__: scenario
    for scenario in (
        dead_endpoint,
        waiters,
        unknown_reply,
        changed_route,
        closed_loops,
        many_runs,
        loops_in_threads,
        fork,
        closed_before_write,
    )
}


def main(name: str, loop: str) -> None:
    global new_event_loop
    if loop == "uvloop":
        new_event_loop = uvloop.new_event_loop
        uvloop.install()
    SCENARIOS[name]()


if __name__ == "__main__":
    main(*sys.argv[1:])
