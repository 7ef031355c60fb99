"""Files that tell of sub-pools that are down: when they are there, what is in them, and whose they
are."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
import xoscar as xo

import xoscar_idle
from xoscar_idle import side_thread
from xoscar_idle.supervision import health
from xoscar_idle.supervision import sentinels as module
from xoscar_idle.supervision.sentinels import LARGEST, Sentinels, sentinels
from xoscar_idle.supervision.state import PoolInfo, State
from xoscar_idle.supervision.supervisor import Supervisor

from ..support import crashing
from ..support.crashing import Slow, error_of, host, revived, sub_pools, victim
from ..support.processes import lives, run, started
from ..support.waiting import BOUND, bounded, eventually, eventually_here

NAME = f"unhealthy-{os.getpid()}-7.json"

INFO = PoolInfo("10.0.0.7:41235", 4711, 7, 2, "recovering", 1.7e9, 0.0, 1, label="llama")

FIELDS = [
    *("schema_version", "owner", "main_address"),
    *("address", "pid", "lineage", "incarnation", "label", "state", "since"),
    *("reason", "last_failure", "restart_at"),
]


class Settled(Sentinels):
    """With files that are as they are to be when they have been asked for."""

    def keep(self, down: Sequence[tuple[str, PoolInfo]]) -> None:
        super().keep(down)
        self.settle()


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where they are, for this test alone; this process has none yet, and has warned of nothing."""
    monkeypatch.setenv("XOSCAR_SUPERVISE_DIR", f"{tmp_path / 'own'}")
    sentinels.forget()
    yield tmp_path / "own"
    sentinels.forget()


def there(place: Path) -> list[Path]:
    """Those that there are."""
    return sorted(place.glob("unhealthy-*"))


def read(place: Path) -> dict[str, Any]:
    """What the only one says; empty: there is none."""
    found = there(place)
    assert len(found) <= 1
    for path in found:
        with contextlib.suppress(FileNotFoundError):
            told: dict[str, Any] = json.loads(path.read_text())  # it is whole whenever it is there
            return told
    return {}


async def says(place: Path, state: str) -> dict[str, Any]:
    """As soon as it says that state."""
    await eventually_here(lambda: read(place).get("state") == state)
    return read(place)


async def gone(place: Path) -> None:
    await eventually_here(lambda: not there(place))


def told(address: str) -> PoolInfo:
    (found,) = [each for each in xoscar_idle.pools() if each.address == address]
    return found


def keep(mine: Sentinels, *down: tuple[str, PoolInfo]) -> None:
    """Let them be so, and wait until all that can be done has been done."""
    mine.keep(down)
    eventually(lambda: mine._writer is None)


def sweep() -> None:
    """What is done once per process, at the first look."""
    keep(Sentinels())


# -- which states they are for ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "incarnation", "uptime", "serves", "is_down"),
    [
        ("starting", 0, 0.0, False, False),
        ("starting", 1, 3.0, False, True),
        ("starting", 2, 3.0, False, True),
        ("healthy", 1, 3.0, True, False),
        ("busy", 2, 3.0, True, False),
        ("unhealthy", 1, 3.0, False, True),
        ("recovering", 1, 0.0, False, True),
        ("degraded", 1, 0.0, False, True),
        ("degraded", 2, 3.0, False, True),
        ("dead", 1, 0.0, False, True),
        ("paused", 1, 3.0, True, False),
        ("paused", 1, 0.0, False, True),
        ("stopping", 2, 3.0, False, False),
        ("one of a later version", 1, 3.0, False, True),
    ],
)
def test_what_serves_and_what_is_down(
    state: str, incarnation: int, uptime: float, serves: bool, is_down: bool
) -> None:
    found = dataclasses.replace(INFO, state=state, incarnation=incarnation, uptime=uptime)
    assert (found.serves, found.is_down) == (serves, is_down)


def test_each_state_has_been_decided_on() -> None:
    assert {each.value for each in State} == {
        *("starting", "healthy", "busy", "unhealthy", "recovering"),
        *("degraded", "dead", "paused", "stopping"),
    }


# -- the files alone -------------------------------------------------------------------------------


