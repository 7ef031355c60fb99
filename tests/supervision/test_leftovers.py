"""Crashes and recoveries leave nothing behind, however many there are."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from xoscar.backends.indigen import shared_memory
from xoscar.constants import XOSCAR_UNIX_SOCKET_DIR

import xoscar_idle

from ..support import crashing, leaks
from ..support.crashing import error_of, revived, run, sub_pools, victim
from ..support.waiting import eventually_here

pytestmark = pytest.mark.integration

ROUNDS = 3
IDLE = 0.3
"""Seconds: at rest no connection is open, whichever the pools have needed so far."""


@pytest.fixture
def shared(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The names of what xoscar hands its parameters to sub-pools in; others have their own."""
    names: set[str] = set()
    make = shared_memory.SharedMemory.__init__

    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        make(self, *args, **kwargs)
        names.add(self.name)

    monkeypatch.setattr(shared_memory.SharedMemory, "__init__", init)
    return names


@pytest.mark.usefixtures("active")
@pytest.mark.parametrize("on_uvloop", [False, True], ids=["asyncio", "uvloop"])
def test_rounds_of_crashes(
    on_uvloop: bool, shared: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = tmp_path / "records"
    for name, value in {
        "XOSCAR_IDLE_TIMEOUT": f"{IDLE}",
        "XOSCAR_SUPERVISE": "observe",
        "XOSCAR_SUPERVISE_DIR": f"{records}",
        "XOSCAR_CAPTURE_STDERR": "1",
    }.items():
        monkeypatch.setenv(name, value)
    xoscar_idle.install(idle_timeout=IDLE, supervise="observe", capture_stderr=True)

    def there() -> dict[str, int]:
        found = {what: each.total() for what, each in leaks.state().items()}
        crashes = set(records.glob("crash-*.json"))
        found["other files"] = len(set(records.rglob("*")) - crashes)
        found["sockets"] = len(os.listdir(XOSCAR_UNIX_SOCKET_DIR))
        found["shared memory"] = len(shared & set(os.listdir("/dev/shm")))
        return found

    async def crash(pool: Any) -> None:
        """All of its sub-pools at once, with a call in process in each."""
        addresses = sub_pools(pool)
        pids = [pool.sub_processes[each].pid for each in addresses]
        refs = [await victim(each) for each in addresses]
        calls = [asyncio.ensure_future(each.hold()) for each in refs]
        for ref in refs:
            while not await ref.held():
                pass
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        for call in calls:
            assert type(await error_of(call)) is xoscar_idle.PoolCrashed
        for each in addresses:
            await revived(each)

    async def main() -> None:
        async with crashing.pool(2) as pool:
            await crash(pool)
            await eventually_here(lambda: not xoscar_idle.statistics().open)
            states = [there()]
            for _ in range(ROUNDS - 1):
                await crash(pool)
            assert len(list(records.glob("crash-*.json"))) == 2 * ROUNDS

            def as_after_the_first() -> bool:
                states[1:] = [there()]
                return all(states[1][what] <= n for what, n in states[0].items())

            try:
                await eventually_here(as_after_the_first)
            except AssertionError:
                pytest.fail(f"after a round: {states[0]}; after {ROUNDS}: {states[1]}")

    run(main(), on_uvloop)
    assert not shared & set(os.listdir("/dev/shm"))
