"""``xoscar-idle configure``: whom it reaches, what it prints, and what it refuses."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import xoscar as xo

from xoscar_idle import side_channel
from xoscar_idle.commands import changing
from xoscar_idle.telemetry import snapshot

from ..support import processes
from ..support.endpoints import refusing
from ..support.hosting import pools, worker
from ..support.waiting import BOUND, eventually

pytestmark = pytest.mark.integration

COMMAND = "from xoscar_idle.commands.cli import main; main(prog_name='xoscar-idle')"


@pytest.fixture(autouse=True)
def monitors(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where the sockets are, for these tests alone."""
    with tempfile.TemporaryDirectory() as directory:
        monkeypatch.setenv("XOSCAR_IDLE_MONITOR", directory)
        yield Path(directory)


def run(*arguments: str, prelude: str = "", **variables: str) -> subprocess.CompletedProcess[str]:
    command = (sys.executable, "-c", prelude + COMMAND, *arguments)
    done = processes.run(*command, status=None, env=os.environ | {"COLUMNS": "80"} | variables)
    assert "Traceback" not in done.stderr, done.stderr
    return done


@contextlib.contextmanager
def program(text: str = "", **variables: str) -> Iterator[subprocess.Popen[str]]:
    """An active process that has run ``text``, and is ready."""
    text = f"import os, sys, time, xoscar\n{text}\nprint('ready', flush=True); sys.stdin.read()"
    env = os.environ | {"XOSCAR_IDLE_TIMEOUT": "30"} | variables
    with processes.started(sys.executable, "-c", text, env=env) as process:
        assert processes.line(process) == "ready"
        yield process


def settings(pid: int) -> Any:
    told = snapshot.ask(pid)
    assert told is not None
    assert told.statistics is not None
    return told.statistics["settings"]


def test_one_line_per_process(monitors: Path) -> None:
    with program() as one, program(XOSCAR_IDLE_TIMEOUT="20") as other:
        pids = sorted([one.pid, other.pid])
        before = {one.pid: 30, other.pid: 20}
        done = run("configure", *map(str, pids), "idle_timeout=10", "XOSCAR_IDLE_LOG=info")
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.splitlines() == [
            f"{pid}  idle_timeout=10 (was {before[pid]}), log=info (was off)" for pid in pids
        ]
        assert [settings(pid)["idle_timeout"] for pid in pids] == [10, 10]
        (monitors / "list").write_text(f"{one.pid}  # the first\n")
        done = run("configure", "idle_timeout=", f"@{monitors / 'list'}", "keepalive_interval=5")
        expected = f"{one.pid}  idle_timeout=30 (was 10), keepalive_interval=5 (was default)\n"
        assert done.stdout == expected
        done = run("configure", "--all", "idle_timeout=7", "--json")
        assert done.returncode == 0
        told = json.loads(done.stdout)
        assert [(each["pid"], each["done"]) for each in told] == [(pid, True) for pid in pids]
        assert told[pids.index(one.pid)] == {
            "pid": one.pid,
            "target": None,
            "done": True,
            "error": "",
            "changed": {"idle_timeout": {"before": "30", "after": "7"}},
        }


def test_all_processes_of_a_pool() -> None:
    """By the address of any of them; the programs that they start then have it, too."""
    with pools(1, 2, XOSCAR_IDLE_TIMEOUT="30") as hosted, pools() as another:
        main, first, second = hosted.addresses

        async def found(address: str) -> tuple[int, float, str | None]:
            actor = await worker(address)
            in_force = (await actor.settings())["idle_timeout"]
            return await actor.pid(), in_force, await actor.environment("XOSCAR_IDLE_TIMEOUT")

        async def all_found() -> list[tuple[int, float, str | None]]:
            return [await found(each) for each in hosted.addresses]

        pids = [pid for pid, _, _ in asyncio.run(all_found())]
        for address, timeout in ((main, 11), (second, 12)):
            done = run("configure", address, f"idle_timeout={timeout}")
            assert done.returncode == 0, done.stdout
            assert sorted(int(line.split()[0]) for line in done.stdout.splitlines()) == sorted(pids)
            expected = [(pid, timeout, f"{timeout}") for pid in pids]
            assert asyncio.run(all_found()) == expected
        done = run("configure", first, f"{pids[0]}", "idle_timeout=13")
        assert len(done.stdout.splitlines()) == 3, "each once"
        assert another.pid not in pids


