"""Calls to actors that are being created again, in a process that already listens for them."""

from __future__ import annotations

import asyncio
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import xoscar as xo
from xoscar.core import create_actor_ref

import xoscar_idle
from xoscar_idle import PoolUnavailable
from xoscar_idle.supervision.crash import ActorUnavailable

from ..support import crashing
from ..support.crashing import Recording, Slow, Victim, error_of, sub_pools, victim
from ..support.environment import environment
from ..support.processes import line, started
from ..support.waiting import bounded, eventually_here, eventually_told

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("acting")]


class Curious(Victim):
    """Calls an actor of its own pool when it is created, and keeps what that has raised."""

    async def __post_create__(self) -> None:
        try:
            await create_actor_ref(self.address, "late").pid()
        except Exception as error:
            self._raised = type(error).__name__

    def raised(self) -> str:
        return self._raised


async def killed(address: str) -> None:
    os.kill(await (await victim(address)).pid(), signal.SIGKILL)


async def populate(address: str, directory: Path) -> Any:
    """One actor that is slow to come again, and one that comes after it."""
    await xo.create_actor(Slow, str(directory), uid="slow", address=address)
    log = str(directory / "executed")
    return await xo.create_actor(Recording, log, uid="late", address=address)


async def test_they_are_told_why_it_is_not_there(tmp_path: Path) -> None:
    """Who does not wait gets xoscar's own error, with more in it."""
    async with crashing.pool(1) as pool:
        (address,) = sub_pools(pool)
        late = await populate(address, tmp_path)
        await killed(address)
        await eventually_here((tmp_path / "again").exists)
        for call in (late.execute("it"), xo.actor_ref(uid="late", address=address)):
            error = await error_of(call)
            assert isinstance(error, xo.ActorNotExist)
            assert isinstance(error, PoolUnavailable)
            assert f"pool {address} is down: it is being recovered, and actor late is not" in str(
                error
            )
        assert not await xo.has_actor(late), "who asks is told how it is"
        (tmp_path / "go on").touch()
        assert await bounded(eventually_told(lambda: xo.has_actor(late)))
        await eventually_here(lambda: xoscar_idle.pools()[0].state == "healthy")
        missing = await error_of(xo.actor_ref(uid="no such actor", address=address))
        assert isinstance(missing, xo.ActorNotExist)
        assert not isinstance(missing, PoolUnavailable), "when all are there it is as ever"


async def test_one_without_a_name(tmp_path: Path) -> None:
    """xoscar gives it random bytes for an id, which are no text."""
    async with crashing.pool(1) as pool:
        (address,) = sub_pools(pool)
        await xo.create_actor(Slow, str(tmp_path), uid="slow", address=address)
        nameless = await xo.create_actor(Victim, address=address)
        await killed(address)
        await eventually_here((tmp_path / "again").exists)
        error = await error_of(nameless.pid())
        assert isinstance(error, PoolUnavailable)
        assert f"actor {nameless.uid[:8].hex()} is not there again yet" in str(error)
        (tmp_path / "go on").touch()
        await eventually_here(lambda: xoscar_idle.pools()[0].state == "healthy")
        assert await bounded(nameless.pid())


async def test_calls_that_wait(tmp_path: Path, acting: Callable[..., None]) -> None:
    acting(recovery_timeout=60)
    async with crashing.pool(1) as pool:
        (address,) = sub_pools(pool)
        late = await populate(address, tmp_path)
        await killed(address)
        await eventually_here((tmp_path / "again").exists)
        calls = [asyncio.ensure_future(late.execute(f"{i}")) for i in range(3)]
        looked_up = asyncio.ensure_future(xo.actor_ref(uid="late", address=address))
        await eventually_here(lambda: xoscar_idle.pools()[0].held == 4)
        (tmp_path / "go on").touch()
        assert [await bounded(each) for each in calls] == ["0", "1", "2"]
        assert await (await bounded(looked_up)).execute("3") == "3"
        assert sorted((tmp_path / "executed").read_text().split()) == ["0", "1", "2", "3"]


async def test_a_caller_that_has_never_met_the_pool(
    tmp_path: Path, acting: Callable[..., None]
) -> None:
    """It learns whose pool that is from the pool itself."""
    asks = (
        "import asyncio, sys, xoscar as xo\n"
        "async def main(address):\n"
        "    late = await xo.actor_ref(uid='late', address=address)\n"
        "    print(await late.execute('it'), flush=True)\n"
        "asyncio.run(main(sys.argv[1]))\n"
    )
    async with crashing.pool(1) as pool:
        (address,) = sub_pools(pool)
        await populate(address, tmp_path)
        await killed(address)
        await eventually_here((tmp_path / "again").exists)
        settings = environment(XOSCAR_IDLE_TIMEOUT="600", XOSCAR_RECOVERY_TIMEOUT="60")
        command = (sys.executable, "-c", asks, address)
        with started(*command, env=settings, stderr=subprocess.DEVNULL) as stranger:
            await eventually_here(lambda: xoscar_idle.pools()[0].held == 1)
            (tmp_path / "go on").touch()
            assert await bounded(asyncio.to_thread(line, stranger)) == "it"


async def test_an_actor_that_is_created_does_not_wait_for_what_comes_after_it(
    acting: Callable[..., None],
) -> None:
    acting(recovery_timeout=60)
    async with crashing.pool(1) as pool:
        (address,) = sub_pools(pool)
        curious = await xo.create_actor(Curious, uid="curious", address=address)
        await xo.create_actor(Victim, uid="late", address=address)
        await killed(address)
        await eventually_here(lambda: xoscar_idle.pools()[0].incarnation == 2)
        await eventually_here(lambda: xoscar_idle.pools()[0].state == "healthy")
        assert await bounded(curious.raised()) == "ActorNotExist"


async def test_when_the_recovery_fails_nothing_more_is_awaited() -> None:
    """The process is there, and the rest of the program's own recovery has failed."""
    async with crashing.pool(1, auto_recover="process") as pool:
        (address,) = sub_pools(pool)
        own = pool.recover_sub_pool

        async def recover(address: str) -> None:
            await own(address)
            raise RuntimeError("the rest has failed")

        pool.recover_sub_pool = recover
        await killed(address)
        await eventually_here(lambda: xoscar_idle.pools()[0].incarnation == 2)
        await eventually_here(lambda: xoscar_idle.pools()[0].state == "healthy")
        error = await error_of(victim(address))
        assert isinstance(error, xo.ActorNotExist)
        assert not isinstance(error, PoolUnavailable)


def test_the_error_travels() -> None:
    error = ActorUnavailable.turning_away(
        "127.0.0.1:1", b"id", "actor x is not there", "recovering"
    )
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is ActorUnavailable
    assert (copy.turned_away, copy.state, str(copy)) == (b"id", "recovering", str(error))
