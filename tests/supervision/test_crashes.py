"""What the callers of a pool are told when it has died, wherever they are."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import errno
import os
import pickle
import signal
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import xoscar as xo
from xoscar.errors import ServerClosed

import xoscar_idle
from xoscar_idle import PoolCrashed, PoolUnavailable
from xoscar_idle.supervision.record import CrashRecord

from ..support import crashing, processes
from ..support.cgroups import memory_cgroup
from ..support.crashing import WAYS, Host, error_of, knows_main_of, run, sub_pools, tells, victim
from ..support.environment import environment
from ..support.waiting import eventually_here, eventually_told

pytestmark = pytest.mark.integration

STOCK = "0 bytes read on a total of 11 expected bytes"


@pytest.fixture(scope="module", params=["asyncio", "uvloop"])
def host(request: pytest.FixtureRequest) -> Iterator[Host]:
    with crashing.host(request.param == "uvloop", XOSCAR_IDLE_TIMEOUT="600") as hosted:
        yield hosted


@pytest.fixture(scope="module", params=["asyncio", "uvloop"])
def stock_host(request: pytest.FixtureRequest) -> Iterator[Host]:
    with crashing.host(request.param == "uvloop") as hosted:
        yield hosted


@pytest.fixture(params=[False, True], ids=["on asyncio", "on uvloop"])
def on_uvloop(request: pytest.FixtureRequest) -> bool:
    """The loop of the caller."""
    found: bool = request.param
    return found


async def crash(host: Host, way: str, stock: bool = False) -> tuple[int, list[BaseException]]:
    """Let the first sub-pool die with calls from everywhere in process.

    The pid it had, and what they raise: this process, its main pool, its sibling, this one through
    its main pool and through its sibling.
    """
    pid = await (await crashing.revived(host.first)).pid()
    here, main, sibling = [await victim(a) for a in (host.first, host.main, host.second)]
    if not stock:
        await eventually_here(lambda: knows_main_of(host.first))
    calls = [
        asyncio.ensure_future(each)
        for each in (
            here.hold(),
            main.relay(host.first, "hold"),
            sibling.relay(host.first, "hold"),
        )
    ]
    await eventually_told(lambda: _holds(here, len(calls)))
    calls.append(asyncio.ensure_future(here.die(way)))
    return pid, [await error_of(call) for call in calls]


async def _holds(ref: Any, number: int) -> bool:
    held: int = await ref.held()
    return held == number


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.usefixtures("package")
def test_all_callers_read_the_same(host: Host, way: str, on_uvloop: bool) -> None:
    """Over TCP from here, over unix sockets from the main pool and from a sibling."""
    pid, errors = run(crash(host, way), on_uvloop)
    for error in errors:
        assert isinstance(error, PoolCrashed)
        assert tells(str(error), host.first, pid, way, 4), str(error)
        assert (error.address, error.pid) == (host.first, pid)
        assert (error.exit_code, error.in_flight) == (crashing.exit_code(way), 4)
        assert (error.oom, error.record) == (None, None)
        assert error.uptime
        assert error.when
    assert len({str(error) for error in errors}) == 1


@pytest.mark.parametrize("way", WAYS)
def test_what_stock_says(stock_host: Host, way: str) -> None:
    _, errors = run(crash(stock_host, way, stock=True))
    for error in errors:
        assert isinstance(error, ServerClosed)
        assert STOCK in str(error)


@pytest.mark.usefixtures("package")
def test_a_main_pool_without_the_package(stock_host: Host) -> None:
    _, errors = run(crash(stock_host, "kill", stock=True))
    for error in errors:
        assert isinstance(error, ServerClosed)
        assert STOCK in str(error)


@pytest.mark.usefixtures("package")
def test_out_of_memory() -> None:
    async def main(host: Host) -> None:
        pid = await (await victim(host.first)).pid()
        error = await error_of((await victim(host.main)).relay(host.first, "grow"))
        assert isinstance(error, PoolCrashed)
        assert (error.pid, error.signal) == (pid, "SIGKILL")
        assert error.oom
        assert f"out of memory ({error.oom})" in str(error)
        assert "oom_kill 0 → 1" in error.oom

    with (
        memory_cgroup(800 << 20) as cgroup,
        crashing.host(cgroup=cgroup, XOSCAR_IDLE_TIMEOUT="600") as host,
    ):
        run(main(host))


# How errors travel


PLAIN = """
import asyncio, sys
sys.modules["xoscar_idle"] = None  # it is not installed here
import xoscar as xo