def test_one_for_each_that_is_down_and_no_others(place: Path) -> None:
    mine, other = Settled(), dataclasses.replace(INFO, lineage=8, reason="\udcff ü \n")
    mine.close()
    mine.open()
    assert not place.exists(), "there is nothing to tell, and no place is needed"
    keep(mine, ("a:1", INFO), ("a:2", other))
    assert [path.name for path in there(place)] == [NAME, NAME.replace("-7.", "-8.")]
    assert sorted(place.iterdir()) == there(place), "nothing unfinished is left"
    first, second = (json.loads(path.read_text()) for path in there(place))
    assert list(first) == FIELDS
    assert first["schema_version"] == 1
    assert (first["main_address"], second["main_address"]) == ("a:1", "a:2")
    assert (first["state"], first["restart_at"]) == ("recovering", None)
    assert second["reason"] == "\udcff ü \n"
    assert {stat.S_IMODE(path.stat().st_mode) for path in there(place)} == {0o600}
    keep(mine, ("a:2", other))
    assert [path.name for path in there(place)] == [NAME.replace("-7.", "-8.")]
    keep(mine)
    assert list(place.iterdir()) == []


def test_its_owner_is_told_by_more_than_a_number(place: Path) -> None:
    Settled().keep([("a:1", INFO)])
    assert read(place)["owner"] == {
        "pid": os.getpid(),
        "created": psutil.Process().create_time(),
        "host": socket.gethostname(),
        "boot_id": Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
        "pid_namespace": os.readlink("/proc/self/ns/pid"),
    }
    with pytest.raises(ProcessLookupError):
        module.owner(0x7FFFFFFF)


