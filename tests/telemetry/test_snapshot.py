"""What a process tells of itself."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest
import xoscar as xo

from xoscar_idle.telemetry import snapshot, targets
from xoscar_idle.telemetry.snapshot import ACTIVE, BLOCKED, Snapshot

from ..support.processes import started
from ..support.waiting import eventually

pytestmark = pytest.mark.integration

BLOCKING = """
import asyncio, pathlib, sys, time
import xoscar as xo

async def main():
    pool = await xo.create_actor_pool("127.0.0.1", n_process=0)
    async with pool:
        await xo.create_actor(xo.StatelessActor, uid="actor", address=pool.external_address)
        print(pool.external_address, flush=True)
        ref = await xo.actor_ref("actor", address=pool.external_address)
        loop, goes_on = asyncio.get_running_loop(), pathlib.Path(sys.argv[1])
        while True:
            while not goes_on.exists():
                time.sleep(0.01)
            await asyncio.sleep(0.01)

asyncio.run(main())
"""


def test_a_process_that_is_asked_by_its_number_says_that_it_is_blocked(tmp_path: Path) -> None:
    """Its side thread answers for it; and once it goes on, all is well."""

    def seen() -> Snapshot:
        (one,) = asyncio.run(targets.look([process.pid]))
        return one

    async def call() -> None:
        with pytest.raises(xo.ActorNotExist):
            await xo.actor_ref("nobody", address=address)

    environment = {**os.environ, "XOSCAR_IDLE_TIMEOUT": "60", "XOSCAR_IDLE_MONITOR": "1"}
    goes_on = tmp_path / "goes on"
    goes_on.touch()
    command = (sys.executable, "-c", BLOCKING, goes_on)
    with started(*command, env=environment) as process:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        asyncio.run(call())
        assert (seen().status, seen().note) == (ACTIVE, "")
        goes_on.unlink()
        eventually(lambda: seen().status == BLOCKED)
        blocked = seen()
        assert blocked.note == "its event loop is blocked; it told this over the local socket"
        assert blocked.statistics is not None
        assert targets.exit_status([blocked]) == 3
        goes_on.touch()
        eventually(lambda: seen().status == ACTIVE)
        process.send_signal(signal.SIGTERM)


def test_on_a_loop_nothing_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def wait(_: float) -> None:
        raise AssertionError("a loop is waited for")

    monkeypatch.setattr("xoscar_idle.connection.loops.blocked", wait)
    assert snapshot.take().pid == os.getpid()