def test_what_it_starts_from_then_on_has_it_too() -> None:
    """Here a sub-pool that is recovered; the one that was there had not."""
    with pools(1, 1, quiet=True, XOSCAR_IDLE_TIMEOUT="30") as hosted:

        async def found() -> tuple[int, float]:
            actor = await worker(hosted.addresses[1])
            return await actor.pid(), (await actor.settings())["idle_timeout"]

        def recovered() -> float | None:
            with contextlib.suppress(OSError, xo.ActorNotExist, xo.ServerClosed):
                pid, timeout = asyncio.run(found())
                return timeout if pid != before else None
            return None

        done = run("configure", f"{hosted.pid}", "idle_timeout=14", "log=error")
        assert len(done.stdout.splitlines()) == 1
        before, timeout = asyncio.run(found())
        assert timeout == 30
        os.kill(before, signal.SIGKILL)
        assert eventually(recovered) == 14


def test_a_blocked_process_is_changed_at_once() -> None:
    with program() as process:
        done = run("configure", f"{process.pid}", "max_connections=5")
        assert done.stdout == f"{process.pid}  max_connections=5 (was 0)\n"


def test_a_stopped_process_is_not_changed_when_it_goes_on() -> None:
    with program() as process:
        os.kill(process.pid, signal.SIGSTOP)
        eventually(lambda: psutil.Process(process.pid).status() == psutil.STATUS_STOPPED)
        done = run("configure", f"{process.pid}", "idle_timeout=5")
        assert done.returncode == 1
        told = f"{process.pid}  not changed: process {process.pid} did not answer in 2 s"
        assert done.stdout.startswith(told)
        os.kill(process.pid, signal.SIGCONT)
        assert settings(process.pid)["idle_timeout"] == 30


FAILED = """
import importlib.metadata, sys
importlib.metadata.version = lambda name: "0.13.0"
import xoscar
print("ready", flush=True); sys.stdin.read()
"""


def test_what_cannot_be_changed() -> None:
    """Each says why; the others are changed all the same."""
    with (
        program() as active,
        program(XOSCAR_IDLE_MONITOR="0") as silent,
        refusing() as nowhere,
        processes.started(
            *(sys.executable, "-c", FAILED), env=os.environ | {"XOSCAR_IDLE_TIMEOUT": "30"}
        ) as failed,
    ):
        assert processes.line(failed) == "ready"
        gone = subprocess.Popen([sys.executable, "-c", ""])
        gone.wait(BOUND)
        named = [f"{each.pid}" for each in (failed, silent, gone, active)]
        done = run("configure", *named, nowhere, "10.255.0.1:1", "idle_timeout=9")
        assert done.returncode == 1
        lines = [re.split(r" {2,}", each, maxsplit=1) for each in done.stdout.splitlines()]
        assert [name for name, _ in lines] == [*named, nowhere, "10.255.0.1:1"]
        told = [text for _, text in lines]
        assert told[0].startswith("not changed: xoscar-idle is not active in it: xoscar 0.13.0 was")
        assert told[1] == (
            "not changed: it offers this user no monitor: start it with XOSCAR_IDLE_MONITOR=1"
        )
        assert told[2] == f"not changed: there is no process {gone.pid}"
        assert told[3] == "idle_timeout=9 (was 30)"
        for each in told[4:]:
            assert "a process is changed on its own machine, as its own user" in each
        found = json.loads(run("configure", *named, "--json", "idle_timeout=9").stdout)
        assert [each["done"] for each in found] == [False, False, False, True]
        assert found[2]["error"] == f"there is no process {gone.pid}"
        assert found[2]["changed"] is None


def test_a_foreign_users_process() -> None:
    """Asked as nobody, and as root about nobody's; imported before, since nobody may not read."""
    if os.geteuid() != 0:
        done = run("configure", "1", "idle_timeout=9")
        assert "process 1 belongs to root" in done.stdout
        return
    become = "os.setgroups([]); os.setgid(65534); os.setuid(65534)"
    prelude = (
        "import os, psutil, xoscar_idle.commands.cli, xoscar_idle.commands.changing, "
        f"xoscar_idle.startup, concurrent.futures.thread, encodings.idna, pwd; {become}; "
    )
    with program() as ours:
        done = run("configure", f"{ours.pid}", "idle_timeout=9", prelude=prelude)
        assert done.returncode == 1
        told = f"{ours.pid}  not changed: process {ours.pid} belongs to root, who alone can change"
        assert done.stdout.startswith(told)
        assert settings(ours.pid)["idle_timeout"] == 30
    asleep = f"import os, sys; {become}; print('ready', flush=True); sys.stdin.read()"
    with processes.started(sys.executable, "-c", asleep) as theirs:
        assert processes.line(theirs) == "ready"
        done = run("configure", f"{theirs.pid}", "idle_timeout=9")
        assert done.stdout.startswith(f"{theirs.pid}  not changed: process {theirs.pid} belongs to")
        assert "not even root can" in done.stdout