async def main(relay, address, *call):
    relay = await xo.actor_ref(address=relay, uid=relay)
    try:
        await relay.relay(address, *call)
    except Exception as error:
        print(error.__class__.__mro__[-5:], str(error))

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.mark.usefixtures("package")
def test_a_caller_without_the_package(host: Host, tmp_path: Path) -> None:
    """It calls somebody who has it, and who calls what dies."""

    async def ready() -> int:
        pid: int = await (await crashing.revived(host.first)).pid()
        return pid

    pid = run(ready())
    done = processes.run(
        *(sys.executable, "-c", PLAIN, host.second, host.first, "die", "exit 7"),
        env=environment(),
        cwd=tmp_path,
    )
    assert "xoscar.errors.ServerClosed" in done.stdout
    assert "PoolCrashed" not in done.stdout
    assert f"pool {host.first} (pid {pid}) exited with code 7" in done.stdout


@pytest.mark.usefixtures("package")
def test_every_waiter_has_an_error_of_its_own() -> None:
    async def main() -> None:
        async with crashing.pool(auto_recover=False) as pool:
            (address,) = sub_pools(pool)
            ref = await victim(address)
            calls = [asyncio.ensure_future(ref.hold()) for _ in range(50)]
            await eventually_told(lambda: _holds(ref, 50))
            calls.append(asyncio.ensure_future(ref.die("segfault")))
            errors = [await error_of(call) for call in calls]
            assert len({id(error) for error in errors}) == 51
            assert len({str(error) for error in errors}) == 1
            error: Any = errors[0]
            assert error.in_flight == 51
            assert "Segmentation fault" in error.stacks
            for again in (
                pickle.loads(pickle.dumps(error)),
                copy.copy(error),
                copy.deepcopy(error),
            ):
                assert type(again) is PoolCrashed
                assert again is not error
                assert (str(again), vars(again)) == (str(error), vars(error))

    run(main())


@pytest.mark.skipif(sys.version_info < (3, 11), reason="there are no task groups")
@pytest.mark.usefixtures("package")
def test_in_a_task_group() -> None:
    async def main() -> None:
        async with crashing.pool(auto_recover=False) as pool:
            (address,) = sub_pools(pool)
            ref = await victim(address)

            async def calls() -> None:
                async with asyncio.TaskGroup() as group:  # type: ignore[attr-defined,unused-ignore]
                    group.create_task(ref.hold())
                    await eventually_told(lambda: _holds(ref, 1))
                    group.create_task(ref.die("kill"))

            raised: Any = await error_of(calls())
            matched, rest = raised.split(PoolCrashed)
            assert not rest
            again = pickle.loads(pickle.dumps(raised))
            assert again.exceptions[0].pid == matched.exceptions[0].pid != 0

    run(main())


# Calls that come while it is down


@pytest.mark.usefixtures("package")
def test_calls_while_it_recovers(on_uvloop: bool) -> None:
    """They are refused as xoscar's are, and say why, here and in a sibling."""

    async def main() -> None:
        async with crashing.pool(2, use_uvloop=on_uvloop) as pool:
            first, second = sub_pools(pool)
            own, go_on = pool.recover_sub_pool, asyncio.Event()

            async def recover(address: str) -> None:
                await go_on.wait()
                await own(address)

            pool.recover_sub_pool = recover
            ref, sibling = await victim(first), await victim(second)
            crash = await error_of(ref.die("exit 7"))
            for call in (ref.pid(), victim(first), sibling.relay(first, "pid")):
                error: Any = await error_of(call)
                assert type(error) is PoolUnavailable, repr(error)
                assert isinstance(error, ConnectionRefusedError)
                assert (error.address, error.state) == (first, "recovering")
                assert error.errno == errno.ECONNREFUSED
                assert error.last_failure == str(crash)
                assert f"pool {first} is down: recovering; {crash}" in str(error)
                again = pickle.loads(pickle.dumps(error))
                assert (str(again), vars(again)) == (str(error), vars(error))
            go_on.set()
            await xo.wait_actor_pool_recovered(first, pool.external_address)
            assert await (await crashing.revived(first)).pid()

    run(main(), on_uvloop)


