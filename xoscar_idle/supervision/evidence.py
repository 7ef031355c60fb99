"""How a process ended, as evidence and never as a guess.

An exit status names the signal, not its sender. That the kernel sent it for want of memory is told
by counters of its own: that of the process's memory cgroup, or else that of the whole machine.
What a system does not tell is None.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from .. import values

UNLIMITED = 1 << 60
"""Bytes. Without a limit, version 1 tells the largest number of whole pages below 2**63."""


def ended(exit_code: int | None) -> str | None:
    """The name of the signal that ended a process; None if none did, or nothing is known."""
    if exit_code is None or exit_code >= 0:
        return None
    number = -exit_code
    with contextlib.suppress(ValueError):
        return signal.Signals(number).name
    first, last = (getattr(signal, name, 0) for name in ("SIGRTMIN", "SIGRTMAX"))
    return f"SIGRTMIN+{number - first}" if first < number < last else f"signal {number}"


def handles(pid: int, number: int) -> bool:
    """Whether a process has a handler for a signal, be it of Python or not, or ignores it."""
    status = _read(Path(f"/proc/{pid}/status"))
    return any(
        re.fullmatch("[0-9a-f]{1,16}", mask := _word(name, status)) is not None
        and bool(int(mask, 16) >> (number - 1) & 1)
        for name in ("SigCgt:", "SigIgn:")
    )


@dataclass(frozen=True)
class Memory:
    """What the kernel says of memory for one process at one moment. Sizes are in bytes."""

    pid: int
    events: Path | None
    """The file of its memory cgroup that counts kills: the directory is the cgroup."""
    oom_kill: int | None
    """How many processes of the cgroup were killed for want of memory, since it was made."""
    limit: int | None
    """What the cgroup may have: its own limit, or a lower one of those that it is in."""
    vmstat: int | None
    """How many were killed so on the whole machine."""
    resident: int | None
    """None once the process has gone, or is being killed."""
    root: Path = Path("/")
    """Where the files of the system are."""

    @classmethod
    def of(cls, pid: int, root: Path = Path("/")) -> Memory:
        """That of a process now."""
        events = _events(pid, root)
        limit = None if events is None else _limit(events)
        return cls(pid, events, None, limit, None, None, root).again()

    def again(self) -> Memory:
        """The same now, at the cost of three small files; the process may have gone."""
        # Counts come first: with the process alive after that, none of them is of its end.
        oom_kill = None if self.events is None else _count(_read(self.events))
        vmstat = _count(_read(self.root / "proc/vmstat"))
        resident = _resident(_read(self.root / f"proc/{self.pid}/status"))
        limit = self.limit
        if resident is None and self.events is not None and oom_kill is not None:
            limit = _limit(self.events)  # it is told of the end, and may have been changed
        return dataclasses.replace(
            self, oom_kill=oom_kill, limit=limit, vmstat=vmstat, resident=resident
        )

    def latest(self) -> Memory:
        """The same now, or this one if the process has gone or is being killed.

        The kernel counts a kill at its beginning, and a large process takes seconds to end: what is
        kept by this, from look to look, was counted before.
        """
        now = self.again()
        return self if now.resident is None else now


def out_of_memory(before: Memory, after: Memory, exit_code: int | None) -> str | None:
    """The evidence that the kernel killed a process for want of memory, in a few words, or None.

    Parameters
    ----------
    before
        The last look at it alive: :meth:`Memory.latest`.
    after
        ``before.again()``, once it has ended.
    """
    if ended(exit_code) != "SIGKILL":
        return None
    what, rise = "cgroup oom_kill", _rise(before.oom_kill, after.oom_kill)
    if rise is None:
        what = "the kernel killed a process for want of memory meanwhile: oom_kill of /proc/vmstat"
        rise = _rise(before.vmstat, after.vmstat)
    return f"{what} {rise}{_seen(before.resident, after.limit)}" if rise else None


def _rise(before: int | None, after: int | None) -> str | None:
    """From what to what a count rose; empty: it did not; None: that is unknown."""
    if before is None or after is None:
        return None
    return f"{before} → {after}" if after > before else ""


def _seen(resident: int | None, limit: int | None) -> str:
    if resident is None:
        return "" if limit is None else f", with a limit of {_size(limit)}"
    return f", last seen at {_size(resident)}" + ("" if limit is None else f" of {_size(limit)}")


def _size(number: int) -> str:
    power = 30 if number >= 1 << 30 else 20
    return f"{number / (1 << power):.1f} {'GiB' if power == 30 else 'MiB'}"


# Where the kernel tells it


def _events(pid: int, root: Path) -> Path | None:
    """The file that counts the kills in the memory cgroup of a process."""
    lines = os.fsdecode(_read(root / f"proc/{pid}/cgroup")).split("\n")
    paths: dict[str, str] = {}
    for line in lines:
        _, _, told = line.partition(":")
        controllers, _, path = told.partition(":")
        if path:
            paths.update(dict.fromkeys(controllers.split(","), path))
    if "memory" in paths:  # of version 1; beside it there may be one of version 2, without memory
        for cgroup in _directories(paths["memory"], root, "cgroup"):
            return cgroup / "memory.oom_control"
    elif "" in paths:
        for cgroup in _directories(paths[""], root, "cgroup2"):
            # One without the controller counts for the next above that has it.
            files = (each / "memory.events" for each in (cgroup, *cgroup.parents))
            return next((each for each in files if each.exists()), None)
    return None


def _directories(path: str, root: Path, kind: str) -> Iterator[Path]:
    """Where the cgroup ``path`` is to be found in file systems of a kind, with memory."""
    for line in os.fsdecode(_read(root / "proc/self/mountinfo")).split("\n"):
        mount, _, system = line.partition(" - ")
        mounted, given = mount.split(" "), system.split(" ")
        if len(mounted) < 5 or given[0] != kind:
            continue
        if kind == "cgroup" and "memory" not in given[-1].split(","):
            continue
        with contextlib.suppress(ValueError):  # what is mounted there is another part of the tree
            below = PurePosixPath(path).relative_to(_unescaped(mounted[3]))
            found = root / _unescaped(mounted[4]).lstrip("/") / below
            if ".." not in below.parts and found.is_dir():
                yield found


def _unescaped(name: str) -> str:
    """A name as it is; /proc/self/mountinfo has spaces and the like in octal."""
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), name)


def _limit(events: Path) -> int | None:
    name = "memory.max" if events.name == "memory.events" else "memory.limit_in_bytes"
    found = []
    for cgroup in events.parents:
        if not (text := _read(cgroup / name)):
            break  # above all cgroups
        number = values.whole(os.fsdecode(text), most=UNLIMITED)
        if number is not None:
            found.append(number)
    return min(found, default=None)


def _resident(status: bytes) -> int | None:
    if any(_has_kill(_word(name, status)) for name in ("SigPnd:", "ShdPnd:")):
        return None
    kilobytes = values.whole(_word("VmRSS:", status), most=UNLIMITED)
    return None if kilobytes is None else kilobytes * 1024


def _has_kill(pending: str) -> bool:
    """Whether SIGKILL, which is 9 everywhere, is in a set of signals as /proc has them."""
    return re.fullmatch("[0-9a-f]{1,16}", pending) is not None and bool(int(pending, 16) & 1 << 8)


def _count(text: bytes) -> int | None:
    return values.whole(_word("oom_kill ", text), most=UNLIMITED)


def _word(name: str, text: bytes) -> str:
    """The first word after the name in the line that begins with it."""
    _, _, rest = (b"\n" + text).partition(f"\n{name}".encode())
    return os.fsdecode(next(iter(rest.partition(b"\n")[0].split()), b""))


def _read(path: Path) -> bytes:
    """A whole file; nothing if there is none, or it is not for us."""
    try:
        fd = os.open(path, os.O_RDONLY)
    except OSError:
        return b""
    try:  # a file of /proc comes in pages
        return b"".join(iter(lambda: os.read(fd, 1 << 16), b""))
    except OSError:  # the process or the cgroup has just gone
        return b""
    finally:
        os.close(fd)
