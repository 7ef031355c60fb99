"""Instructions, deaths, recoveries, hand-overs and uninstall() that meet each other."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import xoscar as xo

import xoscar_idle
from xoscar_idle import InstructionFailed, PoolUnavailable
from xoscar_idle.supervision import budget, recovery, supervisor
from xoscar_idle.supervision.lineage import Lineage

from ..support import crashing
from ..support.crashing import Failing, Slow, Victim, error_of, revived, sub_pools, victim
from ..support.processes import lives
from ..support.waiting import bounded, eventually_here
from .test_acting import in_state, told

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("acting", "soon")]


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is tried again is tried long before another one has been recovered."""
    monkeypatch.setattr(budget, "FIRST_DELAY", 0.05)
    monkeypatch.setattr(recovery, "RETRY", 0.05)


async def killed(address: str) -> int:
    """Kill the process there, and wait until that is known."""
    pid: int = await (await victim(address)).pid()
    os.kill(pid, signal.SIGKILL)
    await eventually_here(lambda: told(address).pid != pid or told(address).state != "healthy")
    return pid


async def incomplete(address: str, bad: Path) -> Any:
    """Let it come back without an actor, which cannot be created while that file is there."""
    failing = await xo.create_actor(Failing, str(bad), uid="failing", address=address)
    bad.touch()  # noqa: ASYNC240
    await killed(address)
    await in_state(address, "unhealthy")
    return failing


def nothing_is_planned(address: str) -> bool:
    found = supervisor.of(address)
    assert found is not None
    return not found.recovery._timers and not found.recovery._due


async def nothing_happens(pool: Any, address: str) -> None:
    """What was due by now would have begun: others are recovered after it."""
    other = next(each for each in sub_pools(pool) if each != address)
    await killed(other)
    await revived(other)
    await in_state(other, "healthy")


# -- give_up -------------------------------------------------------------------------------------


async def test_giving_up_one_whose_actors_are_being_created_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(budget, "FIRST_DELAY", 3600)
    async with crashing.pool(2) as pool:
        address, _ = sub_pools(pool)
        await xo.create_actor(Slow, str(tmp_path), uid="slow", address=address)
        await xo.create_actor(Victim, uid="late", address=address)
        await killed(address)
        await eventually_here((tmp_path / "again").exists)
        pid = told(address).pid
        await bounded(xoscar_idle.apply("give_up", address, drain=0))
        assert not lives(pid)
        assert nothing_is_planned(address)
        info = told(address)
        assert (info.state, info.pid, info.reason) == (
            "dead",
            pid,
            "it was given up by an operator",
        )
        (tmp_path / "go on").touch()
        await bounded(xoscar_idle.apply("retry", address))
        assert await (await revived(address)).pid() != pid


async def test_giving_up_one_that_is_nowhere(acting: Any) -> None:
    """A program's own recovery has removed it, and does not come to an end."""
    async with crashing.pool(1, auto_recover="process") as pool:
        (address,) = sub_pools(pool)
        removed = asyncio.Event()

        async def recover(address: str) -> None:
            await pool.remove_sub_pool(address)
            removed.set()
            await asyncio.Event().wait()

        pool.recover_sub_pool = recover
        os.kill(await (await victim(address)).pid(), signal.SIGKILL)
        await bounded(removed.wait())
        assert told(address).state == "recovering", "it is shown"
        applied = await bounded(xoscar_idle.apply("give_up", address))
        assert applied.reason == "it is not recovered any more"
        await eventually_here(lambda: not xoscar_idle.pools())


async def test_resume_of_one_that_was_given_up() -> None:
    async with crashing.pool(2) as pool:
        address, _ = sub_pools(pool)
        await bounded(xoscar_idle.apply("pause", address))
        await bounded(xoscar_idle.apply("give_up", address))
        await bounded(xoscar_idle.apply("resume", address))
        assert told(address).state == "dead"
        await nothing_happens(pool, address)
        assert told(address).state == "dead"


# -- pause ---------------------------------------------------------------------------------------


