"""How a process ended: what signals are called, and what the kernel counts."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from xoscar_idle.supervision.evidence import Memory, ended, out_of_memory

from ..support.cgroups import memory_cgroup
from ..support.processes import line, started, tell
from ..support.waiting import BOUND

MIB, GIB = 1 << 20, 1 << 30


@pytest.mark.parametrize(
    ("exit_code", "name"),
    [
        (None, None),
        (0, None),
        (233, None),
        (-9, "SIGKILL"),
        (-6, "SIGABRT"),
        (-signal.SIGRTMIN, "SIGRTMIN"),
        (-signal.SIGRTMIN - 3, "SIGRTMIN+3"),
        (-signal.SIGRTMAX, "SIGRTMAX"),
        (-77, "signal 77"),
        (-(10**30), f"signal {10**30}"),
    ],
)
def test_the_names_of_signals(exit_code: int | None, name: str | None) -> None:
    assert ended(exit_code) == name


# What the kernel says, in trees of files

V1 = "35 31 0:32 {root} /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory"
V2 = "41 31 0:38 {root} /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate"
UNIFIED = "41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw"
OTHERS = "24 1 0:22 / /proc rw - proc proc rw\n30 31 0:27 / /sys/fs/cgroup/cpu rw - cgroup c rw,cpu"
STATUS = (
    "Name:\tpython\nVmHWM:\t  900 kB\nVmRSS:\t    2048 kB\nSigPnd:\t{0:016x}\nShdPnd:\t{1:016x}"
)


def tree(root: Path, **files: object) -> Path:
    """Files of a system; process 7 lives and /proc/vmstat counts 5, unless they say otherwise."""
    given = {"proc/7/status": STATUS.format(0, 0), "proc/vmstat": "oom_kill 5", **files}
    for name, text in given.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
    return root


def v1(root: str = "/", path: str = "/pods/a") -> dict[str, object]:
    mounts = f"{OTHERS}\n{V1.format(root=root)}\n{UNIFIED}"
    return {
        "proc/self/mountinfo": mounts,
        "proc/7/cgroup": f"9:name=systemd:/s\n5:memory:{path}\n3:cpu,cpuacct:/x\n0::/other",
    }


def v2(root: str = "/", path: str = "/pods/a") -> dict[str, object]:
    mounts = f"{OTHERS}\n{V2.format(root=root)}"
    return {"proc/self/mountinfo": mounts, "proc/7/cgroup": f"0::{path}"}


def test_version_1(tmp_path: Path) -> None:
    memory = "sys/fs/cgroup/memory"
    root = tree(
        tmp_path,
        **v1(),
        **{
            f"{memory}/pods/a/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 3",
            f"{memory}/pods/a/memory.limit_in_bytes": 9223372036854771712,
            f"{memory}/pods/memory.limit_in_bytes": 3 * GIB,
            f"{memory}/memory.limit_in_bytes": 9223372036854771712,
            "sys/fs/cgroup/unified/other/memory.events": "oom_kill 99",
        },
    )
    seen = Memory.of(7, root)
    assert seen.events == root / memory / "pods/a/memory.oom_control"
    assert (seen.oom_kill, seen.limit) == (3, 3 * GIB)
    assert (seen.vmstat, seen.resident) == (5, 2 * MIB)


def test_version_2(tmp_path: Path) -> None:
    cgroup = "sys/fs/cgroup"
    root = tree(
        tmp_path,
        **v2(),
        **{
            f"{cgroup}/pods/a/memory.events": "low 0\nmax 9\noom 4\noom_kill 3\noom_group_kill 1",
            f"{cgroup}/pods/a/memory.max": 4 * GIB,
            f"{cgroup}/pods/memory.max": "max",
        },
    )
    seen = Memory.of(7, root)
    assert seen.events == root / cgroup / "pods/a/memory.events"
    assert (seen.oom_kill, seen.limit) == (3, 4 * GIB)


def test_one_above_counts_for_a_cgroup_without_the_controller(tmp_path: Path) -> None:
    cgroup = "sys/fs/cgroup/user.slice"
    files = {f"{cgroup}/memory.events": "oom_kill 2", f"{cgroup}/memory.max": "max"}
    root = tree(tmp_path, **v2(path="/user.slice/a b/c"), **files)
    (root / cgroup / "a b/c").mkdir(parents=True)
    seen = Memory.of(7, root)
    assert seen.events == root / cgroup / "memory.events"
    assert (seen.oom_kill, seen.limit) == (2, None)


def test_memory_of_version_2_beside_version_1(tmp_path: Path) -> None:
    files = {
        "proc/self/mountinfo": f"{OTHERS}\n{UNIFIED}",
        "proc/7/cgroup": "3:cpu,cpuacct:/x\n1:name=systemd:/y\n0::/a",
        "sys/fs/cgroup/unified/a/memory.events": "oom_kill 1",
    }
    seen = Memory.of(7, tree(tmp_path, **files))
    assert seen.events == tmp_path / "sys/fs/cgroup/unified/a/memory.events"
    assert seen.oom_kill == 1


@pytest.mark.parametrize(
    ("mounted", "path", "below"),
    [
        ("/", "/", "."),  # a namespace, which shows its own root
        ("/docker/c1", "/docker/c1", "."),  # none, and the container's own part is mounted
        ("/docker/c1", "/docker/c1/sub", "sub"),
        ("/..", "/../x", "x"),  # a namespace, and more than it is mounted
        (r"/a\040b", "/a b/c", "c"),
    ],
)
@pytest.mark.parametrize("version", [1, 2])
def test_a_part_of_the_tree_is_mounted(
    tmp_path: Path, version: int, mounted: str, path: str, below: str
) -> None:
    if version == 1:
        file, given = "sys/fs/cgroup/memory/{}/memory.oom_control", v1(mounted, path)
    else:
        file, given = "sys/fs/cgroup/{}/memory.events", v2(mounted, path)
    root = tree(tmp_path, **given, **{file.format(below): "oom_kill 8"})
    assert Memory.of(7, root).oom_kill == 8


@pytest.mark.parametrize("path", ["/../x", "/docker/c1", "/gone (deleted)", "/a/../..", ""])
def test_a_cgroup_that_is_not_to_be_seen_here(tmp_path: Path, path: str) -> None:
    """What is mounted has files of the same names, of another cgroup."""
    files = {
        "sys/fs/cgroup/memory.events": "oom_kill 9",
        "sys/fs/cgroup/memory.max": GIB,
        "sys/fs/x/memory.events": "oom_kill 9",
    }
    seen = Memory.of(7, tree(tmp_path, **v2(path=path), **files))
    assert (seen.events, seen.oom_kill, seen.limit, seen.vmstat) == (None, None, None, 5)


def test_nothing_is_there(tmp_path: Path) -> None:
    assert Memory.of(7, tmp_path) == Memory(7, None, None, None, None, None, tmp_path)


@pytest.mark.parametrize(
    "text",
    ["", "oom_kill", "oom_kill x", "oom_kill -1", "oom_kill " + 5000 * "9", "\xff\n0::", ":"],
)
def test_garbage_is_unknown(tmp_path: Path, text: str) -> None:
    files = {
        "proc/vmstat": text,
        "proc/7/status": f"VmRSS: {text}\nSigPnd: {text}",
        "sys/fs/cgroup/pods/a/memory.events": text,
        "sys/fs/cgroup/pods/a/memory.max": text,
    }
    seen = Memory.of(7, tree(tmp_path / "counts", **v2(), **files))
    assert (seen.oom_kill, seen.limit, seen.vmstat, seen.resident) == (None, None, None, None)
    lines = {"proc/self/mountinfo": text, "proc/7/cgroup": text}
    assert Memory.of(7, tree(tmp_path / "lines", **lines)).events is None


def test_what_remains_of_a_cgroup_that_has_been_removed(tmp_path: Path) -> None:
    cgroup = tmp_path / "sys/fs/cgroup/pods/a"
    files = {"memory.events": "oom_kill 3", "memory.max": GIB}
    root = tree(tmp_path, **v2(), **{f"sys/fs/cgroup/pods/a/{n}": t for n, t in files.items()})
    before = Memory.of(7, root)
    for name in files:
        (cgroup / name).unlink()
    (root / "proc/7/status").unlink()
    after = before.again()
    assert (after.oom_kill, after.limit, after.resident) == (None, GIB, None)


def test_the_limit_at_the_end_is_told(tmp_path: Path) -> None:
    files = {"memory.events": "oom_kill 3", "memory.max": GIB}
    root = tree(tmp_path, **v2(), **{f"sys/fs/cgroup/pods/a/{n}": t for n, t in files.items()})
    before = Memory.of(7, root)
    (root / "sys/fs/cgroup/pods/a/memory.max").write_text(f"{2 * GIB}")
    (root / "proc/7/status").unlink()
    assert before.again().limit == 2 * GIB


@pytest.mark.parametrize(("thread", "process"), [(1 << 8, 0), (0, 1 << 8)])
def test_a_process_that_is_being_killed_is_no_more_looked_at(
    tmp_path: Path, thread: int, process: int
) -> None:
    """The kill has been counted: a look at it alive is to have the count from before."""
    root = tree(tmp_path)
    first = Memory.of(7, root)
    tree(root, **{"proc/vmstat": "oom_kill 6", "proc/7/status": STATUS.format(1 << 9, 1 << 7)})
    second = first.latest()
    assert (second.vmstat, second.resident) == (6, 2 * MIB)
    tree(root, **{"proc/vmstat": "oom_kill 7", "proc/7/status": STATUS.format(thread, process)})
    assert second.latest() is second
    assert out_of_memory(second, second.again(), -9) is not None


# What follows from it

HERE = Path("/cgroup/memory.events")
WHOLE = "the kernel killed a process for want of memory meanwhile: oom_kill of /proc/vmstat"


def seen(
    oom_kill: int | None,
    vmstat: int | None,
    resident: int | None = None,
    limit: int | None = None,
) -> Memory:
    return Memory(7, HERE, oom_kill, limit, vmstat, resident)


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        (
            seen(3, 9, int(30.1 * GIB)),
            seen(4, 10, limit=32 * GIB),
            "cgroup oom_kill 3 → 4, last seen at 30.1 GiB of 32.0 GiB",
        ),
        (seen(3, 9, 300 * MIB), seen(4, 10), "cgroup oom_kill 3 → 4, last seen at 300.0 MiB"),
        (seen(3, 9), seen(4, 9, limit=GIB), "cgroup oom_kill 3 → 4, with a limit of 1.0 GiB"),
        (seen(3, None), seen(5, None), "cgroup oom_kill 3 → 5"),
        (seen(None, 3, GIB), seen(None, 4), f"{WHOLE} 3 → 4, last seen at 1.0 GiB"),
        (seen(3, 3), seen(None, 4), f"{WHOLE} 3 → 4"),  # the cgroup has been removed
        (seen(3, 9, GIB), seen(3, 10), None),  # another cgroup's process was killed
        (seen(3, 9, GIB), seen(3, 9), None),
        (seen(None, 9, GIB), seen(None, 9), None),
        (seen(None, None, GIB), seen(None, None), None),
        (seen(3, None), seen(0, None), None),  # another cgroup of the same name
    ],
)
def test_the_evidence(before: Memory, after: Memory, told: str | None) -> None:
    assert out_of_memory(before, after, -9) == told


@pytest.mark.parametrize("exit_code", [None, 0, 1, 137, -15, -11])
def test_only_what_was_killed_by_sigkill_can_be_out_of_memory(exit_code: int | None) -> None:
    assert out_of_memory(seen(3, 3), seen(4, 4), exit_code) is None


# For real

HOG = """
import os, sys
with open(sys.argv[1] + "/cgroup.procs", "w") as procs:
    procs.write(str(os.getpid()))