@pytest.mark.usefixtures("package")
def test_calls_to_one_that_is_not_recovered() -> None:
    async def main() -> None:
        async with crashing.pool(2, auto_recover=False) as pool:
            first, second = sub_pools(pool)
            ref, sibling = await victim(first), await victim(second)
            crash: Any = await error_of(ref.die("kill"))
            assert crash.state == "dead"
            for call in (ref.pid(), sibling.relay(first, "pid")):
                error: Any = await error_of(call)
                assert type(error) is PoolUnavailable, repr(error)
                assert error.state == "dead"
                assert "was killed by SIGKILL" in str(error)

    run(main())


@pytest.mark.usefixtures("package")
def test_calls_to_one_that_was_replaced_elsewhere() -> None:
    """As Xinference does it."""

    async def main() -> None:
        async with crashing.pool(2, auto_recover="process") as pool:
            first, second = sub_pools(pool)
            found: list[str] = []

            async def recover(address: str) -> None:
                await pool.remove_sub_pool(address)
                found.append(await pool.append_sub_pool())

            pool.recover_sub_pool = recover
            ref, sibling = await victim(first), await victim(second)
            assert await sibling.relay(first, "pid") == await ref.pid()
            await error_of(ref.die("exit 7"))
            await eventually_here(lambda: _state(first) is None and found)
            await eventually_here(lambda: _state(found[0]) == "healthy")
            (info,) = [each for each in xoscar_idle.pools() if each.address == found[0]]
            assert (info.incarnation, info.restarts) == (2, 1)
            assert info.last_failure
            assert "exited with code 7" in info.last_failure
            for call in (ref.pid(), sibling.relay(first, "pid")):
                error: Any = await error_of(call)
                assert type(error) is PoolUnavailable, repr(error)
                assert f"it was replaced by pool {found[0]}, which is healthy" in str(error)

    run(main())


def _state(address: str) -> str | None:
    return next((each.state for each in xoscar_idle.pools() if each.address == address), None)


# Ends that were asked for


@pytest.mark.usefixtures("package")
def test_one_that_is_removed() -> None:
    async def main() -> None:
        async with crashing.pool(2) as pool:
            first, second = sub_pools(pool)
            ref, sibling = await victim(first), await victim(second)
            calls = [
                asyncio.ensure_future(each) for each in (ref.hold(), sibling.relay(first, "hold"))
            ]
            await eventually_told(lambda: _holds(ref, 2))
            await pool.remove_sub_pool(first)
            for call in calls:
                error = await error_of(call)
                assert not isinstance(error, PoolCrashed)
                assert isinstance(error, ServerClosed)
                assert "it was removed from its main pool" in str(error), str(error)
            error = await error_of(ref.pid())
            assert isinstance(error, PoolUnavailable)
            assert "it was removed from its main pool" in str(error), str(error)
            assert _crashes() == before

    before = _crashes()
    run(main())


@pytest.mark.usefixtures("package")
def test_a_main_pool_that_stops() -> None:
    async def main() -> None:
        async with crashing.pool(2) as pool:
            refs = [await victim(each) for each in sub_pools(pool)]
            calls = [asyncio.ensure_future(ref.hold()) for ref in refs]
            for ref in refs:
                await eventually_told(partial(_holds, ref, 1))
            await pool.stop()
            for call in calls:
                error = await error_of(call)
                assert not isinstance(error, PoolCrashed), str(error)
        assert _crashes() == before

    before = _crashes()
    run(main())


def _crashes() -> dict[str, int]:
    from xoscar_idle.supervision import pools

    return dict(pools.crashes())


