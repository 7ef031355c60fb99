"""Calls that survive the death, or the restart, of their pool: real pools, real kills."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
import xoscar as xo
from xoscar.core import create_actor_ref

import xoscar_idle
from xoscar_idle import PoolCrashed, PoolUnavailable
from xoscar_idle.connection import bounds

from ..support import crashing
from ..support.crashing import (
    Recording,
    Victim,
    error_of,
    host,
    knows_main_of,
    revived,
    run,
    sub_pools,
    victim,
)
from ..support.endpoints import ELSEWHERE
from ..support.waiting import bounded, eventually_here, eventually_told

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("surviving")]

RECOVERY_TIMEOUT = 60


@pytest.fixture
def surviving(acting: Callable[..., None]) -> Callable[..., None]:
    """Calls wait in this process, and in those that it starts."""
    acting(recovery_timeout=RECOVERY_TIMEOUT, retry="wait")
    return acting


@pytest.mark.parametrize("on_uvloop", [False, True])
def test_calls_to_a_pool_that_has_been_killed(on_uvloop: bool) -> None:
    """From the main pool's process and from another sub-pool; one was in process."""

    async def main() -> None:
        async with crashing.pool(2, use_uvloop=on_uvloop) as pool:
            first, second = sub_pools(pool)
            ref, other = await victim(first), await victim(second)
            pid = await ref.pid()
            in_process = asyncio.ensure_future(ref.wait(0.5))
            lost = asyncio.ensure_future(ref.hold())
            await eventually_here(lambda: xoscar_idle.pools()[0].in_process == 2)
            os.kill(pid, signal.SIGKILL)
            assert type(await error_of(lost)) is PoolCrashed, "it may not be executed twice"
            calls = [asyncio.ensure_future(ref.pid()) for _ in range(10)]
            relayed = asyncio.ensure_future(other.relay(first, "pid"))
            await eventually_here(lambda: xoscar_idle.pools()[0].held)
            new = {await bounded(each) for each in (*calls, relayed, in_process)}
            assert len(new) == 1
            assert new != {pid}
            assert xoscar_idle.pools()[0].held == 0

    run(main(), on_uvloop)


@pytest.mark.parametrize("way", ["kill", "restart"])
def test_a_caller_elsewhere(way: str) -> None:
    """It has learnt whose pool that is, and asks the main pool."""
    settings: Any = {"XOSCAR_SUPERVISE": "act", "XOSCAR_IDLE_TIMEOUT": "600"}

    async def main(first: str, second: str, address: str) -> None:
        ref = await victim(first)
        pid = await ref.pid()
        await eventually_here(lambda: knows_main_of(first))
        if way == "kill":
            os.kill(pid, signal.SIGKILL)
            # What is written before that is seen may have been executed, and the kernel accepts
            # connections for a process of which a thread is still going.
            await eventually_here(partial(gone, pid))
            await eventually_here(
                lambda: first not in [each.address for each in xoscar_idle.connections()]
            )
        else:
            in_process = asyncio.ensure_future(ref.wait(0.5))
            # Sent behind it: once this is answered, that has begun.
            assert await bounded(asyncio.ensure_future(ref.pid())) == pid
            restart = asyncio.ensure_future(xoscar_idle.apply("restart", first))
            assert await bounded(in_process) == pid
        calls = [asyncio.ensure_future(ref.pid()) for _ in range(10)]
        new = {await bounded(each) for each in calls}
        assert len(new) == 1
        assert new != {pid}
        if way == "restart":
            assert (await bounded(restart)).incarnation == 2

    with host(**settings) as found:
        run(main(found.first, found.second, found.main))


