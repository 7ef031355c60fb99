"""Recovery that ends, and what operators ask for: ``XOSCAR_SUPERVISE=act`` on real pools."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import xoscar as xo

import xoscar_idle
from xoscar_idle import InstructionFailed, InstructionRefused, PoolCrashed, PoolUnavailable
from xoscar_idle.supervision import budget
from xoscar_idle.supervision.state import PoolInfo

from ..support import crashing
from ..support.crashing import Failing, Victim, error_of, revived, run, sub_pools, victim
from ..support.processes import lives
from ..support.waiting import bounded, eventually_here

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("acting")]


def told(address: str) -> PoolInfo:
    (found,) = [each for each in xoscar_idle.pools() if each.address == address]
    return found


async def in_state(address: str, state: str) -> PoolInfo:
    await eventually_here(lambda: told(address).state == state)
    return told(address)


class Dying(Victim):
    """Takes its process with it, as soon as it is there and that file says so."""

    def __init__(self, path: str) -> None:
        super().__init__()
        if os.path.exists(path):
            os.kill(os.getpid(), signal.SIGKILL)


async def test_what_dies_whenever_it_is_started_is_degraded(
    acting: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    acting(restart_limit="2/60", restart_cooldown=3600)
    monkeypatch.setattr(budget, "FIRST_DELAY", 0.05)
    bad, starts = tmp_path / "bad", list[str]()
    async with crashing.pool(1) as pool:
        (address,) = sub_pools(pool)
        own = pool.recover_sub_pool

        async def recover(address: str) -> None:
            starts.append(address)
            await own(address)

        pool.recover_sub_pool = recover
        await xo.create_actor(Dying, str(bad), uid="dying", address=address)
        bad.touch()
        await error_of((await victim(address)).die("kill"))
        degraded = await in_state(address, "degraded")
        assert starts == [address] * 2
        assert "it has failed 3 times within 60 s" in degraded.reason
        assert degraded.restart_at is not None
        assert degraded.restart_at - time.time() == pytest.approx(3600, abs=60)
        error = await error_of(xo.actor_ref(address=address, uid=address))
        assert type(error) is PoolUnavailable
        assert (error.state, error.restart_at) == ("degraded", degraded.restart_at)
        assert "degraded: it has failed 3 times within 60 s" in str(error)
        with pytest.raises(PoolUnavailable):
            await bounded(xo.wait_actor_pool_recovered(address, pool.external_address))

        with pytest.raises(InstructionFailed, match="has ended, too"):
            await bounded(xoscar_idle.apply("retry", address))
        await in_state(address, "degraded")
        assert len(starts) == 3, "by hand it is tried once"
        bad.unlink()
        applied = await bounded(xoscar_idle.apply("reset", address))
        assert applied.status == "succeeded"
        assert told(address).state == "healthy"
        await (await revived(address)).pid()


async def test_a_degraded_pool_is_tried_by_itself(acting: Any, tmp_path: Path) -> None:
    """Once; if that fails, it waits for longer, and if not, it is healthy."""
    acting(restart_limit="0/60", restart_cooldown=0.2)
    bad = tmp_path / "bad"
    async with crashing.pool(1) as pool:
        (address,) = sub_pools(pool)
        await xo.create_actor(Dying, str(bad), uid="dying", address=address)
        bad.touch()
        await error_of((await victim(address)).die("kill"))
        await eventually_here(lambda: told(address).restarts >= 2)
        assert "it has failed again" in (await in_state(address, "degraded")).reason
        bad.unlink()
        await in_state(address, "healthy")
        assert told(address).restart_at is None


@pytest.mark.parametrize("uid", ["failing", None])
async def test_an_actor_that_cannot_be_created_again(
    acting: Any, tmp_path: Path, uid: str | None
) -> None:
    """Its pool is not called healthy, and its other actors serve; it is tried again."""
    acting(restart_limit="1/60", restart_cooldown=3600)
    bad = tmp_path / "bad"
    async with crashing.pool(1) as pool:
        (address,) = sub_pools(pool)
        failing = await xo.create_actor(Failing, str(bad), uid=uid, address=address)
        bad.touch()
        await error_of(failing.die("kill"))
        degraded = await in_state(address, "degraded")
        name = uid or failing.uid[:8].hex()
        assert f"actor {name} was not created again: ValueError: there is that file" in (
            degraded.reason
        )
        pid = await (await victim(address)).pid()
        assert pid == degraded.pid, "it lives"
        with pytest.raises(InstructionFailed, match="there is that file"):
            await bounded(xoscar_idle.apply("retry", address))
        bad.unlink()
        await bounded(xoscar_idle.apply("retry", address))
        assert told(address).state == "healthy"
        assert await failing.pid() == pid, "in the same process"


async def test_a_hang_is_ended_and_recovered(acting: Any) -> None:
    """Its callers are told, with the stacks of what it did."""
    acting(hang_timeout=1.0)
    async with crashing.pool(1) as pool:
        (address,) = sub_pools(pool)
        ref = await victim(address)
        pid = await ref.pid()
        error: Any = await error_of(ref.block(600))
        assert type(error) is PoolCrashed
        assert f"(pid {pid}) was killed by SIGKILL" in str(error)
        assert "its main pool has ended it: hung: its event loop has been blocked" in str(error)
        assert "in block" in error.stacks
        assert await (await revived(address)).pid() != pid


async def test_one_that_is_stopped_is_ended(acting: Any) -> None:
    acting(hang_timeout=1.0)
    async with crashing.pool(1) as pool:
        (address,) = sub_pools(pool)
        ref = await victim(address)
        os.kill(pid := await ref.pid(), signal.SIGSTOP)
        error: Any = await error_of(ref.pid())
        assert type(error) is PoolCrashed
        assert "its main pool has ended it: stopped: by a signal" in str(error)
        assert await (await revived(address)).pid() != pid


async def test_without_act_a_hang_is_only_told(acting: Any) -> None:
    acting(supervise="observe", hang_timeout=0.6)
    async with crashing.pool(1) as pool:
        (address,) = sub_pools(pool)
        ref = await victim(address)
        pid = await ref.pid()
        blocked = asyncio.ensure_future(ref.block(3))
        await eventually_here(lambda: "hung" in told(address).reason)
        await bounded(blocked)
        assert await ref.pid() == pid


class Starting:
    """A start of a sub-pool that does not come to its end."""

    def __init__(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "sitecustomize.py").write_text(
            "import os, sys, time\n"
            "while 'start_sub_pool' in sys.orig_argv and os.path.exists(os.environ['STUCK']):\n"
            "    time.sleep(0.05)\n"
        )
        self.stuck = tmp_path / "stuck"
        monkeypatch.setenv("STUCK", str(self.stuck))
        monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")


async def test_a_start_that_takes_too_long(
    acting: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    starting = Starting(tmp_path, monkeypatch)
    async with crashing.pool(1) as pool:
        acting(start_timeout=1.0, restart_limit="1/60", restart_cooldown=3600)
        (address,) = sub_pools(pool)
        starting.stuck.touch()
        await error_of((await victim(address)).die("kill"))
        degraded = await in_state(address, "degraded")
        assert "its start took longer than 1 s (XOSCAR_START_TIMEOUT)" in degraded.reason
        starting.stuck.unlink()
        acting(start_timeout=0)
        await bounded(xoscar_idle.apply("retry", address))
        await (await revived(address)).pid()


async def test_a_recovery_that_never_returns_can_be_given_up(acting: Any) -> None:
    """Others are told meanwhile, and have their turn then."""
    async with crashing.pool(2) as pool:
        first, second = sub_pools(pool)
        own, begun = pool.recover_sub_pool, list[str]()

        async def recover(address: str) -> None:
            begun.append(address)
            if address == first:
                await asyncio.Event().wait()
            await own(address)

        pool.recover_sub_pool = recover
        await error_of((await victim(first)).die("kill"))
        await eventually_here(lambda: begun)
        error = await error_of((await victim(second)).die("kill"))
        assert type(error) is PoolCrashed
        retry = asyncio.ensure_future(xoscar_idle.apply("retry", first, request_id="one"))
        with pytest.raises(InstructionRefused, match=r"retry of pool .* is being carried out"):
            await eventually_refused("reset", first)
        await bounded(xoscar_idle.apply("give_up", first))
        with pytest.raises(InstructionFailed, match="it was given up"):
            await bounded(retry)
        await bounded((await revived(second)).pid())
        assert told(first).state == "dead"
        assert begun == [first, second]
        error = await error_of(xo.actor_ref(address=first, uid=first))
        assert type(error) is PoolUnavailable
        assert "it was given up by an operator" in str(error)
        pool.recover_sub_pool = own
        await bounded(xoscar_idle.apply("reset", first))
        await bounded((await revived(first)).pid())


async def eventually_refused(instruction: str, address: str) -> None:
    """It comes behind one that has just been asked for."""
    await asyncio.sleep(0)
    await xoscar_idle.apply(instruction, address)


@pytest.mark.parametrize("on_uvloop", [False, True])
def test_a_restart_loses_nothing(acting: Any, on_uvloop: bool) -> None:
    """What is in process ends, with its answer; what comes meanwhile is turned away."""

    async def main() -> None:
        async with crashing.pool(1, use_uvloop=on_uvloop) as pool:
            (address,) = sub_pools(pool)
            ref = await victim(address)
            pid = await ref.pid()
            slow = asyncio.ensure_future(ref.wait(1.0))
            await eventually_here(lambda: told(address).in_process == 1)
            restarting = asyncio.ensure_future(xoscar_idle.apply("restart", address))
            turned_away = await eventually_error(ref.pid)
            assert type(turned_away) is PoolUnavailable
            assert turned_away.turned_away
            assert await bounded(slow) == pid
            applied = await bounded(restarting)
            assert (applied.status, applied.incarnation) == ("succeeded", 2)
            assert applied.reason == "it has been replaced"
            assert await ref.pid() != pid
            info = told(address)
            assert (info.state, info.last_failure) == ("healthy", None), "it was no crash"

    run(main(), on_uvloop)


async def eventually_error(call: Callable[[], Any]) -> Any:
    while True:
        try:
            await call()
        except Exception as error:
            return error


async def test_a_restart_has_a_bound(acting: Any) -> None:
    async with crashing.pool(1) as pool:
        (address,) = sub_pools(pool)
        ref = await victim(address)
        held = asyncio.ensure_future(ref.hold())
        await eventually_here(lambda: told(address).in_process == 1)
        applied = await bounded(xoscar_idle.apply("restart", address, drain=0.1))
        assert applied.reason == "it has been replaced, with 1 request in process after 0.1 s"
        error = await error_of(held)
        assert type(error) is xo.ServerClosed
        assert "it was restarted by an operator" in str(error)


async def test_a_paused_pool_is_left_alone(acting: Any) -> None:
    acting(hang_timeout=0.6)
    async with crashing.pool(1) as pool:
        (address,) = sub_pools(pool)
        ref = await victim(address)
        pid = await ref.pid()
        await xoscar_idle.apply("pause", address)
        assert (told(address).state, told(address).reason) == ("paused", "by an operator")
        await bounded(ref.block(2))
        assert await ref.pid() == pid, "it hung for longer than it might"
        await error_of(ref.die("kill"))
        assert (await in_state(address, "paused")).pid == pid
        error = await error_of(ref.pid())
        assert type(error) is PoolUnavailable
        await xoscar_idle.apply("resume", address)
        await in_state(address, "healthy")
        assert await (await revived(address)).pid() != pid


async def test_giving_up_one_that_lives(acting: Any) -> None:
    async with crashing.pool(1) as pool:
        (address,) = sub_pools(pool)
        applied = await bounded(xoscar_idle.apply("give_up", address))
        assert applied.reason == "it has ended, and is not recovered"
        assert (await in_state(address, "dead")).reason == "it was given up by an operator"
        await bounded(xoscar_idle.apply("retry", address))
        await (await revived(address)).pid()


async def test_instructions_are_idempotent_and_fenced(acting: Any) -> None:
    async with crashing.pool(1) as pool:
        (address,) = sub_pools(pool)
        first = await bounded(
            xoscar_idle.apply("restart", address, request_id="r1", expect_incarnation=1)
        )
        again = await bounded(
            xoscar_idle.apply("restart", address, request_id="r1", expect_incarnation=1)
        )
        assert first == again
        assert told(address).incarnation == 2
        with pytest.raises(InstructionRefused, match="'r1' was given to restart") as refused:
            await xoscar_idle.apply("pause", address, request_id="r1")
        assert refused.value.status == 409
        with pytest.raises(InstructionRefused, match="is in its incarnation 2, not 1") as refused:
            await xoscar_idle.apply("restart", address, expect_incarnation=1)
        assert refused.value.status == 409
        with pytest.raises(
            InstructionRefused, match="unknown instruction 'stop'; there"
        ) as refused:
            await xoscar_idle.apply("stop", address)
        assert refused.value.status == 400
    with pytest.raises((InstructionRefused, ConnectionError)):
        await xoscar_idle.apply("restart", address)


@pytest.mark.parametrize(
    ("set_", "text"),
    [
        ({"supervise": "observe"}, "is not acted on: XOSCAR_SUPERVISE=act is not set"),
        ({}, "its main pool was made with auto_recover=False"),
    ],
)
async def test_what_cannot_be_restarted(acting: Any, set_: dict[str, str], text: str) -> None:
    acting(**set_)
    options = {} if set_ else {"auto_recover": False}
    async with crashing.pool(1, **options) as pool:
        (address,) = sub_pools(pool)
        with pytest.raises(InstructionRefused, match=text):
            await xoscar_idle.apply("restart", address)


async def test_the_end_of_the_main_pool_while_one_recovers(acting: Any) -> None:
    """No process stays, and nothing hangs."""
    async with crashing.pool(1) as pool:
        (address,) = sub_pools(pool)
        await error_of((await victim(address)).die("kill"))
        await in_state(address, "starting")
        pid = int(told(address).reason.split()[1])
        restart = asyncio.ensure_future(error_of(xoscar_idle.apply("retry", address)))
        await asyncio.sleep(0)
    assert isinstance(await bounded(restart), (InstructionFailed, InstructionRefused))
    await eventually_here(lambda: not lives(pid))
