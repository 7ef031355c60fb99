"""``xoscar-idle pools`` and ``crashes``: real pools that are killed, stopped and blocked."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import xoscar as xo

from xoscar_idle.commands import crashes, pools
from xoscar_idle.commands.cli import main
from xoscar_idle.supervision.record import CrashRecord
from xoscar_idle.supervision.state import PoolInfo
from xoscar_idle.telemetry.pools import Supervised, _read
from xoscar_idle.telemetry.snapshot import Unobservable

from ..support import hosting, processes
from ..support.endpoints import refusing
from ..support.environment import environment
from ..support.hosting import worker
from ..support.waiting import eventually, eventually_told

pytestmark = pytest.mark.integration


class Blocking(xo.StatelessActor):  # type: ignore[misc]
    """Blocks the event loop of its process until there is a file."""

    def block(self, until: str) -> None:
        while not os.path.exists(until):
            time.sleep(0.01)


@pytest.fixture(autouse=True)
def sockets(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Where monitors are, for these tests alone; a path that is short enough."""
    with tempfile.TemporaryDirectory() as directory:
        monkeypatch.setenv("XOSCAR_IDLE_MONITOR", directory)
        yield directory


@pytest.fixture(autouse=True)
def records(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Where crash records are."""
    place = tmp_path / "records"
    monkeypatch.setenv("XOSCAR_SUPERVISE_DIR", f"{place}")
    return place


ON = {"XOSCAR_IDLE_TIMEOUT": "600", "XOSCAR_SUPERVISE": "observe"}


def run(*arguments: str, columns: int | str = 80) -> subprocess.CompletedProcess[str]:
    command = (sys.executable, "-m", "xoscar_idle", *arguments)
    done = processes.run(*command, status=None, env={**os.environ, "COLUMNS": f"{columns}"})
    assert "Traceback" not in done.stderr, done.stderr
    return done


def told(*arguments: str) -> Any:
    return json.loads(run(*arguments, "--json").stdout)


def states(*arguments: str) -> list[str]:
    return [each["state"] for each in told("pools", *arguments)]


def state(output: str, address: str) -> str:
    """The one in the row of a sub-pool."""
    (found,) = re.findall(rf"{re.escape(address)}  +\d+  (\w+) ", output)
    return str(found)


@contextlib.contextmanager
def supervised(n_process: int, quiet: bool = False) -> Iterator[hosting.Pools]:
    """A main pool that follows its sub-pools."""
    with hosting.pools(
        1, n_process, quiet, XOSCAR_IDLE_TIMEOUT="600", XOSCAR_SUPERVISE="observe"
    ) as hosted:
        yield hosted


def test_killed_and_recovered(records: Path) -> None:
    async def kill_one_that_is_at_work() -> int:
        actor = await worker(second)
        pid: int = await actor.pid()
        held = asyncio.ensure_future(actor.hold())
        await eventually_told(lambda: asyncio.to_thread(in_process))
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(xo.ServerClosed):
            await held
        return pid

    def in_process() -> bool:
        _, seen = told("pools")
        return bool(seen["in_process"] == 1)

    with supervised(2, quiet=True) as hosted:
        main_address, first, second = hosted.addresses
        done = run("pools")
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith(f"process {hosted.pid}, 2 sub-pools: 2 healthy\n")
        assert state(done.stdout, first) == "healthy"
        for named, asked in ((f"{hosted.pid}", hosted.pid), (second, main_address)):
            seen = told("pools", named)
            assert [each.pop("main") for each in seen] == [asked, asked]
            assert [each["address"] for each in seen] == [first, second]
            fields = {each.name for each in dataclasses.fields(PoolInfo)}
            assert all(set(each) == fields for each in seen)
        assert run("pools", main_address, second).stdout.count("main pool") == 1

        pid = asyncio.run(kill_one_that_is_at_work())
        eventually(lambda: states(main_address) == ["healthy", "healthy"])
        _, after = told("pools", main_address)
        assert (after["restarts"], after["incarnation"], after["lineage"]) == (1, 2, 2)
        assert "was killed by SIGKILL" in after["last_failure"]

        table = run("crashes").stdout
        assert re.search(
            rf"^\d\d-\d\d \d\d:\d\d:\d\d  {second}  {pid}  SIGKILL  +\S+ +1  sender unknown$",
            table,
            re.MULTILINE,
        )
        for named in (f"{pid}", second, f"{hosted.pid}", main_address):
            full = run("crashes", named)
            assert full.returncode == 0
            assert f"pool {second} (pid {pid}) was killed by SIGKILL" in full.stdout
            assert f"Its record: {records}/crash-" in full.stdout.replace("\n", "")
        (record,) = told("crashes")
        assert (record["pid"], record["signal"], record["in_flight"]) == (pid, "SIGKILL", 1)

        doctor = run("doctor", f"{hosted.pid}")
        assert f"sub-pools   of {hosted.pid}: 2 healthy; last failures: pool " in doctor.stdout
        (of_pools,) = told("doctor", main_address)["pools"]
        assert [each["state"] for each in of_pools["pools"]] == ["healthy", "healthy"]


def test_blocked_and_stopped(tmp_path: Path) -> None:
    """The main pool answers for them, and tells what one of them is doing."""
    end = tmp_path / "end"

    async def disturb() -> tuple[int, asyncio.Future[Any]]:
        actor = await xo.create_actor(Blocking, uid="model", address=first)
        blocked = asyncio.ensure_future(actor.block(f"{end}"))
        pid: int = await (await worker(second)).pid()
        os.kill(pid, signal.SIGSTOP)
        return pid, blocked

    async def look() -> None:
        pid, blocked = await disturb()
        try:
            await eventually_told(
                lambda: asyncio.to_thread(lambda: states(main_address) == ["busy", "unhealthy"])
            )
            done = await asyncio.to_thread(run, "pools", f"{hosted.pid}", columns=70)
            not_answering = await asyncio.to_thread(run, "pools", first)
        finally:
            os.kill(pid, signal.SIGCONT)
            end.touch()
            await blocked
        assert done.returncode == 3
        assert max(map(len, done.stdout.splitlines())) <= 70
        assert state(done.stdout, first) == "busy"
        assert state(done.stdout, second) == "unhealthy"
        assert "\n    its event loop has been blocked for" in done.stdout
        assert "in block\n" in done.stdout
        assert re.search(r"^    in process for \S+ s: model\.block\(\)$", done.stdout, re.MULTILINE)
        assert not_answering.returncode == 1
        assert f"{first} did not answer in 5 s: if it is a sub-pool" in not_answering.stderr
        await eventually_told(
            lambda: asyncio.to_thread(lambda: states(main_address) == ["healthy", "healthy"])
        )

    with supervised(2) as hosted:
        main_address, first, second = hosted.addresses
        asyncio.run(look())


UNRECOVERED = """
import asyncio, sys
import xoscar as xo
async def main():
    pool = await xo.create_actor_pool("127.0.0.1", n_process=1, auto_recover=False)
    next(iter(pool.sub_processes.values())).kill()
    print(pool.external_address, flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await pool.stop()
asyncio.run(main())
"""


def test_dead() -> None:
    variables = {**ON, "XOSCAR_SUPERVISE": "off"}  # which takes no more than a look
    command = (sys.executable, "-c", UNRECOVERED)
    environ = {**os.environ, **variables}
    with processes.started(*command, env=environ, stderr=subprocess.DEVNULL) as process:
        address = processes.line(process)
        eventually(lambda: states(address) == ["dead"])
        done = run("pools", address)
        assert done.returncode == 3
        assert "was killed by SIGKILL" in " ".join(done.stdout.split())
        assert "Their health is not followed: XOSCAR_SUPERVISE is off.\n" in done.stdout
        assert run("pools", address, "2147483647").returncode == 3, "whatever else"


def test_whose_health_is_not_followed() -> None:
    """What is not asked for is not told, and requests are counted all the same."""
    with hosting.pools(1, 1, XOSCAR_IDLE_TIMEOUT="600") as hosted:
        done = run("pools", hosted.addresses[0])
        (seen,) = told("pools", hosted.addresses[0])
    assert done.returncode == 0
    assert done.stdout.endswith("\nTheir health is not followed: XOSCAR_SUPERVISE is off.\n")
    assert (seen["state"], seen["observed"]) == ("healthy", False)
    assert (seen["in_process"], seen["loop_lag"]) == (0, None)


def test_without_sub_pools() -> None:
    with supervised(0) as hosted:
        named = run("pools", f"{hosted.pid}")
        assert (named.returncode, named.stdout) == (0, f"process {hosted.pid}, no sub-pools\n")
        done = run("pools")
        says = "No process of this user that offers a monitor has sub-pools.\n"
        assert (done.returncode, done.stdout, done.stderr) == (0, says, "")
        assert told("pools") == []


def test_what_cannot_be_asked() -> None:
    with (
        hosting.pools(1, 1) as stock,
        refusing() as refused,
    ):
        main_address, sub_pool = stock.addresses
        expected = {
            "2147483647": "there is no process 2147483647",
            f"{os.getpid()}": f"process {os.getpid()} offers this user no monitor: start it wi",
            refused: f"no pool answers at {refused}: ",
            sub_pool: f"main pool {main_address}: xoscar-idle is not active there",
        }
        done = run("pools", *expected)
    assert (done.returncode, done.stdout) == (1, "")
    for line, says in zip(done.stderr.splitlines(), expected.values(), strict=True):
        assert line.startswith(f"xoscar-idle: {says}")


def test_nobody_offers_a_monitor() -> None:
    done = run("pools")
    assert done.returncode == 1
    assert "no process of this user offers a monitor" in done.stderr


@pytest.mark.parametrize(
    "answer", ["null", "[]", "{}", '{"pid": 1, "pools": [{}]}', '{"pid": 1, "pools": [1]}', "{"]
)
def test_an_answer_that_is_none(answer: str) -> None:
    with pytest.raises(Unobservable, match=r"10\.0\.0\.7:1 does not tell of its pools as expected"):
        _read("10.0.0.7:1", answer)


LONG = "255.255.255.255:65535"
FRAME = f'  File "/{"deep/" * 30}model.py", line 7, in load'
ILL = PoolInfo(
    LONG,
    7654321,
    1234,
    7,
    "recovering",
    since=0.0,
    uptime=90000.0,
    restarts=1234,
    in_process=1000,
    oldest_request=3720.0,
    requests=({"actor": "m", "method": "chat", "seconds": 3720.0},),
    loop_lag=3720.0,
    rss=123 << 30,
    reason="it fell \x1b[2J" + "very " * 40 + "ill",
    doing="\n".join([FRAME, "    wait()", *["  and"] * 100]),
    last_failure="pool x was killed by SIGKILL",
)


@pytest.mark.parametrize("columns", [60, 80, 100, 200])
def test_a_page_keeps_to_its_width_and_shows_addresses_whole(columns: int) -> None:
    lines = list(pools._shown(Supervised("10.0.0.7:9999", 7, [ILL, ILL]), columns))
    assert max(map(len, lines)) <= columns
    assert len([each for each in lines if LONG in each]) == 2
    text = "\n".join(lines)
    assert "\x1b" not in text
    assert 'model.py", line 7, in load' in text
    assert "last failure: pool x was killed by SIGKILL" in text
    assert "in process for 3720.0 s: m.chat()" in text
    assert "… 90 more lines, which --json has" in text
    assert len(lines) < 70


def test_the_help_tells_of_each_column() -> None:
    for command, columns, plain in (
        ("pools", pools.POOLS, {"ADDRESS", "PID"}),
        ("crashes", crashes.CRASHES, {"WHEN", "ADDRESS", "PID"}),
    ):
        help_ = main.commands[command].help or ""
        (found,) = re.findall(r"Columns:\n(.*?)(?:\n\n|\Z)", help_, re.DOTALL)
        assert {each.header for each in columns} - plain <= set(re.findall(r"[A-Z]+", found))


# -- crash records -----------------------------------------------------------------------------


def keep(place: Path, *records: CrashRecord) -> None:
    place.mkdir(0o700, exist_ok=True)
    for each in records:
        path = place / f"crash-{int(each.when * 1000)}-{each.pid}.json"
        path.write_text(each.to_json())
        path.chmod(0o600)


OLD = CrashRecord("10.0.0.7:1", 11, 1.5e9, exit_code=7, uptime=9.5, main_pid=10, why="tired")
NEW = CrashRecord(
    "10.0.0.7:2",
    12,
    1.6e9,
    exit_code=-9,
    signal="SIGKILL",
    oom="cgroup oom_kill 3 → 4, last seen at 30.1 GiB of 32.0 GiB",
    stacks="Thread 1:\n  File x",
    log_tail="last \x1b[2Jwords\n\tindented",
)


def test_records_are_shown_the_newest_last(records: Path) -> None:
    keep(records, NEW, OLD)
    done = run("crashes")
    header, old, new = done.stdout.splitlines()
    assert header.split() == ["WHEN", "ADDRESS", "PID", "HOW", "UP", "REQ", "WHY"]
    assert old.split()[2:] == ["10.0.0.7:1", "11", "exit", "code", "7", "9.5s", "-", "tired"]
    assert "12  out of memory" in new
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert [each["pid"] for each in told("crashes")] == [11, 12]
    assert [each["pid"] for each in told("crashes", "10")] == [11]


@pytest.mark.parametrize("named", [(), ("10.0.0.7:2",)])
def test_nothing_is_cut_or_folded_where_there_is_no_terminal(
    records: Path, named: tuple[str, ...]
) -> None:
    keep(records, dataclasses.replace(NEW, oom="of a long story " * 20 + "the end"))
    assert "long story of a long story the end" in run("crashes", *named, columns="").stdout


def test_a_terminal_that_does_not_know_how_wide_it_is_has_80_columns(records: Path) -> None:
    """As the one of a container, until its client has told it."""
    keep(records, dataclasses.replace(NEW, oom="of a long story " * 20))
    ours, theirs = os.openpty()
    try:
        assert os.get_terminal_size(theirs).columns == 0
        command = (sys.executable, "-m", "xoscar_idle", "crashes", "10.0.0.7:2")
        processes.run(*command, stdout=theirs, env={**os.environ, "COLUMNS": ""})
        lines = os.read(ours, 65536).decode().splitlines()
    finally:
        os.close(ours)
        os.close(theirs)
    assert 60 < max(map(len, lines)) <= 80


def test_one_is_told_in_full_and_does_nothing_to_the_terminal(records: Path) -> None:
    keep(records, NEW, OLD)
    text = run("crashes", "10.0.0.7:2", columns=200).stdout
    assert "pool 10.0.0.7:2 (pid 12) was killed by SIGKILL: out of memory (cgroup oom" in text
    assert "Thread 1:\n  File x\n" in text
    assert "The end of its stderr:\nlast ?[2Jwords\n        indented\n" in text
    assert "pid 11" not in text


def test_garbage_is_complained_of(records: Path) -> None:
    keep(records, OLD)
    (records / "crash-1-2.json").write_text("{")
    (records / "notes.txt").write_text("left alone")
    done = run("crashes")
    assert done.returncode == 1
    assert "exit code 7" in done.stdout
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"xoscar-idle: {records}/crash-1-2.json: no crash record: ")


def test_no_records(records: Path) -> None:
    done = run("crashes")
    assert (done.returncode, done.stdout) == (0, "")
    assert f"there is no crash record in {records}; they are written where XOSCAR_SU" in done.stderr
    assert not records.exists(), "looking makes nothing"
    assert told("crashes") == []
    keep(records, OLD, NEW)
    done = run("crashes", "99", "10.0.0.9:1")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "xoscar-idle: none of 2 crash records is of 99, 10.0.0.9:1\n"


def test_a_directory_that_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XOSCAR_SUPERVISE_DIR", "here")
    done = run("crashes")
    assert done.returncode == 1
    assert "XOSCAR_SUPERVISE_DIR='here' is not the absolute path of a directory" in done.stderr


@pytest.mark.parametrize("when", [0.0, -1e20, 1e300, float("nan"), float("inf")])
def test_any_time_is_shown(when: float) -> None:
    assert crashes.when(dataclasses.replace(OLD, when=when))


# -- doctor ------------------------------------------------------------------------------------


def examine(**variables: str) -> dict[str, Any]:
    command = (sys.executable, "-m", "xoscar_idle", "doctor", "--json")
    done = processes.run(*command, status=None, env=environment(**variables))
    checks = {each["name"]: each for each in json.loads(done.stdout)["checks"]}
    found: dict[str, Any] = checks["supervision"]
    return found


def test_doctor_tells_of_supervision(records: Path, tmp_path: Path) -> None:
    off = examine(XOSCAR_IDLE_TIMEOUT="5")
    assert (off["level"], off["details"]) == ("ok", {"mode": "off"})
    on = examine(**ON, XOSCAR_SUPERVISE_DIR=f"{records}", XOSCAR_HANG_TIMEOUT="90")
    assert on["level"] == "ok"
    assert f"observe; crash records in {records}, without stderr" in on["text"]
    assert "after 90 s" in on["text"]
    (tmp_path / "file").touch()
    bad = examine(**ON, XOSCAR_SUPERVISE_DIR=f"{tmp_path}/file/below")
    assert bad["level"] == "problem"
    assert f"{tmp_path}/file/below cannot be made" in bad["text"]