@pytest.mark.parametrize("way", ["by another name", "through its main pool"])
def test_a_caller_that_does_not_know_the_name_of_the_pool(way: str) -> None:
    """What turns a request away says its own name for itself."""
    settings: Any = {"XOSCAR_SUPERVISE": "act", "XOSCAR_IDLE_TIMEOUT": "600"}

    async def main(first: str, second: str, address: str) -> None:
        known_as = first.replace(ELSEWHERE, "127.3") if "name" in way else address
        ref = create_actor_ref(known_as, first)
        pid = await ref.pid()
        await eventually_here(lambda: knows_main_of(known_as))
        in_process = asyncio.ensure_future(ref.wait(1))
        # Sent behind it: once this is answered, that has begun.
        assert await bounded(asyncio.ensure_future(ref.pid())) == pid
        restart = asyncio.ensure_future(xoscar_idle.apply("restart", first, main=address))
        calls: list[asyncio.Future[int]] = []

        async def held() -> bool:
            calls.append(asyncio.ensure_future(ref.pid()))
            return bool(bounds.process.by_pool())

        await eventually_told(held)
        assert await bounded(in_process) == pid
        *_, last = [await bounded(each) for each in calls]
        assert last != pid
        assert (await bounded(restart)).incarnation == 2

    with host(**settings) as found:
        run(main(found.first, found.second, found.main))


async def test_a_successor_at_another_address() -> None:
    """As Xinference recovers: the dead one is removed, another one appended, with its actors."""
    async with crashing.pool(1, auto_recover="process") as pool:
        (address,) = sub_pools(pool)
        go_on = asyncio.Event()

        async def recover(address: str) -> None:
            await pool.remove_sub_pool(address)
            new = await pool.append_sub_pool()
            await go_on.wait()
            await xo.create_actor(Victim, uid=address, address=new)

        pool.recover_sub_pool = recover
        ref = await victim(address)
        pid = await ref.pid()
        in_process = asyncio.ensure_future(ref.wait(0.5))
        await eventually_here(lambda: xoscar_idle.pools()[0].in_process == 1)
        os.kill(pid, signal.SIGKILL)
        await eventually_here(lambda: pool.sub_processes and address not in pool.sub_processes)
        call = asyncio.ensure_future(ref.pid())
        elsewhere = asyncio.ensure_future(error_of(missing(address)))
        await eventually_here(lambda: xoscar_idle.pools()[0].held == 3)
        go_on.set()
        new = await bounded(call)
        assert new != pid
        assert await bounded(in_process) == new
        assert await ref.pid() == new, "later calls as well"
        error = await bounded(elsewhere)
        assert isinstance(error, PoolUnavailable), "an actor that is not there"
        (info,) = xoscar_idle.pools()
        assert (info.incarnation, info.state) == (2, "healthy")


async def missing(address: str) -> Any:
    return await xo.actor_ref(address=address, uid="no such actor")


async def test_what_is_given_up_raises_its_own_error(surviving: Any) -> None:
    surviving(restart_limit="0/60", restart_cooldown=0)
    async with crashing.pool(1) as pool:
        (address,) = sub_pools(pool)
        ref = await victim(address)
        await error_of(ref.die("kill"))
        error = await error_of(ref.pid())
        assert type(error) is PoolUnavailable
        assert "degraded" in str(error)


async def test_a_recovery_that_takes_too_long(surviving: Any) -> None:
    surviving(recovery_timeout=0.5)
    async with crashing.pool(1) as pool:
        (address,) = sub_pools(pool)
        ref, go_on = await victim(address), crashing.gated(pool)
        await error_of(ref.die("kill"))
        error = await error_of(ref.pid())
        assert type(error) is PoolUnavailable
        go_on.set()
        await revived(address)


async def test_the_recovery_does_not_wait_for_itself() -> None:
    """What it calls of the dead pool fails at once."""
    async with crashing.pool(1) as pool:
        (address,) = sub_pools(pool)
        ref, own, errors = await victim(address), pool.recover_sub_pool, list[BaseException]()

        async def recover(address: str) -> None:
            errors.append(await error_of(ref.pid()))
            await own(address)

        pool.recover_sub_pool = recover
        await error_of(ref.die("kill"))
        assert await bounded(ref.pid())
        assert [type(each) for each in errors] == [PoolUnavailable]