async def test_a_paused_pool_is_not_completed_until_it_is_resumed(tmp_path: Path) -> None:
    bad = tmp_path / "bad"
    async with crashing.pool(2) as pool:
        address, _ = sub_pools(pool)
        failing = await incomplete(address, bad)
        await bounded(xoscar_idle.apply("pause", address))
        bad.unlink()
        await nothing_happens(pool, address)
        assert told(address).state == "paused"
        assert "actor failing was not created again" in told_why(address)
        await bounded(xoscar_idle.apply("resume", address))
        await in_state(address, "healthy")
        assert await failing.pid() == told(address).pid


async def test_a_paused_pool_that_was_not_complete_dies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(budget, "FIRST_DELAY", 3600)
    bad = tmp_path / "bad"
    async with crashing.pool(2) as pool:
        address, _ = sub_pools(pool)
        await incomplete(address, bad)
        assert not nothing_is_planned(address)
        await bounded(xoscar_idle.apply("pause", address))
        pid = await killed(address)
        await eventually_here(lambda: lineage_of(address).has_ended)
        assert nothing_is_planned(address)
        assert (told(address).state, told(address).pid) == ("paused", pid)


async def test_resume_of_one_that_nobody_recovers() -> None:
    down: list[str] = []
    options = {"on_process_down": lambda pool, address: down.append(address)}
    async with crashing.pool(1, auto_recover=False, **options) as pool:
        (address,) = sub_pools(pool)
        await bounded(xoscar_idle.apply("pause", address))
        await killed(address)
        await eventually_here(lambda: down)
        await bounded(xoscar_idle.apply("resume", address))
        assert told(address).state == "dead"
        assert down == [address]


# -- restart -------------------------------------------------------------------------------------


async def test_removing_one_that_drains() -> None:
    async with crashing.pool(1) as pool:
        (address,) = sub_pools(pool)
        held = asyncio.ensure_future(error_of((await victim(address)).hold()))
        await eventually_here(lambda: told(address).in_process == 1)
        restart = asyncio.ensure_future(error_of(xoscar_idle.apply("restart", address)))
        await eventually_here(lambda: pool_drains(address))
        await pool.remove_sub_pool(address, timeout=0.1)
        assert isinstance(await bounded(restart), InstructionFailed)
        await bounded(held)
        gone = error_of(xo.wait_actor_pool_recovered(address, pool.external_address))
        assert isinstance(await gone, PoolUnavailable)


def lineage_of(address: str) -> Lineage:
    found = supervisor.of(address)
    assert found is not None
    lineage = found.lineage_of(address)
    assert lineage is not None
    return lineage


def told_why(address: str) -> str:
    """Why not all of its actors are there."""
    return lineage_of(address).incomplete


def pool_drains(address: str) -> bool:
    return lineage_of(address).restarting


async def test_the_deadline_of_who_asks_is_not_that_of_the_drain() -> None:
    async with crashing.pool(1) as pool:
        (address,) = sub_pools(pool)
        in_process = asyncio.ensure_future((await victim(address)).block(1))
        await eventually_here(lambda: told(address).in_process == 1)

        async def ask() -> Any:
            with xoscar_idle.deadline(0.3, required=False):
                return await xoscar_idle.apply("restart", address)

        applied = await bounded(ask())
        assert applied.reason == "it has been replaced"
        await bounded(in_process)  # it was let end


async def test_what_a_request_starts_while_its_pool_drains(tmp_path: Path) -> None:
    async with crashing.pool(1) as pool:
        (address,) = sub_pools(pool)
        parent = await xo.create_actor(Parent, uid="parent", address=address)
        go_on = tmp_path / "go on"
        call = asyncio.ensure_future(parent.start_when(str(go_on)))
        await eventually_here(lambda: told(address).in_process == 1)
        removing = asyncio.ensure_future(pool.remove_sub_pool(address, timeout=30))
        while not isinstance(await error_of_or_none(parent.pid()), PoolUnavailable):
            pass
        go_on.touch()
        helper = await bounded(call)
        await bounded(removing)
        await eventually_here(lambda: not lives(helper))


async def error_of_or_none(call: Any) -> BaseException | None:
    try:
        await call
    except Exception as error:
        return error
    return None


