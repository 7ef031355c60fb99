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
from pathlib import Path

import pytest

from xoscar_idle import gate
from xoscar_idle.commands.running import verdict
from xoscar_idle.telemetry.snapshot import BLOCKED, INACTIVE, Snapshot

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
    assert done.stdout.endswith("\nOf 1: 1 active.\n")
    (process,) = told["processes"]
    assert told["status"] == 0
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
    assert mixed.stdout.endswith("\nOf 4: 2 active, 2 not active.\n")


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
    assert f"process {pid} did not answer in 2 s; it is stopped: SIGCONT lets it" in done.stdout
    assert done.stdout.startswith("not known ")
    assert "start it with" not in done.stdout


def test_what_is_not_there() -> None:
    with refusing() as refused:
        done = examine("2147483647", refused)
    assert done.returncode == 1
    assert done.stderr == ""
    first, why, second, why_too, _, last = done.stdout.splitlines()
    assert first == "not known   2147483647"
    assert why.strip() == "there is no process 2147483647"
    assert second == f"not known   {refused}"
    assert why_too.strip().startswith(f"no pool answers at {refused}: ")
    assert last == "Of 2: 2 not known."
    told = json.loads(examine("--json", "2147483647").stdout)
    (process,) = told["processes"]
    assert (told["status"], process["active"], process["asked_for"]) == (1, None, None)
    assert process["text"] == "there is no process 2147483647"


def test_many_by_patterns_and_a_file(tmp_path: Path) -> None:
    """A process that several of them name is there once."""
    with pools(2, 0, XOSCAR_IDLE_TIMEOUT="9") as hosted, program("") as other:
        first, second = hosted.addresses
        host, _, port = second.rpartition(":")
        path = tmp_path / "hosts"
        path.write_text(f"{first}\n{host[:-1]}[3,3]:{{{port}}}\n\n{other}\n{hosted.pid}\n")
        done = examine(f"@{path}")
        told = json.loads(examine("--json", f"@{path}", f"{host[:-1]}?:{port}").stdout)
    assert done.returncode == 1
    assert f"\nnot known   {other}  " in done.stdout
    assert [each["address"] for each in told["processes"]] == [second]


def test_one_whose_loop_is_blocked_is_known_to_be_active() -> None:
    """It has told so over its local socket."""
    statistics = {"settings": {"idle_timeout": 7.0}, "origins": {"idle_timeout": "code"}}
    why = "did not answer in 5 s: its event loop is blocked"
    seen = verdict(Snapshot(7, statistics=statistics, status=BLOCKED, note=why))
    assert (seen.active, seen.text) == (
        True,
        f"idle_timeout=7.0 (code); all others by default; {why}",
    )


def test_one_that_says_itself_why_it_is_not() -> None:
    why = "xoscar-idle is not active in it: this xoscar is not supported"
    for status in (INACTIVE, BLOCKED):
        told = Snapshot(7, "python", note=why, status=status)
        seen = verdict(told, {gate.IDLE_TIMEOUT: "5"})
        assert (seen.active, seen.asked_for, seen.text) == (False, True, why)