async def test_actors_do_not_wait_for_what_waits_for_them() -> None:
    """Two die at once; the actor of the first calls the second when it is created."""
    async with crashing.pool(2) as pool:
        first, second = sub_pools(pool)
        await xo.create_actor(Dependent, second, uid="dependent", address=first)
        pids = [await (await victim(each)).pid() for each in (first, second)]
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        refs = [await revived(each) for each in (second, first)]
        assert not {await each.pid() for each in refs} & {*pids}
        await eventually_here(lambda: {p.state for p in xoscar_idle.pools()} == {"healthy"})
        dependent = await xo.actor_ref(uid="dependent", address=first)
        assert await bounded(dependent.pid()) == await refs[1].pid()


class Dependent(Victim):
    """Needs another one from the beginning."""

    def __init__(self, needed: str) -> None:
        super().__init__()
        self._needed = needed

    async def __post_create__(self) -> None:
        await (await victim(self._needed)).pid()


async def test_cancelling_a_call_that_waits() -> None:
    async with crashing.pool(1) as pool:
        (address,) = sub_pools(pool)
        ref, go_on = await victim(address), crashing.gated(pool)
        await error_of(ref.die("kill"))
        call = asyncio.ensure_future(ref.pid())
        await eventually_here(lambda: xoscar_idle.pools()[0].held == 1)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await bounded(call)
        go_on.set()
        await revived(address)


async def test_callers_on_other_loops_of_the_process() -> None:
    """One that ends while calls wait there leaves no room taken."""
    async with crashing.pool(1) as pool:
        (address,) = sub_pools(pool)
        ref, go_on = await victim(address), crashing.gated(pool)
        pid = await ref.pid()

        async def calls() -> set[int]:
            return {*await asyncio.gather(*(ref.pid() for _ in range(5)))}

        async def tells() -> None:
            await ref.pid.tell()
            await eventually_here(lambda: bounds.process.by_pool() == {address: 6})

        await error_of(ref.die("kill"))
        called = asyncio.ensure_future(asyncio.to_thread(asyncio.run, calls()))
        await eventually_here(lambda: xoscar_idle.pools()[0].held == 5)
        await bounded(asyncio.to_thread(asyncio.run, tells()))
        assert bounds.process.by_pool() == {address: 5}
        go_on.set()
        (new,) = await bounded(called)
        assert new != pid
        assert not bounds.process.by_pool()


async def test_calls_that_wait_when_all_is_put_back() -> None:
    async with crashing.pool(1) as pool:
        (address,) = sub_pools(pool)
        ref, go_on = await victim(address), crashing.gated(pool)
        await error_of(ref.die("kill"))
        call = asyncio.ensure_future(error_of(ref.pid()))
        await eventually_here(lambda: xoscar_idle.pools()[0].held == 1)
        xoscar_idle.uninstall()
        assert type(await bounded(call)) is PoolUnavailable
        assert not bounds.process.by_pool()
        go_on.set()
        for _ in range(2):  # by ours, if it was under way, and then by xoscar's own monitor
            pid = await (await revived(address)).pid()
            os.kill(pid, signal.SIGKILL)
            await eventually_here(partial(gone, pid))
        await revived(address)


def gone(pid: int) -> bool:
    """Whether no thread of it is left."""
    return not psutil.pid_exists(pid)


async def test_each_of_several_is_restarted_under_load(tmp_path: Path) -> None:
    """No call fails, and none is executed twice."""
    async with crashing.pool(3) as pool:
        addresses, log = sub_pools(pool), tmp_path / "executed"
        refs = [
            await xo.create_actor(Recording, str(log), uid=f"c{i}", address=address)
            for i, address in enumerate(addresses)
        ]
        done: list[str] = []
        stop = False

        async def load(caller: int) -> None:
            n = 0
            while not stop:
                ref, name = refs[(caller + n) % 3], f"{caller}.{n}"
                assert await ref.execute(name) == name
                done.append(name)
                n += 1

        loads = [asyncio.ensure_future(load(i)) for i in range(12)]
        for address in addresses:
            applied = await bounded(xoscar_idle.apply("restart", address))
            assert applied.reason == "it has been replaced"
            await bounded(refs[addresses.index(address)].pid())
        stop = True
        await bounded(asyncio.gather(*loads))
        executed = log.read_text().split()
        assert sorted(executed) == sorted(done)
        assert len({*executed}) == len(executed)