print("inside", flush=True)
sys.stdin.readline()
hoard = [b"x" * (1 << 20) for _ in range(1 << 10)]
"""


@pytest.mark.integration
def test_a_process_that_runs_out_of_memory() -> None:
    with (
        memory_cgroup(64 * MIB) as cgroup,
        started(sys.executable, "-c", HOG, f"{cgroup}", stderr=subprocess.DEVNULL) as process,
    ):
        assert line(process) == "inside"
        before = Memory.of(process.pid)
        assert before.events is not None
        assert before.events.parent == cgroup
        assert (before.oom_kill, before.limit) == (0, 64 * MIB)
        assert before.resident is not None
        tell(process, "go")
        assert process.wait(BOUND) == -signal.SIGKILL
        after = before.again()
        assert after.resident is None
        told = out_of_memory(before, after, process.returncode)
        assert told is not None
        assert re.fullmatch(r"cgroup oom_kill 0 → 1, last seen at [\d.]+ MiB of 64\.0 MiB", told), (
            told
        )


@pytest.mark.integration
def test_a_process_that_somebody_kills_while_another_runs_out_of_memory() -> None:
    """The kernel counts for the machine, too; the cgroup of the killed one knows better."""
    hog = (sys.executable, "-c", HOG)
    with (
        memory_cgroup(64 * MIB) as one,
        memory_cgroup(64 * MIB) as two,
        started(*hog, f"{one}", stderr=subprocess.DEVNULL) as hungry,
        started(*hog, f"{two}") as killed,
    ):
        assert [line(hungry), line(killed)] == ["inside", "inside"]
        before = Memory.of(killed.pid)
        tell(hungry, "go")
        assert hungry.wait(BOUND) == -signal.SIGKILL
        killed.kill()
        assert killed.wait(BOUND) == -signal.SIGKILL
        after = before.again()
        assert (before.vmstat or 0) < (after.vmstat or 0)
        assert out_of_memory(before, after, killed.returncode) is None


@pytest.mark.integration
@pytest.mark.skipif(sys.platform != "linux", reason="the kernel tells nothing")
def test_a_process_that_has_ended() -> None:
    """Also while nobody has asked for its exit status, and after that."""
    with started(sys.executable, "-c", "input()") as process:
        before = Memory.of(process.pid)
        assert before.resident is not None
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert before.latest() is before
        assert before.again().resident is None
        process.wait(BOUND)
        assert before.latest() is before
        assert out_of_memory(before, before.again(), process.returncode) is None
