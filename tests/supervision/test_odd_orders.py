"""Orders of events that are rare, and that no sub-pool is to be lost by."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import xoscar as xo

import xoscar_idle
from xoscar_idle import PoolCrashed
from xoscar_idle.supervision import answers, supervisor
from xoscar_idle.supervision.recovery import RETRY
from xoscar_idle.supervision.subpool import Subpool
from xoscar_idle.supervision.supervisor import Supervisor

from ..support import crashing
from ..support.crashing import Victim, create, error_of, revived, run, sub_pools, victim
from ..support.endpoints import refusing
from ..support.waiting import bounded, eventually, eventually_here

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("package")]


class Slow(Victim):
    """Made as soon as there is that file; there is one that says when it is waited for."""

    def __init__(self, gate: str) -> None:
        super().__init__()
        self._gate = gate
        Path(f"{gate}.begun").touch()

    async def __post_create__(self) -> None:
        while not os.path.exists(self._gate):  # noqa: ASYNC110, ASYNC240
            await asyncio.sleep(0.01)


def _left(kind: type) -> list[Any]:
    gc.collect()
    return [each for each in gc.get_objects() if type(each) is kind]


@pytest.mark.parametrize("on_uvloop", [False, True], ids=["asyncio", "uvloop"])
def test_nothing_is_left_of_a_main_pool_that_has_gone(on_uvloop: bool) -> None:
    async def main() -> None:
        async with crashing.pool(1) as pool:
            assert len(sub_pools(pool)) == 1

    run(main(), on_uvloop)
    eventually(lambda: not _left(Subpool) and not _left(Supervisor))


def test_who_asks_for_another_end_does_not_block_the_loop() -> None:
    """A process has ended, but none to which a connection was as young as that."""

    async def main() -> None:
        async with crashing.pool(1, auto_recover=False) as pool:
            (address,) = sub_pools(pool)
            await error_of((await victim(address)).die("kill"))
            found = supervisor.of(address)
            assert found is not None
            found._ends.clear()
            asked = asyncio.ensure_future(found.explain(address, 0.0, answers.PATIENCE))
            await asyncio.sleep(0)
            assert asked.done(), "it is told, and there is nothing to wait for"
            assert await asked is None

    run(main())


def test_a_recovery_has_ended_when_the_actors_are_there(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    gate.touch()

    async def main() -> None:
        async with crashing.pool(1) as pool:
            (address,) = sub_pools(pool)
            slow = await xo.create_actor(Slow, f"{gate}", uid="slow", address=address)
            for path in (gate, Path(f"{gate}.begun")):
                path.unlink()
            pid = pool.sub_processes[address].pid
            os.kill(pid, signal.SIGKILL)
            await eventually_here(Path(f"{gate}.begun").exists)  # the process is there again
            assert [each.state for each in xoscar_idle.pools()] == ["starting"]
            waits = asyncio.ensure_future(
                xo.wait_actor_pool_recovered(address, pool.external_address)
            )
            done, _ = await asyncio.wait([waits], timeout=2 * RETRY)
            assert not done, "one of its actors is still to come"
            gate.touch()
            await bounded(waits)
            assert await slow.pid() != pid
            assert [each.state for each in xoscar_idle.pools()] == ["healthy"]

    run(main())


def test_one_that_the_program_has_recovered_itself_is_left_alone() -> None:
    async def main() -> None:
        down: list[str] = []
        options = {"on_process_down": lambda _, address: down.append(address)}
        async with crashing.pool(2, auto_recover="process", **options) as pool:
            first, second = sub_pools(pool)
            recover, go_on = pool.recover_sub_pool, asyncio.Event()

            async def wait(address: str) -> None:
                if address == first:
                    await go_on.wait()
                await recover(address)

            pool.recover_sub_pool = wait
            for address in (first, second):
                await error_of((await victim(address)).die("kill"))
            await eventually_here(lambda: len(down) == 2)
            await recover(second)
            process = pool.sub_processes[second]
            go_on.set()
            await xo.wait_actor_pool_recovered(first, pool.external_address)
            await (await create(first)).pid()
            found = supervisor.of(second)
            assert found is not None
            await eventually_here(lambda: not found.recovery._due)
            assert pool.sub_processes[second] is process
            assert down == [first, second]

    run(main())


def test_an_installation_after_an_uninstallation() -> None:
    async def main() -> None:
        async with crashing.pool(1) as pool:
            (address,) = sub_pools(pool)
            xoscar_idle.uninstall()
            await asyncio.sleep(0)
            xoscar_idle.install(idle_timeout=600)
            await eventually_here(lambda: [each.address for each in xoscar_idle.pools()])
            ref = await victim(address)
            assert type(await error_of(ref.die("exit 7"))) is PoolCrashed
            await revived(address)

    run(main())


def test_logging_of_the_program_that_fails_costs_no_recovery() -> None:
    class Fails(logging.Filter):
        def filter(self, record: logging.LogRecord) -> bool:
            raise ValueError("a filter fails")

    async def main() -> None:
        async with crashing.pool(1) as pool:
            (address,) = sub_pools(pool)
            pid = await (await victim(address)).pid()
            await error_of((await victim(address)).die("kill"))
            assert await (await revived(address)).pid() != pid

    failing = Fails()
    logging.getLogger("xoscar_idle").addFilter(failing)
    try:
        run(main())
    finally:
        logging.getLogger("xoscar_idle").removeFilter(failing)


def test_another_main_pool_at_the_same_addresses() -> None:
    """What ended the one is not told of the other."""
    with refusing() as one, refusing() as other:
        addresses = one, int(other.rpartition(":")[2])

    async def pool() -> Any:
        main, port = addresses
        made = await xo.create_actor_pool(main, n_process=1, ports=[port], auto_recover=False)
        await create(sub_pools(made)[0])
        return made

    async def main() -> None:
        before = await pool()
        await before.stop()
        after = await pool()
        (address,) = sub_pools(after)
        pid = after.sub_processes[address].pid
        error: Any = await error_of((await victim(address)).die("kill"))
        assert type(error) is PoolCrashed, error
        assert error.pid == pid
        down = await error_of(victim(address))
        assert "was killed by SIGKILL" in str(down)
        await after.stop()

    run(main())


def test_what_a_recovery_has_started_goes_on_after_it() -> None:
    """What that appends later replaces nothing."""

    async def main() -> None:
        async with crashing.pool(1, auto_recover="process") as pool:
            (address,) = sub_pools(pool)
            recover, later = pool.recover_sub_pool, asyncio.Event()
            tasks: list[asyncio.Task[str]] = []

            async def append() -> str:
                await later.wait()
                appended: str = await pool.append_sub_pool()
                return appended

            async def recover_and_go_on(address: str) -> None:
                tasks.append(asyncio.ensure_future(append()))
                await recover(address)

            pool.recover_sub_pool = recover_and_go_on
            await error_of((await victim(address)).die("kill"))
            await xo.wait_actor_pool_recovered(address, pool.external_address)
            await pool.remove_sub_pool(address)
            later.set()
            appended = await bounded(tasks[0])
            (info,) = (each for each in xoscar_idle.pools() if each.address == appended)
            assert (info.incarnation, info.restarts, info.last_failure) == (1, 0, None)

    run(main())
