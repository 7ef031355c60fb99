"""Remote generators that nobody reads any more."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest
import uvloop
from xoscar.api import IteratorWrapper
from xoscar.backends.message import SendMessage, new_message_id
from xoscar.core import create_actor_ref
from xoscar.serialization import serialize

import xoscar_idle
from xoscar_idle.connection import bounds, registry, streams

from ..support.environment import environment
from ..support.hosting import Pools, pools, worker
from ..support.processes import run
from ..support.waiting import BOUND, bounded, eventually_told

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("active")]

LOOPS = [asyncio.new_event_loop, uvloop.new_event_loop]


@pytest.fixture(autouse=True)
def installed(active: None) -> None:
    xoscar_idle.install(idle_timeout=600)


async def begun(address: str) -> Any:
    """One of which an item has been read."""
    stream = await (await worker(address)).count(100)
    assert await bounded(stream.__anext__()) == 0
    return stream


async def none_left(address: str) -> None:
    """Wait until the worker has none, either."""
    actor = await worker(address)
    await eventually_told(lambda: _has_none(actor))


async def _has_none(actor: Any) -> bool:
    return not await actor.streams()


@pytest.mark.parametrize("new_loop", LOOPS, ids=["asyncio", "uvloop"])
def test_the_loop_goes_on_while_the_pool_does_not_answer(new_loop: Callable[[], Any]) -> None:
    async def main(hosted: Pools) -> None:
        (address,) = hosted.addresses
        stream, never_read = await begun(address), await (await worker(address)).count(3)
        os.kill(hosted.pid, signal.SIGSTOP)
        went_on = False
        guard = threading.Timer(BOUND, os.kill, (hosted.pid, signal.SIGCONT))
        guard.start()
        del stream, never_read
        went_on = guard.is_alive()
        guard.cancel()
        os.kill(hosted.pid, signal.SIGCONT)
        assert went_on, "it stood still until the pool answered"
        await none_left(address)

    loop = new_loop()
    try:
        with pools(1) as hosted:
            loop.run_until_complete(main(hosted))
            loop.run_until_complete(_stopped())
    finally:
        loop.close()


async def _stopped() -> None:
    for caller in registry.everywhere():
        if caller.loop is asyncio.get_running_loop():
            await caller.stop()


def test_the_collector_may_find_one_wherever_it_runs() -> None:
    """In the middle of what holds a lock that every new connection needs, too."""

    async def drop(address: str) -> None:
        streams = [await begun(address)]
        with registry._lock, threading._active_limbo_lock:  # type: ignore[attr-defined]
            streams.clear()
        await none_left(address)

    done = threading.Event()

    def work(address: str) -> None:
        asyncio.run(drop(address))
        done.set()

    with pools(1) as hosted:
        thread = threading.Thread(target=work, args=(*hosted.addresses,), daemon=True)
        thread.start()
        assert done.wait(BOUND), "it waits for what waits for it"
        thread.join()


@pytest.mark.parametrize("kept", [False, True])
def test_what_a_program_drops_at_its_end(kept: bool) -> None:
    """What it still has when the interpreter ends is lost, and not waited for."""
    drops = (
        "import asyncio, sys\n"
        "from tests.support.hosting import worker\n"
        "async def main(address):\n"
        "    stream = await (await worker(address)).count(100)\n"
        "    await stream.__anext__()\n"
        "    return stream\n"
        "stream = asyncio.run(main(sys.argv[1]))\n"
        "if sys.argv[2] == 'False':\n"
        "    del stream\n"
    )
    with pools(1) as hosted:
        (address,) = hosted.addresses
        command = (sys.executable, "-c", drops, address, f"{kept}")
        run(*command, env=environment(XOSCAR_IDLE_TIMEOUT="600"))
        assert asyncio.run(_left(address)) == kept


async def _left(address: str) -> int:
    left: int = await (await worker(address)).streams()
    return left


def test_one_whose_message_is_measured_stays_whose_it_is() -> None:
    stream: Any = IteratorWrapper("uid", "127.0.0.1:1", "actor")
    ref = create_actor_ref("127.0.0.1:1", b"uid")
    message = SendMessage(new_message_id(), ref, ("method", 0, ({"deep": [stream]},), {}))
    assert bounds.size_of(message)
    try:
        assert stream._gc_destroy
        serialize(message)
        assert not stream._gc_destroy, "one that is sent goes with its message"
    finally:
        stream._gc_destroy = False


def test_of_a_pool_that_is_gone(capfd: pytest.CaptureFixture[str]) -> None:
    """There is nothing to let go of, and nothing to say."""

    async def main() -> None:
        with contextlib.ExitStack() as stack:
            hosted = stack.enter_context(pools(1))
            stream = await begun(*hosted.addresses)
            os.kill(hosted.pid, signal.SIGKILL)
        del stream
        await asyncio.to_thread(streams.wait, BOUND)

    asyncio.run(main())
    assert not capfd.readouterr().err
