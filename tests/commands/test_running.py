"""``xoscar-idle doctor`` of processes that run: what it knows, and what it does not."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator

import pytest

from xoscar_idle import gate
from xoscar_idle.commands.running import verdict
from xoscar_idle.telemetry.snapshot import Snapshot

from ..support.endpoints import refusing
from ..support.environment import environment
from ..support.hosting import pools
from ..support.processes import line, run, started

pytestmark = pytest.mark.integration


@pytest.fixture(autouse=True)
def sockets(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Where monitors are, for these tests alone."""
    with tempfile.TemporaryDirectory() as directory:
        monkeypatch.setenv("XOSCAR_IDLE_MONITOR", directory)
        yield directory


def examine(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = (sys.executable, "-m", "xoscar_idle", "doctor", *arguments)
    done = run(*command, status=None, env=os.environ)
    assert "Traceback" not in done.stderr, done.stderr
    return done


@contextlib.contextmanager
def program(text: str, **variables: str) -> Iterator[str]:
    """A process that has run ``text``; its PID."""
    text = f"import sys\n{text}\nprint('ready', flush=True); sys.stdin.read()"
    command = (sys.executable, "-c", text)
    with started(*command, env=environment(**variables), orderly=True) as process:
        assert line(process) == "ready"
        yield f"{process.pid}"


def test_active_with_its_settings_and_where_they_come_from(sockets: str) -> None:
    text = "import xoscar, xoscar_idle; xoscar_idle.configure(connect_timeout=3)"
    variables = {"XOSCAR_IDLE_TIMEOUT": "7", "XOSCAR_IDLE_MONITOR": sockets}
    with program(text, **variables) as pid:
        done = examine(pid)
        told = json.loads(examine("--json", pid).stdout)
    assert done.returncode == 0
    first, second, *_ = done.stdout.splitlines()
    assert first.startswith(f"active      {pid}  ")
    assert second.strip() == (
        "idle_timeout=7.0 (environment), connect_timeout=3.0 (code); all others by default"
    )
    assert done.stdout.endswith("\nOf 1 that run: 1 active.\n")
    (process,) = told["processes"]
    assert (told["status"], told["complaints"]) == (0, [])
    assert (process["active"], process["asked_for"], process["pid"]) == (True, True, int(pid))
    assert process["settings"]["idle_timeout"] == {"value": 7.0, "origin": "environment"}
    assert process["settings"]["max_connections"] == {"value": 0, "origin": "default"}


def test_each_process_of_a_pool(sockets: str) -> None:
    with pools(1, 1, XOSCAR_IDLE_TIMEOUT="9") as ours, pools(1, 1) as stock:
        active = examine(ours.addresses[0])
        mixed = examine(ours.addresses[0], stock.addresses[0])
    assert active.returncode == 0
    assert active.stdout.count("idle_timeout=9.0 (environment)") == 2
    assert all(f" at {each}  " in active.stdout for each in ours.addresses)
    assert mixed.returncode == 1
    assert mixed.stdout.count("xoscar-idle is not active there") == 2
    assert mixed.stdout.endswith("\nOf 4 that run: 2 active, 2 not active.\n")


@pytest.mark.parametrize(
    ("variables", "asked_for", "says"),
    [
        ({}, False, "it was started without XOSCAR_IDLE_TIMEOUT, or with off: it is not active un"),
        ({"XOSCAR_IDLE_TIMEOUT": "off"}, False, "it was started without XOSCAR_IDLE_TIMEOUT, or"),
        ({"XOSCAR_IDLE_TIMEOUT": "30"}, True, "it was started with XOSCAR_IDLE_TIMEOUT='30', but"),
        ({"XOSCAR_SUPERVISE": "observe"}, True, "it was started with XOSCAR_SUPERVISE='observe', "),
    ],
)
def test_what_cannot_be_known_from_outside(
    variables: dict[str, str], asked_for: bool, says: str
) -> None:
    with program("", **variables) as pid:
        done = examine(pid)
        (process,) = json.loads(examine("--json", pid).stdout)["processes"]
    assert done.returncode == 1
    assert done.stdout.startswith(f"not known   {pid}  ")
    assert f"no monitor; seen from outside: 0 established TCP connections; {says}" in done.stdout
    assert "start it with XOSCAR_IDLE_MONITOR=1, or name the address of its pool" in done.stdout
    assert (process["active"], process["asked_for"]) == (None, asked_for)


def test_one_that_does_not_answer_is_not_known(sockets: str) -> None:
    variables = {"XOSCAR_IDLE_TIMEOUT": "7", "XOSCAR_IDLE_MONITOR": sockets}
    with program("import xoscar", **variables) as pid:
        os.kill(int(pid), signal.SIGSTOP)
        try:
            done = examine(pid)
        finally:
            os.kill(int(pid), signal.SIGCONT)
    assert done.returncode == 1
    assert f"process {pid} did not answer in 2 s; seen from outside" in done.stdout
    assert done.stdout.startswith("not known ")


def test_what_is_not_there() -> None:
    with refusing() as refused:
        done = examine("2147483647", refused)
    assert done.returncode == 1
    assert done.stdout == ""
    first, second = done.stderr.splitlines()
    assert first == "xoscar-idle: there is no process 2147483647"
    assert second.startswith(f"xoscar-idle: no pool answers at {refused}: ")
    told = json.loads(examine("--json", "2147483647").stdout)
    assert (told["status"], told["processes"]) == (1, [])
    assert told["complaints"] == ["there is no process 2147483647"]


def test_one_that_says_itself_why_it_is_not() -> None:
    why = "xoscar-idle is not active in it: this xoscar is not supported"
    seen = verdict(Snapshot(7, "python", note=why), {gate.IDLE_TIMEOUT: "5"})
    assert (seen.active, seen.asked_for, seen.text) == (False, True, why)