# Where nobody can tell


@pytest.mark.usefixtures("package")
def test_a_main_pool_that_has_gone() -> None:
    async def main(host: Host) -> None:
        ref = await victim(host.first)
        pid = await ref.pid()
        call = asyncio.ensure_future(ref.hold())
        await eventually_told(lambda: _holds(ref, 1))
        await eventually_here(lambda: knows_main_of(host.first))
        os.kill(host.pid, signal.SIGKILL)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        error = await error_of(call)
        assert type(error) is ServerClosed
        assert STOCK in str(error)

    with crashing.host(XOSCAR_IDLE_TIMEOUT="600") as host:
        run(main(host))


@pytest.mark.usefixtures("package")
def test_a_main_pool_that_is_blocked() -> None:
    """The error waits for it a second and no more, and not past the deadline of the call."""

    async def main(host: Host) -> None:
        first, second = await victim(host.first), await victim(host.second)
        main_pool = await victim(host.main)
        await eventually_here(lambda: knows_main_of(host.first) and knows_main_of(host.second))
        blocked = asyncio.ensure_future(main_pool.block(8))
        late = asyncio.ensure_future(first.die("kill"))
        with xoscar_idle.deadline(0.3):
            error = await error_of(second.die("kill"))
        assert isinstance(error, xoscar_idle.CallTimeout)
        error = await error_of(late)
        assert not isinstance(error, PoolCrashed)
        assert isinstance(error, ServerClosed)
        assert STOCK in str(error)
        assert not blocked.done()
        os.kill(host.pid, signal.SIGKILL)
        await error_of(blocked)

    with crashing.host(XOSCAR_IDLE_TIMEOUT="600") as host:
        run(main(host))


# Forks


@pytest.mark.usefixtures("package")
def test_a_forked_child_that_crashes(host: Host) -> None:
    """It is not its parent, be that a sub-pool or a main pool."""

    async def main() -> None:
        first, main_pool = await crashing.revived(host.first), await victim(host.main)
        assert await first.fork_and_crash() == -signal.SIGSEGV
        assert await main_pool.fork_and_crash() == -signal.SIGSEGV
        error: Any = await error_of(main_pool.relay(host.first, "die", "kill"))
        assert type(error) is PoolCrashed
        assert (error.signal, error.stacks, error.in_flight) == ("SIGKILL", "", 1)

    run(main())


# Records


def test_records(tmp_path: Path, package: None) -> None:
    def read(path: str) -> CrashRecord:
        assert Path(path).is_relative_to(tmp_path)
        return CrashRecord.from_json(Path(path).read_text())

    xoscar_idle.configure(supervise="observe", supervise_dir=str(tmp_path))

    async def main() -> None:
        async with crashing.pool(auto_recover=False, labels=["main", "sub"]) as pool:
            (address,) = sub_pools(pool)
            error: Any = await error_of((await victim(address)).die("abort"))
            assert error.record
            kept = read(error.record)
            assert (kept.label, kept.main_pid) == ("sub", os.getpid())
            for name in ("address", "pid", "when", "exit_code", "signal", "uptime", "in_flight"):
                assert getattr(error, name) == getattr(kept, name)
            assert error.stacks == kept.stacks != ""

    run(main())


def test_a_directory_for_records_that_is_none(
    tmp_path: Path, package: None, caplog: pytest.LogCaptureFixture
) -> None:
    """The pool works without, and one warning tells of it."""
    (tmp_path / "file").touch()
    xoscar_idle.configure(supervise="observe", supervise_dir=str(tmp_path / "file"))

    async def main() -> None:
        async with crashing.pool(2, auto_recover=False) as pool:
            for address in sub_pools(pool):
                error: Any = await error_of((await victim(address)).die("exit 7"))
                assert (type(error), error.exit_code, error.record) == (PoolCrashed, 7, None)

    run(main())
    warnings = [each.getMessage() for each in caplog.records if each.name == "xoscar_idle"]
    assert sum("exited with code 7" in each for each in warnings) == 2
    assert sum("no crash record" in each for each in warnings) == 1, warnings