class Parent(Victim):
    async def start_when(self, path: str) -> int:
        """Wait for that file, then start a process that would live for long; its number."""
        await self.until(path)
        command = [sys.executable, "-c", "import time; time.sleep(600)"]
        return subprocess.Popen(command, start_new_session=True).pid  # noqa: ASYNC220


# -- a program's own actors ----------------------------------------------------------------------


async def test_an_actor_that_the_program_has_made_since_is_left_alone(tmp_path: Path) -> None:
    bad = tmp_path / "bad"
    async with crashing.pool(2) as pool:
        address, _ = sub_pools(pool)
        await incomplete(address, bad)
        await bounded(xoscar_idle.apply("pause", address))  # its next try is not to be first
        await xo.destroy_actor(await xo.actor_ref(uid="failing", address=address))
        own = await xo.create_actor(
            Failing, str(tmp_path / "another"), uid="failing", address=address
        )
        waiting = asyncio.ensure_future(own.wait(0.5))
        await bounded(xoscar_idle.apply("resume", address))
        await in_state(address, "healthy")
        assert await bounded(waiting) == told(address).pid


# -- uninstall() ---------------------------------------------------------------------------------


async def test_uninstall_while_actors_are_created_again(tmp_path: Path) -> None:
    async with crashing.pool(1) as pool:
        (address,) = sub_pools(pool)
        await xo.create_actor(Slow, str(tmp_path), uid="slow", address=address)
        await killed(address)
        await eventually_here((tmp_path / "again").exists)
        xoscar_idle.uninstall()
        (tmp_path / "go on").touch()
        error = await error_of(xo.actor_ref(uid="no such actor", address=address))
        assert isinstance(error, xo.ActorNotExist)
        assert not isinstance(error, PoolUnavailable)


# -- hand-overs ----------------------------------------------------------------------------------

handing_over = pytest.mark.skipif(
    not hasattr(xo.backends.indigen.pool.MainActorPool, "handoff_to"),
    reason="xoscar 0.12 has the hand-over, not this one",
)


@handing_over
async def test_a_hand_over_that_waited_for_a_recovery_and_is_refused(tmp_path: Path) -> None:
    down: list[str] = []
    options = {"on_process_down": lambda pool, address: down.append(address)}
    async with crashing.pool(1, **options) as pool:
        (address,) = sub_pools(pool)
        await xo.create_actor(Slow, str(tmp_path), uid="slow", address=address)
        with crashing.host(n_process=1, XOSCAR_IDLE_TIMEOUT="600") as host:  # it has one already
            await killed(address)
            await eventually_here((tmp_path / "again").exists)
            handing = asyncio.ensure_future(error_of(pool.handoff_to(host.main)))
            await asyncio.sleep(0)
            (tmp_path / "go on").touch()
            assert "no sub pools" in str(await bounded(handing))
            await in_state(address, "healthy")
            await bounded(xo.wait_actor_pool_recovered(address, pool.external_address))
            assert down == [address]
        pid = await killed(address)
        assert await (await revived(address)).pid() != pid, "it is still watched"


@handing_over
async def test_a_hand_over_during_a_drain(tmp_path: Path) -> None:
    """Its new main pool has it as it is, with what is in process."""
    go_on = tmp_path / "go on"
    with crashing.host(n_process=0, XOSCAR_IDLE_TIMEOUT="600") as host:
        async with crashing.pool(1) as pool:
            (address,) = sub_pools(pool)
            ref = await victim(address)
            in_process = asyncio.ensure_future(ref.until(str(go_on)))
            await eventually_here(lambda: told(address).in_process == 1)
            pid = told(address).pid
            restart = asyncio.ensure_future(error_of(xoscar_idle.apply("restart", address)))
            await eventually_here(lambda: pool_drains(address))
            assert await bounded(pool.handoff_to(host.main)) == [address]
            assert isinstance(await bounded(restart), InstructionFailed)
            relaying = await victim(host.main)
            assert await bounded(relaying.relay(address, "pid")) == pid, "requests are admitted"
            go_on.touch()
            assert await bounded(in_process) == pid