def test_it_is_written_when_it_changes_and_only_then(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What changes all the time is not in it."""
    monkeypatch.setattr(module, "LOOK_EVERY", 0.0)
    mine = Settled()
    keep(mine, ("a:1", INFO))
    (path,) = there(place)
    first = path.stat().st_ino, path.stat().st_mtime_ns
    keep(mine, ("a:1", dataclasses.replace(INFO, uptime=9.0, held=3, rss=5, sequence=9)))
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == first
    keep(mine, ("a:1", dataclasses.replace(INFO, state="starting", pid=4712)))
    assert (read(place)["state"], read(place)["pid"]) == ("starting", 4712)
    path.unlink()
    keep(mine, ("a:1", dataclasses.replace(INFO, state="starting", pid=4712)))
    assert read(place)["state"] == "starting", "somebody has removed it"


def test_what_is_in_the_way_of_one(
    place: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A link is replaced, and what it leads to stays; a directory costs one warning."""
    precious = tmp_path / "precious"
    precious.write_text("mine")
    place.mkdir(0o700)
    (place / NAME).symlink_to(precious)
    mine = Settled()
    keep(mine, ("a:1", INFO))
    assert not (place / NAME).is_symlink()
    assert read(place)["lineage"] == 7
    assert precious.read_text() == "mine"
    keep(mine)
    (place / NAME / "full").mkdir(parents=True)
    for _ in range(3):
        keep(mine, ("a:1", INFO))
    (warning,) = caplog.records
    assert "no file tells that a sub-pool is down: " in warning.getMessage()
    assert [path.name for path in place.iterdir()] == [NAME]
    keep(mine)
    assert (place / NAME / "full").is_dir()


def test_frozen_they_stay_as_they_are(place: Path) -> None:
    mine = Settled()
    keep(mine, ("a:1", INFO))
    mine.freeze()
    keep(mine)
    keep(mine, ("a:1", dataclasses.replace(INFO, state="stopping")))
    assert read(place)["state"] == "recovering"


def in_the_way(place: Path) -> None:
    place.write_text("a file")


def opened(place: Path) -> None:
    place.mkdir()
    place.chmod(0o755)


def of_another(place: Path) -> None:
    if os.geteuid():
        pytest.skip("only root can give a directory away")
    place.mkdir(0o700)
    os.chown(place, 65534, 65534)


def link(place: Path) -> None:
    place.with_name("elsewhere").mkdir(0o700)
    place.symlink_to(place.with_name("elsewhere"))


NO_PLACES = [in_the_way, opened, of_another, link]


@pytest.mark.parametrize("make", NO_PLACES)
def test_a_place_that_cannot_be_used_costs_one_warning(
    place: Path, caplog: pytest.LogCaptureFixture, make: Callable[[Path], None]
) -> None:
    make(place)
    mine = Settled()
    sweep()
    assert not caplog.records, "nothing has been needed yet"
    for state in ("recovering", "starting", "recovering"):
        keep(mine, ("a:1", dataclasses.replace(INFO, state=state)))
    (warning,) = caplog.records
    assert "no file tells that a sub-pool is down: " in warning.getMessage()
    assert f"{place} is not a directory that belongs to this user alone" in warning.getMessage()
    assert not place.is_dir() or there(place) == []
    place.unlink() if not place.is_dir() or place.is_symlink() else place.rmdir()
    keep(mine, ("a:1", INFO))
    assert read(place)["lineage"] == 7, "it was made usable"


def test_they_follow_the_setting(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are beside the crash records, wherever those are."""
    mine = Settled()
    keep(mine, ("a:1", INFO))
    elsewhere = place.with_name("elsewhere")
    monkeypatch.setenv("XOSCAR_SUPERVISE_DIR", f"{elsewhere}")
    keep(mine)
    keep(mine, ("a:1", INFO))
    assert there(place) == []
    assert read(elsewhere)["lineage"] == 7


def test_a_place_that_has_been_removed_is_made_again(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LOOK_EVERY", 0.0)
    mine = Settled()
    keep(mine, ("a:1", INFO))
    (place / NAME).unlink()
    place.rmdir()
    for _ in range(2):  # what fails is tried again with the next look
        keep(mine, ("a:1", INFO))
    assert read(place)["lineage"] == 7


# -- what main pools have left ---------------------------------------------------------------------


def owned(pid: Any, /, **changes: Any) -> str:
    """The text of one of that owner."""
    known = module.owner(os.getpid())
    return json.dumps({"schema_version": 1, "owner": {**known, "pid": pid, **changes}})


MINE = module.owner(os.getpid())

STALE: dict[str, Callable[[], str | bytes]] = {
    "none of that number": lambda: owned(0x7FFFFFFF),
    "pid 0": lambda: owned(0),
    "pid -1": lambda: owned(-1),
    "pid true": lambda: owned(True),
    "pid in words": lambda: owned(f"{os.getpid()}"),
    "pid 1.0": lambda: owned(float(os.getpid())),
    "pid null": lambda: owned(None),
    "pid [1]": lambda: owned([os.getpid()]),
    "pid of 30 digits": lambda: owned(10**30),
    "pid of 400 digits": lambda: owned(10**400),
    "pid of 9000 digits": lambda: '{"owner": {"pid": ' + "9" * 9000 + "}}",
    "created before": lambda: owned(os.getpid(), created=MINE["created"] - 5),
    "created after": lambda: owned(os.getpid(), created=MINE["created"] + 5),
    "created in words": lambda: owned(os.getpid(), created=f"{MINE['created']}"),
    "created null": lambda: owned(os.getpid(), created=None),
    "created true": lambda: owned(os.getpid(), created=True),
    "created NaN": lambda: owned(os.getpid(), created=float("nan")),
    "created infinitely late": lambda: owned(os.getpid(), created=float("inf")),
    "created in 400 digits": lambda: owned(os.getpid(), created=10**400),
    "another boot": lambda: owned(os.getpid(), boot_id="another"),
    "boot null": lambda: owned(os.getpid(), boot_id=None),
    "host null": lambda: owned(os.getpid(), host=[], boot_id=None, created=None),
    "no owner": lambda: "{}",
    "no fields": lambda: '{"owner": {}}',
    "owner in words": lambda: '{"owner": "me"}',
    "a list": lambda: "[]",
    "null": lambda: "null",
    "a number": lambda: "1e999",
    "empty": lambda: "",
    "half of one": lambda: owned(os.getpid())[:40],
    "no text": lambda: b"\xff\xfe\x00\xd8" * 9,
    "zeros": lambda: b"\0" * 100,
    "deeply nested": lambda: "[" * 60_000,
    "deeply nested and whole": lambda: "[" * 30_000 + "]" * 30_000,
    "deeply nested objects": lambda: '{"owner":' * 7000,
    "1 MB": lambda: owned(os.getpid(), note="x" * (1 << 20)),
    "1 MB of brackets": lambda: "[" * (1 << 20),
}


@pytest.mark.parametrize("text", STALE.values(), ids=STALE)
def test_what_is_stale_is_removed(
    place: Path, caplog: pytest.LogCaptureFixture, text: Callable[[], str | bytes]
) -> None:
    """Whatever is in it, nothing is raised, and others are looked at as well."""
    place.mkdir(0o700)
    content = text()
    data = content if isinstance(content, bytes) else content.encode()
    names = ["unhealthy-1-1.json", f"unhealthy-{os.getpid()}-2.json", "unhealthy-0-0.json"]
    for name in names:
        (place / name).write_bytes(data)
    Settled().sweep()
    assert there(place) == []
    assert not caplog.records


@pytest.mark.integration
def test_one_that_has_ended_is_gone_before_somebody_asks_how(place: Path) -> None:
    """The first process of a container may never do so."""
    place.mkdir(0o700)
    with started(sys.executable, "-c", "input()") as process:
        known = module.owner(process.pid)
        path = place / f"unhealthy-{process.pid}-1.json"
        path.write_text(owned(process.pid, created=known["created"]))
        Settled().sweep()
        assert path.exists(), "it lives"
        os.kill(process.pid, signal.SIGKILL)
        eventually(lambda: not lives(process.pid))
        Settled().sweep()
        assert not path.exists()


def test_those_of_the_living_stay(place: Path) -> None:
    """Of this process and of another one; what is at the end of the file is no matter."""
    place.mkdir(0o700)
    parent = module.owner(os.getppid())
    kept = {
        f"unhealthy-{os.getpid()}-1.json": owned(os.getpid()),
        f"unhealthy-{os.getpid()}-2.json": owned(os.getpid(), of_a_later_version=[1]),
        f"unhealthy-{os.getppid()}-1.json": owned(os.getppid(), created=parent["created"]),
        "unhealthy-1-1.json": owned(os.getpid(), created=MINE["created"] + module.SAME / 2),
    }
    for name, text in kept.items():
        (place / name).write_text(text)
    Settled().sweep()
    assert [path.name for path in there(place)] == sorted(kept)


@pytest.mark.parametrize("what", ["host", "pid_namespace"])
def test_those_of_another_container_stay_for_as_long_as_they_may_be_of_the_living(
    place: Path, what: str
) -> None:
    """Its processes cannot be asked for from here."""
    place.mkdir(0o700)
    path = place / "unhealthy-1-1.json"
    path.write_text(owned(0x7FFFFFFF, **{what: "another"}))
    sweep()
    assert path.exists()
    os.utime(path, (time.time() - 1.1 * module.FOREIGN,) * 2)
    sweep()
    assert not path.exists()


def test_what_is_none_of_ours_is_left_alone(place: Path, tmp_path: Path) -> None:
    place.mkdir(0o700)
    precious = tmp_path / "precious"
    precious.write_text("")
    (place / "unhealthy-1-1.json").symlink_to(precious)
    (place / "unhealthy-1-2.json").symlink_to(tmp_path / "gone")
    (place / "unhealthy-1-3.json" / "full").mkdir(parents=True)
    (place / "unhealthy-1-4.json").mkdir()
    os.mkfifo(place / "unhealthy-1-5.json")
    names = [
        *("unhealthy-1-1.json.bak", "unhealthy-1.json", "unhealthy-x-1.json", "unhealthy-1-1"),
        *("unhealthy--1-1.json", "unhealthy-1-٣.json", "unhealthy-12345678901-1.json"),
        *("xunhealthy-1-1.json", "UNHEALTHY-1-1.json", "unhealthy-1-1.json\n", "notes.txt"),
        *("crash-1-1.json", ".crash-unfinished", "unhealthy-1-1-1.json", "unhealthy-+1-1.json"),
    ]
    for name in names:
        (place / name).write_text("")
    if not os.geteuid():
        (place / "unhealthy-1-6.json").touch()
        os.chown(place / "unhealthy-1-6.json", 65534, 65534)
    before = sorted(place.rglob("*"))
    mine = Settled()
    sweep()
    assert sorted(place.rglob("*")) == before
    assert precious.read_text() == ""
    keep(mine, ("a:1", INFO))
    keep(mine)
    assert sorted(place.rglob("*")) == before


def test_without_a_place_nothing_is_swept(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    place.touch()
    Settled().sweep()
    assert place.read_text() == ""
    assert not caplog.records


FORKS = """
import os, sys, time
import xoscar, xoscar_idle
from xoscar_idle.supervision import records
from xoscar_idle.supervision.sentinels import sentinels
from xoscar_idle.supervision.state import PoolInfo

xoscar_idle.install(idle_timeout=30, supervise="observe")
info = PoolInfo("a:1", 4711, 7, 2, "recovering", 1.0, 0.0, 1)

def done():
    while sentinels._writer is not None:
        time.sleep(0.01)

sentinels.open()
sentinels.keep([("m:1", info)])
done()
if not (child := os.fork()):
    sentinels.keep([])
    sentinels.keep([("m:1", info)])
    sentinels.keep([])
    xoscar_idle.uninstall()
    done()
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
print(os.getpid(), *sorted(path.name for path in records.own_directory().iterdir()), flush=True)
xoscar_idle.uninstall()
done()
print(*records.own_directory().iterdir())
"""


@pytest.mark.integration
def test_those_of_the_parent_of_a_forked_child_are_its_own(place: Path) -> None:
    done = run(sys.executable, "-c", FORKS, env=os.environ | {"XOSCAR_IDLE_TIMEOUT": "30"})
    first, second = done.stdout.splitlines()
    pid, *names = first.split()
    assert names == [f"unhealthy-{pid}-7.json"]
    assert second == ""


# -- around a kill ---------------------------------------------------------------------------------


@pytest.mark.integration
async def test_around_a_kill(acting: Any, place: Path, tmp_path: Path) -> None:
    """It says what becomes of the sub-pool, and goes when that is healthy."""
    acting(supervise_dir=place)
    async with crashing.pool(2) as pool:
        first, _ = sub_pools(pool)
        await xo.create_actor(Slow, f"{tmp_path}", uid="slow", address=first)
        await eventually_here(lambda: all(each.observed for each in xoscar_idle.pools()))
        assert there(place) == [], "none for a first start"
        go_on, pid = crashing.gated(pool), told(first).pid
        await error_of((await victim(first)).die("kill"))
        found = await says(place, "recovering")
        (path,) = there(place)
        info = told(first)
        assert path.name == f"unhealthy-{os.getpid()}-{info.lineage}.json"
        assert stat.S_IMODE(path.lstat().st_mode) == 0o600
        assert list(found) == FIELDS
        assert found == {
            "schema_version": 1,
            "owner": module.owner(os.getpid()),
            "main_address": pool.external_address,
            "address": first,
            "pid": pid,
            "lineage": info.lineage,
            "incarnation": 1,
            "label": None,
            "state": "recovering",
            "since": info.since,
            "reason": info.reason,
            "last_failure": info.last_failure,
            "restart_at": None,
        }
        assert "was killed by SIGKILL" in found["last_failure"]
        go_on.set()
        await eventually_here((tmp_path / "again").exists)
        found = await says(place, "starting")
        await eventually_here(lambda: read(place)["incarnation"] == 2)
        found = read(place)
        assert found["pid"] == told(first).pid != pid
        (tmp_path / "go on").touch()
        await revived(first)
        await gone(place)
        assert told(first).state == "healthy"
        assert any(each.startswith("crash-") for each in os.listdir(place)), "at the same place"


@pytest.mark.integration
async def test_one_that_is_stopped(acting: Any, place: Path) -> None:
    acting(supervise="observe", supervise_dir=place)
    async with crashing.pool(1) as pool:
        (address,) = sub_pools(pool)
        await eventually_here(lambda: told(address).observed)
        os.kill(told(address).pid, signal.SIGSTOP)
        try:
            found = await says(place, "unhealthy")
            assert found["reason"].startswith("stopped: by a signal")
            assert (found["incarnation"], found["last_failure"]) == (1, None)
        finally:
            os.kill(told(address).pid, signal.SIGCONT)
        await gone(place)
        assert told(address).state == "healthy"


@pytest.mark.integration
async def test_it_comes_before_the_next_look_is_due(
    acting: Any, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What happens is looked at at once: there may be no other look for as long as a test lasts."""
    monkeypatch.setattr(health, "BEAT", 2 * BOUND)
    acting(supervise_dir=place)
    async with crashing.pool(1) as pool:
        (address,) = sub_pools(pool)
        go_on = crashing.gated(pool)
        await error_of((await victim(address)).die("kill"))
        await says(place, "recovering")
        go_on.set()
        await revived(address)
        await gone(place)


ENDS = ["it is removed", "its main pool stops", "uninstall", "supervise=off", "given up"]


@pytest.mark.integration
@pytest.mark.parametrize("how", ENDS)
async def test_it_goes(acting: Any, place: Path, how: str) -> None:
    acting(supervise_dir=place, restart_limit="0/60", restart_cooldown=3600)
    async with crashing.pool(2) as pool:
        first, _ = sub_pools(pool)
        await error_of((await victim(first)).die("kill"))
        found = await says(place, "degraded")
        assert found["restart_at"] == pytest.approx(time.time() + 3600, abs=120)
        assert "it has failed once within 60 s" in found["reason"]
        if how == "it is removed":
            await bounded(pool.remove_sub_pool(first))
            await gone(place)
        elif how == "uninstall":
            xoscar_idle.uninstall()
            await gone(place)
            await revived(first)  # by xoscar's own monitor, which would start it while it stops
        elif how == "supervise=off":
            acting(supervise="off")
            await gone(place)
            acting(supervise="act")
            await says(place, "degraded")
        elif how == "given up":
            await bounded(xoscar_idle.apply("give_up", first))
            await says(place, "dead")
            acting(restart_limit="off")
            await bounded(xoscar_idle.apply("retry", first))
            await gone(place)
    await gone(place)
    assert not [each for each in os.listdir(place) if each.startswith(".")]


@pytest.mark.integration
async def test_none_where_nobody_supervises(acting: Any, place: Path) -> None:
    acting(supervise="off", supervise_dir=place)
    async with crashing.pool(1) as pool:
        (address,) = sub_pools(pool)
        go_on = crashing.gated(pool)
        pool.sub_processes[address].kill()
        await eventually_here(lambda: told(address).state == "recovering")
        assert side_thread._running is None, "nobody is there to write one"
        assert there(place) == []
        go_on.set()
        await eventually_here(lambda: told(address).state == "healthy")
        assert there(place) == []


@pytest.mark.integration
@pytest.mark.parametrize("make", [in_the_way, opened])
async def test_a_recovery_does_not_need_one(
    acting: Any, place: Path, caplog: pytest.LogCaptureFixture, make: Callable[[Path], None]
) -> None:
    make(place)
    acting(supervise_dir=place)
    async with crashing.pool(1) as pool:
        (address,) = sub_pools(pool)
        for incarnation in (2, 3):
            pool.sub_processes[address].kill()
            await revived(address)
            await eventually_here(lambda n=incarnation: told(address).incarnation == n)  # type: ignore[misc]
            await eventually_here(lambda: told(address).state == "healthy")
    told_of = [each for each in caplog.records if "no file tells" in each.getMessage()]
    assert len(told_of) == 1
    assert there(place) == []


@pytest.mark.integration
@pytest.mark.parametrize("how", ["uninstall", "supervise=off"])
async def test_a_look_that_is_under_way_leaves_none(
    acting: Any, place: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """The side thread goes on beside it, since it has something else to do, too."""
    acting(supervise_dir=place)
    within, go_on, kept = threading.Event(), threading.Event(), threading.Event()
    own = Supervisor.pools_down
    end = xoscar_idle.uninstall if how == "uninstall" else lambda: acting(supervise="off")

    def pools(self: Supervisor) -> list[PoolInfo]:
        found = own(self)
        looks = threading.current_thread().name == "xoscar-idle-side"
        if looks and any(each.is_down for each in found) and not within.is_set():
            within.set()
            go_on.wait(BOUND)
        return found

    def after() -> None:
        if go_on.is_set():
            kept.set()

    side_thread.every(3600, after)
    try:
        async with crashing.pool(1, auto_recover=False) as pool:
            (address,) = sub_pools(pool)
            monkeypatch.setattr(Supervisor, "pools_down", pools)
            await error_of((await victim(address)).die("kill"))
            await eventually_here(within.is_set)
            ending = threading.Thread(target=end)
            ending.start()
            ending.join(1)  # it may wait for the look
            go_on.set()
            await eventually_here(lambda: not ending.is_alive())
            side_thread.soon(after)
            await eventually_here(kept.is_set)  # what is done after the look has been done
            await eventually_here(lambda: sentinels._writer is None)
            assert there(place) == []
    finally:
        go_on.set()
        side_thread.never(after)


# -- main pools of other processes -----------------------------------------------------------------


@contextlib.contextmanager
def hosting(place: Path, n_process: int = 2, **settings: str) -> Iterator[crashing.Host]:
    """A main pool of another process, whose sub-pools are degraded when they die."""
    given: Any = {
        "XOSCAR_IDLE_TIMEOUT": "600",
        "XOSCAR_SUPERVISE": "act",
        "XOSCAR_SUPERVISE_DIR": f"{place}",
        "XOSCAR_RESTART_LIMIT": "0/60",
        "XOSCAR_RESTART_COOLDOWN": "3600",
        **settings,
    }
    with host(n_process=n_process, **given) as found:
        yield found


def pid_of(address: str) -> int:
    async def ask() -> int:
        found: int = await bounded((await victim(address)).pid())
        return found

    return asyncio.run(ask())


@pytest.mark.integration
@pytest.mark.usefixtures("package")
def test_what_a_killed_main_pool_has_left(place: Path, tmp_path: Path) -> None:
    """The next one there removes it; those of a main pool that lives stay."""
    foreign = {"unhealthy-1-1.json.bak": "mine", "unhealthy-x-1.json": "", "notes.txt": "mine"}
    with hosting(place) as living, hosting(place) as killed:
        for each in (living, killed):
            os.kill(pid_of(each.first), signal.SIGKILL)
        eventually(
            lambda: (
                [json.loads(p.read_text())["state"] for p in there(place)].count("degraded") == 2
            )
        )
        by_owner = {json.loads(p.read_text())["owner"]["pid"]: p for p in there(place)}
        assert set(by_owner) == {living.pid, killed.pid}
        assert by_owner[killed.pid].name == f"unhealthy-{killed.pid}-1.json"
        children = psutil.Process(killed.pid).children(recursive=True)
        os.kill(killed.pid, signal.SIGKILL)
        os.waitpid(killed.pid, 0)
        for name, text in foreign.items():
            (place / name).write_text(text)
        (tmp_path / "precious").write_text("")
        (place / f"unhealthy-{killed.pid}-2.json").symlink_to(tmp_path / "precious")
        assert by_owner[killed.pid].exists(), "nobody was there to remove it"
        with hosting(place):
            eventually(lambda: not by_owner[killed.pid].exists())
            assert by_owner[living.pid].exists()
            for name, text in foreign.items():
                assert (place / name).read_text() == text
            assert (place / f"unhealthy-{killed.pid}-2.json").is_symlink()
            assert (tmp_path / "precious").exists()
        for child in children:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()


@pytest.mark.integration
@pytest.mark.usefixtures("package")
@pytest.mark.parametrize("n_process", [1, 2])
def test_an_orderly_end_leaves_none(place: Path, n_process: int) -> None:
    """Also where the program ends as soon as it has stopped its main pool."""
    with hosting(place, n_process) as found:
        os.kill(pid_of(found.first), signal.SIGKILL)
        eventually(lambda: read(place).get("state") == "degraded")
    eventually(lambda: not lives(found.pid))
    assert there(place) == []


GARBAGE_FIRST = """
import asyncio, sys
import xoscar as xo
from xoscar_idle.supervision import supervisor
from xoscar_idle.supervision.sentinels import sentinels

async def main():
    pool = await xo.create_actor_pool("127.0.0.3", n_process=1)
    while not sentinels._swept or not supervisor.everywhere()[0]._looked:
        await asyncio.sleep(0.02)
    await pool.stop()

asyncio.run(main())
"""


@pytest.mark.integration
def test_a_main_pool_is_not_disturbed_by_garbage(place: Path) -> None:
    """All kinds of it at once."""
    place.mkdir(0o700)
    for number, text in enumerate(STALE.values()):
        content = text()
        data = content if isinstance(content, bytes) else content.encode()
        (place / f"unhealthy-1-{number}.json").write_bytes(data)
    environ = {"XOSCAR_SUPERVISE": "observe", "XOSCAR_SUPERVISE_DIR": f"{place}"}
    with started(
        *(sys.executable, "-c", GARBAGE_FIRST),
        env=os.environ | environ,
        stderr=subprocess.PIPE,
    ) as process:
        _, errors = process.communicate(timeout=BOUND)
    assert (process.returncode, errors) == (0, "")
    assert there(place) == []
    assert LARGEST < 1 << 20
