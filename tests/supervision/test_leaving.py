"""``XOSCAR_EXIT_ON_DEGRADED``: real programs that end, and those that do not."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from xoscar_idle.supervision import leaving
from xoscar_idle.supervision.sentinels import sentinels

from ..support.environment import environment
from ..support.processes import end, line, lives, run, started, tell
from ..support.waiting import BOUND, eventually

pytestmark = pytest.mark.integration

# A main pool with two sub-pools, of which the first is killed when there is something to read, and
# then at each start. What it does when it is to end is given as code.
PROGRAM = """
import asyncio, os, sys, threading, time
import xoscar as xo
from xoscar_idle.supervision import leaving, sentinels, supervisor
from tests.support import crashing
from tests.support.endpoints import ELSEWHERE
from tests.supervision.test_acting import Dying

bad, code = sys.argv[1:]
own = leaving.leave

async def main():
    pool = await xo.create_actor_pool(ELSEWHERE, n_process=2)
    first, second = crashing.sub_pools(pool)
    for each in (first, second):
        await crashing.create(each)
    await xo.create_actor(Dying, bad, uid="dying", address=first)
    exec(code, {**globals(), "pool": pool})
    print(first, *(each.pid for each in pool.sub_processes.values()), flush=True)
    read = asyncio.get_running_loop().run_in_executor
    await read(None, sys.stdin.readline)
    open(bad, "w").close()
    pool.sub_processes[first].kill()
    while True:
        states = {each.address: each.state for each in supervisor.of(first).pools()}
        if states[first] == "degraded":
            break
        await asyncio.sleep(0.02)
    print("degraded", flush=True)
    await read(None, sys.stdin.readline)
    print(await (await crashing.victim(second)).pid(), flush=True)
    await pool.stop()

asyncio.run(main())
"""


class Program:
    """It, and what it has told."""

    def __init__(self, process: subprocess.Popen[str], place: Path) -> None:
        self.process = process
        self._place = place
        self.address, *pids = line(process).split()
        self.sub_pools = [int(each) for each in pids]

    def sentinel(self) -> dict[str, Any]:
        """What the file says that it leaves."""
        (path,) = self._place.glob("unhealthy-*")
        assert path.name.startswith(f"unhealthy-{self.process.pid}-")
        told: dict[str, Any] = json.loads(path.read_text())
        return told


@contextlib.contextmanager
def program(tmp_path: Path, code: str = "", **settings: str) -> Iterator[Program]:
    """One whose first sub-pool is about to be degraded."""
    place = tmp_path / "own"
    given = {
        "XOSCAR_IDLE_TIMEOUT": "600",
        "XOSCAR_SUPERVISE": "act",
        "XOSCAR_SUPERVISE_DIR": f"{place}",
        "XOSCAR_RESTART_LIMIT": "1/60",
        "XOSCAR_RESTART_COOLDOWN": "3600",
        "XOSCAR_EXIT_ON_DEGRADED": "1",
        **settings,
    }
    with started(
        *(sys.executable, "-c", PROGRAM, f"{tmp_path / 'bad'}", code),
        env=environment(**given),
        stderr=subprocess.PIPE,
    ) as process:
        made = Program(process, place)
        try:
            yield made
        finally:
            end(process)
            for pid in made.sub_pools:
                eventually(lambda pid=pid: not lives(pid))  # type: ignore[misc]


def ended(found: Program) -> str:
    """Its stderr, when it has ended with the exit status that is documented."""
    tell(found.process, "go on")
    _, errors = found.process.communicate(timeout=BOUND)
    assert found.process.returncode == leaving.STATUS == 76, errors
    return errors


def says(errors: str, found: Program) -> bool:
    ends = "this process ends with exit status 76, as XOSCAR_EXIT_ON_DEGRADED asks for\n"
    which = f"pool {found.address} is degraded: it has failed "
    return re.search(f"{re.escape(which)}.*: {re.escape(ends)}", errors) is not None


def test_it_ends_when_a_sub_pool_is_degraded(tmp_path: Path) -> None:
    """With its other sub-pools, and with a sentinel that says why."""
    with program(tmp_path) as found:
        errors = ended(found)
        assert says(errors, found), errors
        assert errors.count("exit status 76") == 1
        eventually(lambda: not any(lives(pid) for pid in found.sub_pools))
        told = found.sentinel()
        assert (told["state"], told["address"]) == ("degraded", found.address)
        assert (told["owner"]["pid"], told["incarnation"]) == (found.process.pid, 2)
        assert "it has failed 2 times within 60 s" in told["reason"]
        assert "was killed by SIGKILL" in told["last_failure"]


BLOCKED = """
leaving.PATIENCE = 0.5
leaving.leave = lambda *what: (own(*what), time.sleep(600))
"""

HANGS = """
leaving.PATIENCE = 0.5
pool.stop = asyncio.Event().wait
"""

FAILS = """
leaving.PATIENCE = 600
def stop():
    raise ValueError("it cannot be stopped")