def test_nobody_offers_a_monitor() -> None:
    done = run("configure", "--all", "idle_timeout=9")
    assert (done.returncode, done.stderr) == (1, "")
    assert "no process of this user offers a monitor" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["4711"], "there is no NAME=VALUE: give idle_timeout=10, say"),
        ([], "there is no NAME=VALUE"),
        (["idle_timeout=5"], "name processes, by PID or by HOST:PORT of their pool, or all with"),
        (["--all", "4711", "idle_timeout=5"], "--all is all processes, and '4711' is one of them"),
        (["4711", "idle_timout=5"], "unknown setting 'idle_timout': is idle_timeout meant?"),
        (["4711", "XOSCAR_IDEL_TIMEOUT=5"], "'XOSCAR_IDEL_TIMEOUT': is idle_timeout meant?"),
        (["4711", "Idle_Timeout=5"], "unknown setting 'Idle_Timeout': is idle_timeout meant?"),
        (["4711", "lgo=debug"], "unknown setting 'lgo'"),
        (["4711", "speed=9"], "unknown setting 'speed'; there are idle_timeout,"),
        (["4711", "=9"], "unknown setting ''"),
        (["4711", "idle_timeout=soon"], "idle_timeout must be a number of seconds, got 'soon'"),
        (["4711", "idle_timeout=5", "idle_timeout=6"], "idle_timeout is given twice"),
        (["4711", "idle_timeout=5", "XOSCAR_IDLE_TIMEOUT=6"], "idle_timeout is given twice"),
        (["4711", "log=loud"], "log must be off, debug, info, warning or error, got 'loud'"),
        (["4711", "idle_timeout", "5"], "idle_timeout has no value: give idle_timeout=VALUE"),
        (["4711", "health_token=abc"], "health_token must be 8 to 1000 visible characters of"),
        (["0", "idle_timeout=5"], "'0' is no process id"),
        (["here", "idle_timeout=5"], "'here' is neither a process id nor an address"),
        (["http://a:1", "idle_timeout=5"], "is no address of a pool that can be asked"),
        (["@", "idle_timeout=5"], "@ names no file"),
        (["4711", f"supervise_dir=/{'x' * 17000}"], "that is too long: 16384 bytes at most"),
    ],
    ids=lambda each: " ".join(each)[:40] if isinstance(each, list) else None,
)
def test_asked_wrongly(arguments: list[str], says: str) -> None:
    """Nobody is asked: it is all the same that there is no such process."""
    done = run("configure", *arguments, COLUMNS="1000")
    assert (done.returncode, done.stdout) == (2, "")
    assert says in done.stderr
    assert "abc" not in done.stderr


def test_an_answer_in_another_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a process with another version of us, or none of ours at all."""
    answer = changing.Answer(4711, "4711")
    for told in (b"[]\n", b"{\n", b"7\n", b"\xff\n"):
        monkeypatch.setattr(side_channel, "ask", lambda *_, told=told: told)
        error = changing._ask(answer, "").error
        assert error.startswith("it answers in another way than expected: ")
        assert error.isprintable()


@pytest.mark.parametrize("command", ["configure", "close"])
def test_help_and_light_start(command: str) -> None:
    program = (
        "import sys, atexit; from xoscar_idle.commands.cli import main\n"
        "atexit.register(lambda: print(*sorted(sys.modules)))\n"
        f"main(['{command}', '--help'])"
    )
    *text, modules = processes.run(sys.executable, "-c", program).stdout.splitlines()
    assert "Usage:" in text[0]
    assert max(map(len, text)) <= 80
    assert not {"xoscar", "psutil", "rich", "asyncio"} & set(modules.split())
    usual = processes.run(
        sys.executable, "-c", "import sys, xoscar_idle.commands.changing; print(*sys.modules)"
    )
    assert "xoscar" not in usual.stdout.split(), "it takes a second to import"
