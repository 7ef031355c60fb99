"""Ends of sub-pools that their main pool wants: with all that they have started, and no more."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
import xoscar as xo

from xoscar_idle import PoolCrashed
from xoscar_idle.supervision import draining, ending, subpool
from xoscar_idle.supervision.subpool import Subpool

from ..support import crashing
from ..support.crashing import Victim, error_of, revived, sub_pools, victim
from ..support.processes import lives
from ..support.waiting import bounded, eventually_here

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("acting")]

PARENT = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print(child.pid, flush=True)
time.sleep(600)
"""

RESPAWNING = """
import subprocess, sys
while True:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    print(child.pid, flush=True)
    child.wait()
"""

TIDYING = """
import pathlib, sys, time
sys.stdin.read()  # until its parent has ended
time.sleep(0.1)
pathlib.Path(sys.argv[1]).touch()
"""


class Parent(Victim):
    """Starts processes of its own."""

    def start(self, program: str) -> list[int]:
        """One that starts another one; both."""
        started = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
        self._started = started
        assert started.stdout is not None
        return [started.pid, int(started.stdout.readline())]

    def start_tidying(self, path: str) -> int:
        """One that leaves a file when this process ends."""
        command = [sys.executable, "-c", TIDYING, path]
        self._tidying = subprocess.Popen(command, stdin=subprocess.PIPE)
        return self._tidying.pid


def of(pool: Any, address: str) -> Subpool:
    return subpool.of(pool.sub_processes[address])


async def parent(address: str) -> Any:
    return await xo.create_actor(Parent, uid="parent", address=address)


@pytest.mark.parametrize("way", ["stop", "remove", "force", "kill", "kill, stopped"])
@pytest.mark.parametrize("program", [PARENT, RESPAWNING], ids=["once", "respawning"])
async def test_what_it_has_started_ends_with_it(way: str, program: str) -> None:
    async with crashing.pool(1, auto_recover=False) as pool:
        (address,) = sub_pools(pool)
        found, ref = of(pool, address), await parent(address)
        started = [found.pid, *await ref.start(program)]
        assert all(map(lives, started))
        if way == "stop":
            await bounded(pool.stop())
        elif way == "remove":
            await bounded(pool.remove_sub_pool(address))
        elif way == "force":
            await bounded(pool.remove_sub_pool(address, force=True))
        else:
            if way == "kill, stopped":
                os.kill(found.pid, signal.SIGSTOP)
            await bounded(ending.kill(found, "a test wants it"))
        await eventually_here(lambda: not any(map(lives, started)))


@pytest.mark.parametrize("way", ["remove", "kill"])
async def test_what_it_has_started_may_tidy_up(way: str, tmp_path: Path) -> None:
    """As Python's resource tracker does, when its parent has ended."""
    path = tmp_path / "tidy"
    async with crashing.pool(1, auto_recover=False) as pool:
        (address,) = sub_pools(pool)
        found, ref = of(pool, address), await parent(address)
        helper = await ref.start_tidying(str(path))
        if way == "remove":
            await bounded(pool.remove_sub_pool(address))
        else:
            await bounded(ending.kill(found, "a test wants it"))
        await eventually_here(lambda: not lives(helper))
        assert path.exists()


async def test_without_act_its_children_are_not_ours(acting: Any) -> None:
    acting(supervise="observe")
    async with crashing.pool(1) as pool:
        (address,) = sub_pools(pool)
        found, ref = of(pool, address), await parent(address)
        started = await ref.start(PARENT)
        await bounded(pool.remove_sub_pool(address))
        assert not lives(found.pid)
        assert all(map(lives, started))
        for each in started:
            os.kill(each, signal.SIGKILL)
        await eventually_here(lambda: not any(map(lives, started)))


@pytest.mark.parametrize("way", ["stop", "remove"])
async def test_what_is_in_process_ends_first(way: str) -> None:
    async with crashing.pool(1) as pool:
        (address,) = sub_pools(pool)
        found, ref = of(pool, address), await victim(address)
        pid = await ref.pid()
        in_process = asyncio.ensure_future(ref.wait(0.5))
        await eventually_here(lambda: found.in_process() == 1)
        await bounded(pool.stop() if way == "stop" else pool.remove_sub_pool(address))
        assert await bounded(in_process) == pid
        assert not lives(pid)
        assert found.drained


async def test_what_takes_too_long_is_told() -> None:
    async with crashing.pool(1) as pool:
        (address,) = sub_pools(pool)
        found, ref = of(pool, address), await victim(address)
        held = asyncio.ensure_future(error_of(ref.hold()))
        await eventually_here(lambda: found.in_process() == 1)
        await bounded(pool.remove_sub_pool(address, timeout=0.1))
        error = await bounded(held)
        assert type(error) is xo.ServerClosed
        assert str(error).endswith(
            "it was removed from its main pool, with 1 request in process after 0.1 s"
        )
        assert not getattr(error, "unexecuted", False)