pool.stop = stop
"""

FAILS_LATER = """
leaving.PATIENCE = 600
async def stop():
    raise ValueError("it cannot be stopped")
pool.stop = stop
"""

CLOSED = """
leaving.PATIENCE = 0.5
class Closed:
    def call_soon_threadsafe(self, *what):
        raise RuntimeError("Event loop is closed")
leaving.leave = lambda pools, *more: own([(pool, Closed()) for pool, _ in pools], *more)
"""

ENDINGS = {
    "its loop is blocked": BLOCKED,
    "its main pool does not stop": HANGS,
    "its main pool cannot be stopped": FAILS,
    "its main pool fails to stop": FAILS_LATER,
    "its loop is closed": CLOSED,
}


@pytest.mark.parametrize("code", ENDINGS.values(), ids=ENDINGS)
def test_it_ends_whatever_happens(tmp_path: Path, code: str) -> None:
    with program(tmp_path, code, XOSCAR_RESTART_LIMIT="0/60") as found:
        errors = ended(found)
        assert says(errors, found), errors
        eventually(lambda: not any(lives(pid) for pid in found.sub_pools))


def test_the_sentinel_says_so_although_the_side_thread_is_busy(tmp_path: Path) -> None:
    """It answers somebody, say; it is the one that writes them."""
    code = """
leaving.PATIENCE = 5
from xoscar_idle import side_thread
entered = threading.Event()
def busy():
    entered.set()
    threading.Event().wait(600)
side_thread.every(3600, busy)
while not entered.is_set():
    time.sleep(0.01)
"""
    with program(tmp_path, code) as found:
        ended(found)
        assert found.sentinel()["state"] == "degraded"


def test_it_ends_although_nobody_reads_what_it_writes(tmp_path: Path) -> None:
    """A pipe that is full would let it wait for ever."""
    code = """
leaving.PATIENCE = 0.5
def leave(*what):
    os.set_blocking(2, False)
    try:
        while os.write(2, b"x" * 512):
            pass
    except BlockingIOError:
        os.set_blocking(2, True)
    own(*what)
leaving.leave = leave
"""
    with program(tmp_path, code, XOSCAR_RESTART_LIMIT="0/60") as found:
        tell(found.process, "go on")
        assert found.process.wait(BOUND) == leaving.STATUS


@pytest.mark.parametrize(
    "settings",
    [
        {"XOSCAR_EXIT_ON_DEGRADED": ""},
        {"XOSCAR_EXIT_ON_DEGRADED": "off"},
        {"XOSCAR_EXIT_ON_DEGRADED": "2"},
    ],
)
def test_without_the_variable_it_lives_on(tmp_path: Path, settings: dict[str, str]) -> None:
    with program(tmp_path, XOSCAR_RESTART_LIMIT="0/60", **settings) as found:
        tell(found.process, "go on")
        assert line(found.process) == "degraded"
        eventually(lambda: [*(tmp_path / "own").glob("unhealthy-*")])
        eventually(lambda: found.sentinel()["state"] == "degraded")
        tell(found.process, "are you there")
        assert int(line(found.process)) == found.sub_pools[1]
        _, errors = found.process.communicate(timeout=BOUND)
        assert found.process.returncode == 0
        assert "exit status" not in errors


def test_without_act_a_warning_says_that_it_does_nothing() -> None:
    def warnings(supervise: str) -> list[str]:
        variables = {"XOSCAR_IDLE_TIMEOUT": "5", "XOSCAR_EXIT_ON_DEGRADED": "1"}
        given = environment(**variables, XOSCAR_SUPERVISE=supervise)
        return run(sys.executable, "-c", "import xoscar", env=given).stderr.splitlines()

    for supervise in ("observe", "off"):
        (warning,) = warnings(supervise)
        says = "exit_on_degraded does nothing without supervise=act: no sub-pool is ever degraded"
        assert says in warning
    assert warnings("act") == []


def test_once_is_enough(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """However many sub-pools are degraded at once."""
    begun, exits = threading.Event(), list[int]()
    monkeypatch.setattr(leaving, "_lock", threading.Lock())
    monkeypatch.setattr(leaving, "PATIENCE", 0.05)
    monkeypatch.setattr(sentinels, "freeze", lambda: None)

    def exit_(status: int) -> None:
        exits.append(status)
        begun.set()

    monkeypatch.setattr(os, "_exit", exit_)
    for _ in range(5):
        leaving.leave([], "pool a:1 is degraded: why", lambda: None)
    assert begun.wait(BOUND)
    eventually(lambda: "xoscar-idle-leaving" not in [t.name for t in threading.enumerate()])
    assert set(exits) == {leaving.STATUS}
    assert [each.getMessage() for each in caplog.records] == [
        "pool a:1 is degraded: why: this process ends with exit status 76, "
        "as XOSCAR_EXIT_ON_DEGRADED asks for"
    ]
