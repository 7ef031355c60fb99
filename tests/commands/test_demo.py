"""The demonstration, small, in a process of its own."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator

import psutil
import pytest

from xoscar_idle.commands.demo.show import demo

from ..support.processes import line, lives, started
from ..support.waiting import BOUND, eventually

pytestmark = pytest.mark.integration

PROGRAM = "import sys; from xoscar_idle.commands.demo.show import demo; sys.exit(demo({}))"
SMALL = "endpoints=24, seconds=6.0, idle_timeout=1.0"
SHORT = "endpoints=24, seconds=1.5, idle_timeout=0.5"
CHILDREN = 6  # a client and two servers per side
CRASH = 4  # a main pool and a caller per side


@contextlib.contextmanager
def running(arguments: str, prelude: str = "") -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", prelude + PROGRAM.format(arguments)]
    with started(*command) as process:
        yield process


def children(process: subprocess.Popen[str], count: int) -> list[psutil.Process]:
    """The child processes, once there are ``count`` at least."""

    def found() -> list[psutil.Process]:
        children = psutil.Process(process.pid).children()
        return children if len(children) >= count else []

    return eventually(found)


def read_until(process: subprocess.Popen[str], text: str) -> None:
    while text not in line(process):
        pass


def members(groups: set[int]) -> list[int]:
    """The processes in one of these groups, whoever has started them."""
    found = []
    for pid in psutil.pids():
        with contextlib.suppress(ProcessLookupError):
            if os.getpgid(pid) in groups and lives(pid):
                found.append(pid)
    return found


def cells(output: str, row: str) -> list[str]:
    """What the table says in that row, of the stock and of the reaping client."""
    (line,) = re.findall(rf"^{row} +(.*)$", output, re.MULTILINE)
    return re.split(r" {2,}", line)


@pytest.fixture(scope="module")
def output() -> str:
    """Of one that goes well."""
    with running(SMALL) as process:
        output, _ = process.communicate(timeout=BOUND)
    assert process.returncode == 0, output
    return output


def test_shows_the_difference_in_descriptors(output: str) -> None:
    for row in ("client's descriptors, final", "servers' descriptors, final"):
        stock, reaping = map(int, cells(output, row))
        assert stock == reaping + 24
    stock, reaping = map(int, cells(output, "client's descriptors, peak"))
    assert stock > reaping
    assert len(set(cells(output, "calls made"))) == 1
    assert cells(output, "calls lost") == ["0", "0"]
    for row in ("latency, median", "latency, p99"):
        assert all(float(cell.removesuffix(" ms")) > 0 for cell in cells(output, row))


def test_shows_the_difference_after_a_crash(output: str) -> None:
    stock, supervised = output.partition("\nstock: ")[2].split("\nsupervised: ")
    assert re.search(r"\sServerClosed: Remote server .* closed: 0\s+bytes\s+read", stock)
    assert re.search(r"and the next call with\s+\w+: ", stock)
    assert re.search(
        r"\sPoolCrashed: pool 127.0.0.1:\d+ .*\swas\s+killed\s+by\s+SIGKILL", supervised
    )
    assert re.search(r"the next call waited for [\d.]+ s, and succeeded", supervised)
    for row in ("the call in flight failed", "the next answer came"):
        assert all(float(cell.removesuffix(" s")) > 0 for cell in cells(output, row))
    stock, supervised = cells(output, "calls failed in between")
    assert int(stock) > 0
    assert supervised == "0"
    states = re.findall(r"^the sub-pool was (\w+)", output, re.MULTILINE)
    assert (states[0], states[-1]) == ("recovering", "healthy")
    assert cells(output, "restarts") == ["-", "1"]


@pytest.mark.parametrize("when", ["starting", "visiting"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_leaves_no_process_behind_when_interrupted(number: signal.Signals, when: str) -> None:
    with running(SMALL) as process:
        if when == "visiting":
            read_until(process, "visiting")
        found = children(process, 1 if when == "starting" else CHILDREN)
        process.send_signal(number)
        output, _ = process.communicate(timeout=BOUND)
    assert process.returncode == 128 + number
    assert "Interrupted" in output
    assert not [child for child in found if child.is_running()]  # without waiting for them


def test_leaves_no_process_behind_when_killed() -> None:
    with running(SMALL) as process:
        found = children(process, CHILDREN)
        process.kill()
        process.communicate(timeout=BOUND)
    _, alive = psutil.wait_procs(found, timeout=BOUND)
    assert not alive


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_leaves_no_process_behind_when_interrupted_in_a_crash(number: signal.Signals) -> None:
    with running(SHORT) as process:
        read_until(process, "kill -9")
        groups = {each.pid for each in children(process, CHILDREN + CRASH)}
        assert len(members(groups)) > len(groups)  # there are sub-pools
        process.send_signal(number)
        output, _ = process.communicate(timeout=BOUND)
    eventually(lambda: not members(groups))
    if number != signal.SIGKILL:
        assert process.returncode == 128 + number
        assert "Interrupted" in output


def test_says_which_child_failed() -> None:
    with running(SMALL) as process:
        client = next(child for child in children(process, CHILDREN) if "client" in child.cmdline())
        client.kill()
        output, _ = process.communicate(timeout=BOUND)
    assert process.returncode == 1
    assert re.search(r"Failed: the (stock|reaping) client ended with exit status -9\.", output)


@pytest.mark.skipif(sys.platform == "win32", reason="no limit there")
def test_adapts_to_the_limits_on_descriptors() -> None:
    lower = "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (50, 100)); "
    with running("endpoints=300, seconds=1.5, idle_timeout=0.5", lower) as process:
        output, _ = process.communicate(timeout=BOUND)
    assert process.returncode == 0, output
    assert "36 endpoints instead of 300" in output
    stock, reaping = map(int, cells(output, "client's descriptors, final"))
    assert stock == reaping + 36


def test_says_how_many_calls_were_lost() -> None:
    with running(SMALL) as process:
        read_until(process, "visiting")
        server = next(c for c in children(process, CHILDREN) if "server" in c.cmdline())
        server.kill()
        output, _ = process.communicate(timeout=BOUND)
    assert process.returncode == 1
    assert re.search(
        r"Failed: the (stock|reaping) client lost \d+ of \d+ calls, the first to 127", output
    )


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ("['XOSCAR_RESTART_LIMIT'] = '0/60'", "sub-pool was not recovered: .* is down: degraded"),
        (".clear()", "caller read no PoolCrashed, but ServerClosed: .* 0 bytes read"),
    ],
)
def test_says_what_failed_after_a_crash(change: str, complaint: str) -> None:
    prelude = f"from xoscar_idle.commands.demo import crash; crash.SUPERVISED{change}; "
    with running(SHORT, prelude) as process:
        output, _ = process.communicate(timeout=BOUND)
    assert process.returncode == 1, output
    assert re.search(f"Failed: the supervised {complaint}", output), output


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"endpoints": 1}, "endpoints must be 2 or more, got 1"),
        ({"seconds": 0.0}, "seconds must be finite and more than 0, got 0"),
        ({"seconds": float("inf")}, "seconds must be finite and more than 0, got inf"),
        ({"idle_timeout": 0.0}, "idle_timeout must be more than 0 .* got 0"),
        ({"seconds": 9.0, "idle_timeout": 3.5}, "got 3.5 of 9: give 0 < idle_timeout <= 3,"),
        ({"idle_timeout": float("nan")}, "idle_timeout must be more than 0 .* got nan"),
    ],
)
def test_refuses_bad_arguments(arguments: dict[str, float], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        demo(**arguments)  # type: ignore[arg-type]