async def test_two_ends_at_once() -> None:
    """Whoever comes first; each returns when it has ended."""
    async with crashing.pool(1) as pool:
        (address,) = sub_pools(pool)
        found, ref = of(pool, address), await victim(address)
        pid = await ref.pid()
        in_process = asyncio.ensure_future(ref.wait(0.5))
        await eventually_here(lambda: found.in_process() == 1)
        await bounded(
            asyncio.gather(
                ending.end(pool, address, found, "a test wants it"),
                ending.end(pool, address, found, "another one"),
                pool.remove_sub_pool(address),
            )
        )
        assert await bounded(in_process) == pid
        assert not lives(pid)
        assert found.requested == "a test wants it"


async def test_an_end_that_is_not_waited_for() -> None:
    """It comes all the same, as that of xoscar does."""
    async with crashing.pool(1) as pool:
        (address,) = sub_pools(pool)
        found, ref = of(pool, address), await victim(address)
        pid = await ref.pid()
        held = asyncio.ensure_future(error_of(ref.hold()))
        await eventually_here(lambda: found.in_process() == 1)
        removing = asyncio.ensure_future(pool.remove_sub_pool(address))
        await eventually_here(lambda: found.page and found.page.draining)
        removing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await removing
        await eventually_here(lambda: not psutil.pid_exists(pid))
        assert type(await bounded(held)) is xo.ServerClosed


async def test_an_end_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sub-pool goes on, and admits requests."""
    async with crashing.pool(1) as pool:
        (address,) = sub_pools(pool)
        found, ref = of(pool, address), await victim(address)
        pid = await ref.pid()

        async def kill_sub_pool(process: Any, force: bool = False) -> None:
            raise ValueError("a program's own")

        with monkeypatch.context() as patch:
            patch.setattr(pool, "kill_sub_pool", kill_sub_pool, raising=False)
            with pytest.raises(ValueError, match="a program's own"):
                await bounded(pool.stop_sub_pool(address, found.process, force=True))
        assert await ref.pid() == pid
        assert found.page is not None
        assert not found.page.draining


@pytest.mark.parametrize("how", ["blocked", "stopped"])
async def test_one_that_does_not_answer_is_ended_in_time(how: str) -> None:
    async with crashing.pool(1) as pool:
        (address,) = sub_pools(pool)
        found, ref = of(pool, address), await victim(address)
        if how == "blocked":
            call = asyncio.ensure_future(error_of(ref.block(600)))
            await eventually_here(lambda: found.in_process() == 1)
        else:
            os.kill(found.pid, signal.SIGSTOP)
            call = asyncio.ensure_future(error_of(ref.pid()))
        await bounded(pool.stop())
        assert not lives(found.pid)
        assert type(await bounded(call)) is xo.ServerClosed


async def test_a_kill_tells_why_and_what_it_did() -> None:
    async with crashing.pool(1) as pool:
        (address,) = sub_pools(pool)
        found, ref = of(pool, address), await victim(address)
        call = asyncio.ensure_future(error_of(ref.block(600)))
        await eventually_here(lambda: found.in_process() == 1)
        await bounded(
            asyncio.gather(*(ending.kill(found, f"hung, says {who}") for who in ("one", "other")))
        )
        error: Any = await bounded(call)
        assert type(error) is PoolCrashed
        assert "its main pool has ended it: hung, says one" in str(error)
        assert "in block" in error.stacks
        await revived(address)


async def test_one_that_dies_before_it_is_killed() -> None:
    """Its main pool does not say that it was itself."""
    async with crashing.pool(1) as pool:
        (address,) = sub_pools(pool)
        found, ref = of(pool, address), await victim(address)
        os.kill(found.pid, signal.SIGSTOP)
        call = asyncio.ensure_future(error_of(ref.pid()))
        killing = asyncio.ensure_future(ending.kill(found, "hung"))
        await eventually_here(lambda: found.asked_stacks)
        os.kill(found.pid, signal.SIGKILL)
        await bounded(killing)
        error = await bounded(call)
        assert type(error) is PoolCrashed
        assert "sender unknown" in str(error)
        await revived(address)


async def test_a_drain_that_had_its_time_is_not_repeated() -> None:
    async with crashing.pool(1) as pool:
        (address,) = sub_pools(pool)
        found, ref = of(pool, address), await victim(address)
        held = asyncio.ensure_future(error_of(ref.hold()))
        await eventually_here(lambda: found.in_process() == 1)
        found.drain_is_over = not await draining.drain(pool, address, found, 0.1)
        await bounded(ending.end(pool, address, found, "a test wants it"))
        error = await bounded(held)
        assert str(error).endswith("a test wants it"), "nobody has waited for it again"
        await revived(address)
