"""What is done about deaths: what xoscar does, in its order, and once for each."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import xoscar as xo
from xoscar.backends.indigen.pool import MainActorPool

import xoscar_idle
from xoscar_idle import PoolCrashed
from xoscar_idle.supervision import recovery

from ..support import crashing, processes
from ..support.crashing import Slow, create, error_of, revived, run, sub_pools, victim
from ..support.environment import environment
from ..support.waiting import BOUND, bounded, eventually_here, eventually_told

pytestmark = pytest.mark.integration


@pytest.fixture(params=["stock", "ours"])
def either(request: pytest.FixtureRequest) -> bool:
    """Without the package and with it: what has to be the same. Whether it is there."""
    ours: bool = request.param == "ours"
    if ours:
        request.getfixturevalue("package")
    return ours


@pytest.fixture(params=[False, True], ids=["asyncio", "uvloop"])
def on_uvloop(request: pytest.FixtureRequest) -> bool:
    found: bool = request.param
    return found


class Calls:
    """What a main pool has told its program."""

    def __init__(self, failures: int = 0) -> None:
        self.down: list[str] = []
        self.recovered: list[str] = []
        self.failures = failures

    def on_process_down(self, pool: Any, address: str) -> None:
        self.down.append(address)
        if self.failures:
            self.failures -= 1
            raise ValueError("a callback fails")

    def on_process_recover(self, pool: Any, address: str) -> None:
        self.recovered.append(address)

    @property
    def options(self) -> dict[str, Any]:
        return {
            "on_process_down": self.on_process_down,
            "on_process_recover": self.on_process_recover,
        }


@pytest.mark.parametrize("auto_recover", ["actor", "process"])
@pytest.mark.usefixtures("either")
def test_recovery(auto_recover: str, on_uvloop: bool) -> None:
    async def main() -> None:
        calls = Calls()
        options = {"auto_recover": auto_recover, "use_uvloop": on_uvloop, **calls.options}
        async with crashing.pool(1, **options) as pool:
            (address,) = sub_pools(pool)
            pid = await (await victim(address)).pid()
            waiter = asyncio.ensure_future(_recovered(pool, address, calls))
            await error_of((await victim(address)).die("exit 7"))
            await bounded(waiter)
            await eventually_here(lambda: calls.recovered)
            if auto_recover == "process":
                with pytest.raises(xo.ActorNotExist):
                    await victim(address)
                await create(address)
            assert await (await victim(address)).pid() != pid
            assert (calls.down, calls.recovered) == ([address], [address])

    run(main(), on_uvloop)


async def _recovered(pool: Any, address: str, calls: Calls) -> None:
    await eventually_here(lambda: calls.down)
    await xo.wait_actor_pool_recovered(address, pool.external_address)


@pytest.mark.usefixtures("package")
def test_those_who_wait_are_told_before_the_recovery_begins(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Starting a process blocks the loop that is to tell them."""
    monkeypatch.setattr(recovery, "TELL_FIRST", BOUND)

    async def main() -> None:
        async with crashing.pool(1) as pool:
            (address,) = sub_pools(pool)
            begun: list[str] = []

            async def recover(address: str) -> None:
                begun.append(address)

            pool.recover_sub_pool = recover
            assert type(await error_of((await victim(address)).die("kill"))) is PoolCrashed
            assert not begun

    run(main())


@pytest.mark.usefixtures("package")
def test_a_death_while_another_recovers() -> None:
    """It is noticed and told at once, and recovered when its turn comes."""

    async def main() -> None:
        calls = Calls()
        async with crashing.pool(2, **calls.options) as pool:
            first, second = sub_pools(pool)
            own, go_on, begun = pool.recover_sub_pool, asyncio.Event(), []

            async def recover(address: str) -> None:
                begun.append(address)
                await go_on.wait()
                await own(address)

            pool.recover_sub_pool = recover
            refs = [await victim(first), await victim(second)]
            await error_of(refs[0].die("exit 7"))
            await eventually_here(lambda: begun)
            error: Any = await error_of(refs[1].die("kill"))
            assert type(error) is PoolCrashed
            await eventually_here(lambda: calls.down == [first, second])
            assert begun == [first]
            go_on.set()
            for each in (first, second):
                await xo.wait_actor_pool_recovered(each, pool.external_address)
                await revived(each)
            assert begun == [first, second]
            await eventually_here(lambda: calls.recovered == [first, second])
            assert calls.down == [first, second]

    run(main())


