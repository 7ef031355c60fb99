"""Sub-pools that finish what they have begun, and begin nothing more: real pools, real load."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import xoscar as xo
from xoscar.backends.communication import SocketClient, UnixSocketClient
from xoscar.backends.message import SendMessage, new_message_id
from xoscar.core import create_actor_ref

import xoscar_idle
from xoscar_idle import PoolUnavailable
from xoscar_idle.supervision import draining, subpool
from xoscar_idle.supervision.draining import admit, drain, stop_admitting
from xoscar_idle.supervision.subpool import Subpool

from ..support import crashing
from ..support.crashing import Recording, Victim, error_of, host, run, sub_pools, victim
from ..support.waiting import BOUND, bounded, eventually_here

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("package")]


class Busy(Recording):
    """Has all kinds of things in process."""

    @xo.generator  # type: ignore[untyped-decorator]
    async def stream(self, n: int) -> AsyncIterator[int]:
        for i in range(n):
            yield i

    async def create_after(self, path: str) -> int:
        """Create another actor here when there is that file, and call it."""
        while not Path(path).exists():  # noqa: ASYNC110, ASYNC240
            await asyncio.sleep(0.01)
        ref = await xo.create_actor(Victim, uid="another", address=self.address)
        found = await xo.actor_ref(uid="another", address=self.address)
        assert await xo.has_actor(found)
        pid: int = await found.pid()
        await xo.destroy_actor(ref)
        return pid

    def big(self, size: int) -> bytes:
        return b"x" * size

    def uninstall(self) -> None:
        xoscar_idle.uninstall()


def of(pool: Any, address: str) -> Subpool:
    return subpool.of(pool.sub_processes[address])


async def busy(address: str) -> Any:
    return await xo.create_actor(Busy, uid="busy", address=address)


@pytest.mark.parametrize("on_uvloop", [False, True])
@pytest.mark.parametrize("supervise", ["off", "observe", "act"])
def test_what_has_begun_ends_and_nothing_more_begins(
    acting: Any, supervise: str, on_uvloop: bool
) -> None:
    acting(supervise=supervise)

    async def main() -> None:
        async with crashing.pool(1, use_uvloop=on_uvloop) as pool:
            (address,) = sub_pools(pool)
            ref, found = await victim(address), of(pool, address)
            pid = await ref.pid()
            in_process = asyncio.ensure_future(ref.wait(0.5))
            await eventually_here(lambda: found.in_process() == 1)
            drains = [asyncio.ensure_future(drain(pool, address, found, BOUND)) for _ in range(2)]
            await eventually_here(lambda: found.page and found.page.draining)
            for call in (
                *(ref.pid(), create(address), xo.actor_ref(uid="nobody", address=address)),
                *(xo.has_actor(ref), xo.destroy_actor(ref)),
            ):
                error: Any = await error_of(call)
                assert type(error) is PoolUnavailable
                assert (error.address, error.state) == (address, "stopping")
                assert error.turned_away
                assert f"pool {address} is down: it is about to be stopped" in str(error)
            assert not found.drained
            assert await bounded(in_process) == pid
            assert await bounded(asyncio.gather(*drains)) == [True, True]
            assert found.drained
            assert type(await error_of(ref.pid())) is PoolUnavailable

            admit(found)
            assert await ref.pid() == pid
            assert not found.drained
            assert await bounded(drain(pool, address, found, BOUND)), "once more"
            admit(found)

    run(main(), on_uvloop)


async def create(address: str) -> Any:
    return await xo.create_actor(Victim, uid="late", address=address)


async def test_streams_come_to_their_end() -> None:
    """One of which nothing has been read yet, and one that has begun."""
    async with crashing.pool(1) as pool:
        (address,) = sub_pools(pool)
        ref, found = await busy(address), of(pool, address)
        fresh, begun = await ref.stream(3), await ref.stream(3)
        assert await anext(begun) == 0
        draining = asyncio.ensure_future(drain(pool, address, found, BOUND))
        await eventually_here(lambda: found.page and found.page.draining)
        assert type(await error_of(ref.stream(3))) is PoolUnavailable
        assert [each async for each in fresh] == [0, 1, 2]
        assert not draining.done()
        assert [each async for each in begun] == [1, 2]
        assert await bounded(draining)
        del fresh, begun  # xoscar tells the pool, whose answer its caller's loop waits for


async def test_what_has_begun_may_ask_for_more(tmp_path: Path) -> None:
    """Of its own pool: it could not end otherwise."""
    go_on = tmp_path / "go on"
    async with crashing.pool(1) as pool:
        (address,) = sub_pools(pool)
        ref, found = await busy(address), of(pool, address)
        pid = await ref.pid()
        in_process = asyncio.ensure_future(ref.create_after(str(go_on)))
        await eventually_here(lambda: found.in_process() == 1)
        draining = asyncio.ensure_future(drain(pool, address, found, BOUND))
        await eventually_here(lambda: found.page and found.page.draining)
        go_on.touch()
        assert await bounded(in_process) == pid
        assert await bounded(draining)


@pytest.mark.parametrize("kind", ["tcp", "unix"])
async def test_an_answer_is_waited_for(kind: str) -> None:
    """It has ended when the answer is with who asked, be he slow."""
    async with crashing.pool(1) as pool:
        (address,) = sub_pools(pool)
        await busy(address)
        found, size = of(pool, address), 64 << 20
        page = found.page
        assert page is not None
        index = pool._config.get_process_index(address)
        internal = pool._config.get_pool_config(index)["internal_address"]
        client: Any = (
            await SocketClient.connect(address)
            if kind == "tcp"
            else await UnixSocketClient.connect(internal)
        )
        ref = create_actor_ref(address, b"busy")
        begun = page.told().begun
        await client.send(SendMessage(new_message_id(), ref, ("big", 0, (size,), {})))
        await eventually_here(lambda: page.told().begun > begun)
        await eventually_here(lambda: found.in_process() == 0)
        assert not await drain(pool, address, found, 0.3)
        answer = await bounded(client.recv())
        assert len(answer.result) == size
        assert await bounded(drain(pool, address, found, BOUND))
        await client.close()


async def test_an_answer_that_is_lost() -> None:
    """It is drained, but nobody is told that his call was not executed."""
    async with crashing.pool(1) as pool:
        (address,) = sub_pools(pool)
        found = of(pool, address)
        client = await SocketClient.connect(address)
        ref = create_actor_ref(address, address.encode())
        await client.send(SendMessage(new_message_id(), ref, ("wait", 0, (0.3,), {})))
        await eventually_here(lambda: found.in_process() == 1)
        await client.close()
        assert await bounded(drain(pool, address, found, BOUND))
        assert not found.drained


@pytest.mark.parametrize("how", ["blocked", "stopped"])
async def test_one_that_does_not_answer(how: str, tmp_path: Path) -> None:
    """It can be told to begin nothing more, and is not waited for any longer than wanted."""
    async with crashing.pool(1) as pool:
        (address,) = sub_pools(pool)
        ref, found = await victim(address), of(pool, address)
        pid = await ref.pid()
        if how == "blocked":
            calls = [asyncio.ensure_future(ref.block(3)), asyncio.ensure_future(ref.pid())]
            await eventually_here(lambda: found.in_process() == 1)
        else:
            os.kill(pid, signal.SIGSTOP)
            calls = [asyncio.ensure_future(ref.pid())]
            await asyncio.sleep(0)
        assert not await bounded(drain(pool, address, found, 0.2))
        os.kill(pid, signal.SIGCONT)
        late = await error_of(calls[-1])
        assert type(late) is PoolUnavailable, "it had not begun"
        assert await bounded(drain(pool, address, found, BOUND))


async def test_one_that_dies_meanwhile() -> None:
    async with crashing.pool(1) as pool:
        (address,) = sub_pools(pool)
        ref, found = await victim(address), of(pool, address)
        pid = await ref.pid()
        held = asyncio.ensure_future(error_of(ref.hold()))
        await eventually_here(lambda: found.in_process() == 1)
        draining = asyncio.ensure_future(drain(pool, address, found, BOUND))
        await eventually_here(lambda: found.page and found.page.draining)
        os.kill(pid, signal.SIGKILL)
        assert not await bounded(draining)
        assert not found.drained
        assert type(await held) is xoscar_idle.PoolCrashed


async def test_those_that_cannot_be_told() -> None:
    """Without a page, or without us in their process: nobody waits for them."""
    async with crashing.pool(2) as pool:
        first, second = sub_pools(pool)
        without_page = of(pool, first)
        without_page.page = None
        assert not stop_admitting(without_page)
        assert not await drain(pool, first, without_page, BOUND)
        await (await busy(second)).uninstall()
        assert not await bounded(drain(pool, second, of(pool, second), 10 * BOUND))


async def test_what_is_read_too_late_is_not_executed(tmp_path: Path) -> None:
    """Callers of a process that has been drained, and then killed, know that."""
    async with crashing.pool(1, auto_recover=False) as pool:
        (address,) = sub_pools(pool)
        log = tmp_path / "executed"
        ref = await xo.create_actor(Busy, str(log), uid="busy", address=address)
        found, pid = of(pool, address), await ref.pid()
        assert await bounded(drain(pool, address, found, BOUND))
        os.kill(pid, signal.SIGSTOP)  # it reads nothing more
        late = asyncio.ensure_future(error_of(ref.execute("late")))
        await asyncio.sleep(0.1)
        found.requested = "it was ended by a test"
        os.kill(pid, signal.SIGKILL)
        error: Any = await bounded(late)
        assert type(error) is xo.ServerClosed
        assert error.unexecuted
        assert log.read_text() == ""


@pytest.mark.parametrize("on_uvloop", [False, True])
def test_load_that_never_ends(on_uvloop: bool, tmp_path: Path) -> None:
    """From another process, over TCP, by callers who try again at once: it is drained all the
    same. Each call is executed and answered, or neither."""
    log = tmp_path / "executed"

    async def main(address: str) -> None:
        ref = await xo.create_actor(Busy, str(log), uid="busy", address=address)
        await eventually_here(lambda: crashing.knows_main_of(address))
        answered, failed, refused = set[str](), set[str](), 0
        stop = asyncio.Event()

        async def load(caller: int) -> None:
            nonlocal refused
            n = 0
            while not stop.is_set():
                name, n = f"{caller}.{n}", n + 1
                try:
                    assert await ref.execute(name) == name
                    answered.add(name)
                except (ConnectionError, xo.ServerClosed, xo.ActorNotExist) as error:
                    failed.add(name)
                    refused += getattr(error, "turned_away", None) is not None
                    await asyncio.sleep(0)

        loads = [asyncio.ensure_future(load(i)) for i in range(16)]
        await eventually_here(lambda: len(answered) > 100)
        applied = await bounded(xoscar_idle.apply("restart", address, drain=BOUND))
        assert applied.reason == "it has been replaced"
        stop.set()
        await bounded(asyncio.gather(*loads))
        executed = log.read_text().split()
        assert len(executed) == len({*executed})
        assert {*executed} == answered, (
            "no answer is lost, and no call that has failed was executed"
        )
        assert refused
        assert not answered & failed

    with host(on_uvloop, XOSCAR_SUPERVISE="act", XOSCAR_IDLE_TIMEOUT="600") as found:
        run(main(found.first), on_uvloop)


def test_the_error_travels() -> None:
    """To whoever does not have this package as xoscar's own error, and with its attributes."""
    import pickle

    error = PoolUnavailable.turning_away("127.0.0.1:1", b"id", draining._REASON, "stopping")
    copy = pickle.loads(pickle.dumps(error))
    assert (copy.turned_away, copy.state, str(copy)) == (b"id", "stopping", str(error))
