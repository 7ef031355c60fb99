"""A memory cgroup of a test's own, where this machine lets one be made. Needs root."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from xoscar_idle.supervision.evidence import Memory

from .waiting import eventually

_numbers = itertools.count(1)


@contextlib.contextmanager
def memory_cgroup(limit: int) -> Iterator[Path]:
    """The directory of a new memory cgroup of so many bytes, without swap.

    A process enters it by writing its pid into ``cgroup.procs``, and so do its children to come.
    What is in it at the end is killed. Skips the test where there can be none.
    """
    directory = _made()
    try:
        _limit(directory, limit)
        yield directory
    finally:
        eventually(lambda: _emptied(directory))
        directory.rmdir()


def _made() -> Path:
    """Within the one of this process or, as version 2 has processes in leaves only, further up."""
    events = Memory.of(os.getpid()).events
    above = events.parents if events else [Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/unified")]
    refused = "there is none"
    for parent in above:
        made = parent / f"test-of-xoscar-idle-{os.getpid()}-{next(_numbers)}"
        if not (parent / "cgroup.procs").exists():
            continue
        try:
            made.mkdir()
        except OSError as error:
            refused = f"{error}"
            continue
        if any((made / name).exists() for name in ("memory.max", "memory.limit_in_bytes")):
            return made
        made.rmdir()
        refused = f"{parent} has no memory controller for those in it"
    pytest.skip(f"no memory cgroup can be made here: {refused}")


def _limit(directory: Path, limit: int) -> None:
    if (directory / "memory.max").exists():
        (directory / "memory.max").write_text(f"{limit}")
        swap, without = directory / "memory.swap.max", 0
    else:
        (directory / "memory.limit_in_bytes").write_text(f"{limit}")
        swap, without = directory / "memory.memsw.limit_in_bytes", limit  # memory and swap
    if swap.exists():
        swap.write_text(f"{without}")


def _emptied(directory: Path) -> bool:
    inside = (directory / "cgroup.procs").read_text().split()
    for pid in inside:
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGKILL)
    return not inside