def test_a_callback_that_fails(either: bool, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        calls = Calls(failures=2)
        async with crashing.pool(1, **calls.options) as pool:
            (address,) = sub_pools(pool)
            await error_of((await victim(address)).die("exit 7"))
            await revived(address)
            await eventually_here(lambda: calls.recovered == [address])
            assert calls.down == [address] * 3

    run(main())
    failed = [each for each in caplog.records if "Monitor sub pool" in each.getMessage()]
    assert len(failed) == 2


@pytest.mark.usefixtures("either")
def test_a_recovery_that_fails_twice() -> None:
    async def main() -> None:
        calls = Calls()
        async with crashing.pool(1, **calls.options) as pool:
            (address,) = sub_pools(pool)
            own, tried = pool.recover_sub_pool, []

            async def recover(address: str) -> None:
                tried.append(address)
                if len(tried) <= 2:
                    raise ValueError("not yet")
                await own(address)

            pool.recover_sub_pool = recover
            await error_of((await victim(address)).die("exit 7"))
            await revived(address)
            await eventually_here(lambda: calls.recovered == [address])
            assert len(tried) == 3

    run(main())


@pytest.mark.usefixtures("package")
def test_a_pool_that_starts_empty(on_uvloop: bool) -> None:
    """As Xinference's does."""

    async def main() -> None:
        calls = Calls()
        options = {"auto_recover": "process", "use_uvloop": on_uvloop, **calls.options}
        async with crashing.pool(0, **options) as pool:
            address = await pool.append_sub_pool()
            ref = await create(address)
            pid = await ref.pid()
            error: Any = await error_of(ref.die("segfault"))
            assert (type(error), error.pid, error.signal) == (PoolCrashed, pid, "SIGSEGV")
            await xo.wait_actor_pool_recovered(address, pool.external_address)
            assert await (await create(address)).pid() != pid
            await eventually_here(lambda: calls.recovered == [address])
            assert calls.down == [address]

    run(main(), on_uvloop)


handing_over = pytest.mark.skipif(
    not hasattr(MainActorPool, "handoff_to"), reason="xoscar 0.12 has the hand-over, not this one"
)


@handing_over
@pytest.mark.usefixtures("package")
def test_one_that_was_handed_over() -> None:
    """Its new main pool notices its end, and cannot know how it ended."""

    async def main(host: crashing.Host) -> None:
        async with crashing.pool(1) as pool:
            (address,) = sub_pools(pool)
            ref = await victim(address)
            pid = await ref.pid()
            assert await pool.handoff_to(host.main) == [address]
            await eventually_told(lambda: _answers(ref, pid))
            caller = await victim(host.main)
            assert await caller.relay(address, "pid") == pid
            error: Any = await error_of(caller.relay(address, "die", "exit 7"))
            assert type(error) is PoolCrashed
            assert (error.pid, error.exit_code, error.in_flight) == (pid, None, 1)
            assert f"pool {address} (pid {pid}) died, its exit status is unknown," in str(error)
            assert await (await revived(address)).pid() != pid

    with crashing.host(n_process=0, XOSCAR_IDLE_TIMEOUT="600") as host:
        run(main(host))


@handing_over
@pytest.mark.usefixtures("acting")
def test_a_hand_over_waits_for_the_recovery_that_is_under_way(tmp_path: Path) -> None:
    async def main(host: crashing.Host) -> None:
        async with crashing.pool(1) as pool:
            (address,) = sub_pools(pool)
            await xo.create_actor(Slow, str(tmp_path), uid="slow", address=address)
            ref = await victim(address)
            pid = await ref.pid()
            await error_of(ref.die("kill"))
            await eventually_here((tmp_path / "again").exists)
            handing = asyncio.ensure_future(pool.handoff_to(host.main))
            await asyncio.sleep(0)
            (tmp_path / "go on").touch()
            assert await bounded(handing) == [address]
            new = await (await revived(address)).pid()
            assert new != pid
            assert not xoscar_idle.pools()
            relaying = await victim(host.main)
            assert await relaying.relay(address, "pid") == new

    with crashing.host(n_process=0, XOSCAR_IDLE_TIMEOUT="600") as host:
        run(main(host))


@handing_over
def test_a_hand_over_is_refused_while_a_sub_pool_is_down(acting: Callable[..., None]) -> None:
    """It is recovered all the same, by the main pool that it had."""
    acting(restart_limit="0/60", restart_cooldown=1)

    async def main(host: crashing.Host) -> None:
        async with crashing.pool(2) as pool:
            first, second = sub_pools(pool)
            ref = await victim(first)
            pid = await ref.pid()
            await error_of(ref.die("kill"))
            await eventually_here(lambda: xoscar_idle.pools()[0].state == "degraded")
            refused = await error_of(pool.handoff_to(host.main))
            assert not isinstance(refused, asyncio.TimeoutError), refused
            assert await (await revived(first)).pid() != pid
            assert await (await victim(second)).pid()
            await eventually_here(lambda: {p.state for p in xoscar_idle.pools()} == {"healthy"})
            assert sorted(await bounded(pool.handoff_to(host.main))) == sorted((first, second))

    with crashing.host(n_process=0, XOSCAR_IDLE_TIMEOUT="600") as host:
        run(main(host))


async def _answers(ref: Any, pid: int) -> bool:
    return bool(await ref.pid() == pid)


def test_a_pool_from_before_install() -> None:
    """And after uninstall(), which leaves it to xoscar's own monitor."""

    async def main() -> None:
        calls = Calls()
        async with crashing.pool(1, **calls.options) as pool:
            (address,) = sub_pools(pool)
            ref = await victim(address)
            pid = await ref.pid()
            xoscar_idle.install(idle_timeout=600)
            await eventually_here(xoscar_idle.pools)
            error: Any = await error_of((await victim(address)).die("exit 7"))
            assert (type(error), error.pid, error.exit_code) == (PoolCrashed, pid, 7)
            again = await (await revived(address)).pid()
            await eventually_here(lambda: calls.recovered == [address])

            xoscar_idle.uninstall()
            assert not xoscar_idle.pools()
            error = await error_of((await victim(address)).die("exit 7"))
            assert type(error) is xo.ServerClosed
            assert await (await revived(address)).pid() != again
            await eventually_here(lambda: len(calls.recovered) == 2)
            assert calls.down == calls.recovered == [address] * 2

    try:
        run(main())
    finally:
        xoscar_idle.uninstall()


@pytest.mark.usefixtures("package")
def test_uninstall_with_a_pool_that_runs() -> None:
    async def main() -> None:
        calls = Calls()
        async with crashing.pool(1, **calls.options) as pool:
            (address,) = sub_pools(pool)
            await error_of((await victim(address)).die("exit 7"))
            await revived(address)
            xoscar_idle.uninstall()
            await error_of((await victim(address)).die("exit 7"))
            await revived(address)
            await eventually_here(lambda: len(calls.recovered) == 2)
            assert calls.down == [address] * 2

    run(main())


# Starts that fail

_BROKEN = {
    "exits": ("import os; os._exit(7)", "exited with code 7"),
    "raises": ("raise ValueError('broken')", "exited with code 1"),
    "crashes": ("import ctypes; ctypes.string_at(0)", "was killed by SIGSEGV"),
    "is killed": ("import os; os.kill(os.getpid(), 9)", "was killed by SIGKILL"),
}


@pytest.mark.parametrize("how", _BROKEN)
def test_a_start_that_fails(either: bool, how: str, tmp_path: Path) -> None:
    """The pool goes on, and the next start works."""
    code, told = _BROKEN[how]
    (tmp_path / "broken_module.py").write_text(code)
    path = os.pathsep.join((str(tmp_path), *sys.path))

    async def main() -> None:
        async with crashing.pool(0) as pool:
            error = await error_of(
                pool.append_sub_pool(modules=["broken_module"], env={"PYTHONPATH": path})
            )
            assert isinstance(error, OSError)
            assert "Start sub pool failed, returncode: " in str(error)
            assert (told in str(error)) is either, str(error)
            if either and how == "crashes":
                assert "Fatal Python error: Segmentation fault" in str(error)
            address = await pool.append_sub_pool()
            assert await (await create(address)).pid()

    run(main())


# Sub-pools that are no processes


@pytest.mark.usefixtures("either")
def test_pools_within_a_process() -> None:
    """As xoscar has for tests of actors: their handles are tasks, or nothing at all."""
    import xoscar.backends.test.pool  # noqa: F401

    async def main() -> None:
        async with await xo.create_actor_pool("test://127.0.0.1", n_process=1) as pool:
            address = pool._config.get_external_addresses()[1]
            assert await (await create(address)).pid() == os.getpid()
            assert not xoscar_idle.pools()

    run(main())


# What is not there

_WITHOUT = """
import asyncio, os, sys
from tests.support import crashing
{lack}
async def main():
    async with crashing.pool(2, auto_recover=False) as pool:
        for address in crashing.sub_pools(pool):
            error = await crashing.error_of((await crashing.victim(address)).die("exit 7"))
            print(type(error).__name__, error.exit_code, error.in_flight)

crashing.run(main())
"""

_LACKS = {
    "memory without a name": """
def refused(*_): raise OSError(38, "Function not implemented")
os.memfd_create = refused
""",
    "memory": """
from xoscar_idle.supervision.page import Page
def refused(*_): raise OSError(24, "Too many open files")
Page.create = refused
""",
    "pidfd": """
def refused(*_): raise OSError(24, "Too many open files")
os.pidfd_open = refused
""",
}


@pytest.mark.parametrize("lack", _LACKS)
def test_a_kernel_that_lacks(lack: str) -> None:
    """What it gives makes the text better; without it the exit status is told all the same."""
    done = processes.run(
        *(sys.executable, "-c", _WITHOUT.format(lack=_LACKS[lack])),
        env=environment(XOSCAR_IDLE_TIMEOUT="600"),
    )
    in_flight = 1 if lack == "pidfd" else None
    assert done.stdout.splitlines() == [f"PoolCrashed 7 {in_flight}"] * 2
    warnings = done.stderr.count("sub-pools cannot tell what they do")
    assert warnings == (lack != "pidfd"), done.stderr
