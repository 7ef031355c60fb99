"""A file for each sub-pool that is down, for scripts that look at files.

It is ``unhealthy-MAINPID-LINEAGE.json``, beside the crash records: there whole or not at all, and
for its owner alone. It goes when the sub-pool is well again, and when its main pool is stopped.
What a killed main pool leaves is removed by the next one: its owner is named by more than a number.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import re
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from ..logs import one_line
from . import records
from .state import PoolInfo

logger = logging.getLogger("xoscar_idle")

SCHEMA_VERSION = 1

LARGEST = 1 << 16
"""Bytes of a sentinel; what is larger is none of ours."""

TOLD = (
    *("address", "pid", "lineage", "incarnation", "label", "state", "since"),
    *("reason", "last_failure", "restart_at"),
)
"""What is told of a sub-pool: what does not change all the time."""

_NAME = re.compile(r"unhealthy-([0-9]{1,10})-([0-9]{1,10})\.json")

SAME = 2.0
"""Seconds by which two readings of the time of a process's creation may differ: the time of the
machine's start, on which it rests, moves when its clock is set."""

LOOK_EVERY = 10.0
"""Seconds after which it is looked whether they are there: somebody may have removed them."""

FOREIGN = 7 * 86400.0
"""Seconds after which one of another machine or container, which cannot be judged, is stale."""


class Sentinels:
    """Those of one process. They are written and removed in a thread of their own, which there is
    only as long as there is something to do: a disk may hang, and nothing else is to."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._frozen = False
        self._is_open = True
        self._writer: threading.Thread | None = None
        self._wanted: dict[int, str] = {}  # what they are to say, by lineage
        self._is_done, self._looked = True, 0.0
        # The writer's alone.
        self._written: dict[int, tuple[Path, str]] = {}
        self._swept = False
        self._warned: set[str] = set()

    def keep(self, down: Sequence[tuple[str, PoolInfo]]) -> None:
        """Let there be one for each of these, with the address of its main pool, and no others."""
        wanted = {pool.lineage: _text(main, pool) for main, pool in down}
        with self._lock:
            same = self._is_done and self._swept and wanted == self._wanted
            if wanted and time.monotonic() - self._looked >= LOOK_EVERY:
                same = False
            if self._is_open and not (self._frozen or same):
                self._begin(wanted)

    def _begin(self, wanted: dict[int, str]) -> None:
        self._wanted, self._is_done = wanted, False
        if self._writer is None:
            self._writer = threading.Thread(
                target=self._write, name="xoscar-idle-sentinels", daemon=True
            )
            self._writer.start()

    def open(self) -> None:
        """Let there be some from now on."""
        with self._lock:
            self._is_open = True

    def close(self) -> None:
        """Let there be none any more; nothing is begun for it where there was none."""
        with self._lock:
            self._is_open = False
            if not (self._frozen or (self._is_done and not self._wanted)):
                self._begin({})

    @property
    def is_idle(self) -> bool:
        """Whether there is none, nor one that is to be written or removed."""
        with self._lock:
            return self._is_done and not self._wanted

    def freeze(self) -> None:
        """Leave them as they are to be now, for whoever asks why this process has ended."""
        with self._lock:
            self._frozen = True
        self.settle()

    def settle(self, timeout: float | None = None) -> None:
        """Wait until what is to be written has been, or cannot be; at most so many seconds."""
        with self._lock:
            writer = self._writer
        if writer is not None:
            writer.join(timeout)

    def forget(self) -> None:
        """They are another process's."""
        self.__init__()  # type: ignore[misc]

    def _write(self) -> None:
        """Until all is as it is to be, or cannot be."""
        if not self._swept:
            self.sweep()
            self._swept = True
        while True:
            with self._lock:
                wanted, self._looked = dict(self._wanted), time.monotonic()
            works = self._put(wanted)
            with self._lock:
                if wanted == self._wanted:
                    self._is_done, self._writer = works, None
                    return

    def _put(self, wanted: Mapping[int, str]) -> bool:
        """Whether all of that has been written."""
        place: Path | None = None
        try:
            for number in self._written.keys() - wanted.keys():
                _remove(*self._written.pop(number))
            for number, text in wanted.items():
                path, before = self._written.get(number, (None, ""))
                if path is None or before != text or not path.exists():
                    place = records.own_directory()
                    path = place / f"unhealthy-{os.getpid()}-{number}.json"
                    records.put(text, path)
                    self._written[number] = (path, text)
        except Exception as error:  # whatever it is, it is tried again
            # Not all that it says: there is another name of a file in it each time.
            reason = getattr(error, "strerror", None) or one_line(error)
            told = reason if place is None else f"{place}: {reason}"
            if told not in self._warned:
                self._warned.add(told)
                logger.warning("no file tells that a sub-pool is down: %s", told)
            return False
        return True

    def sweep(self) -> None:
        """Remove what main pools have left that are gone."""
        try:
            found = list(records.own_directory().iterdir())
        except OSError:  # a warning tells of it when there is something to write
            return
        for path in found:
            if _NAME.fullmatch(path.name) and (known := records.own_file(path)) is not None:
                with contextlib.suppress(OSError):
                    if _is_stale(path, time.time() - known.st_mtime):
                        path.unlink()


def _text(main: str, pool: PoolInfo) -> str:
    told = {
        "schema_version": SCHEMA_VERSION,
        "owner": owner(os.getpid()),
        "main_address": main,
        **{name: getattr(pool, name) for name in TOLD},
    }
    return json.dumps(told, indent=2) + "\n"


def _remove(path: Path, text: str) -> None:
    """Unless it is another one's by now, as where containers share a directory."""
    with contextlib.suppress(OSError, ValueError):
        if path.read_text() == text:
            path.unlink()


def owner(pid: int) -> dict[str, Any]:
    """What tells a process apart from all that have, had or will have its number.

    Raises
    ------
    ProcessLookupError
        There is none of that number.
    """
    try:
        process = psutil.Process(pid)
        created, status = process.create_time(), process.status()
    except (psutil.Error, ValueError, OverflowError):
        raise ProcessLookupError(f"there is no process {pid}") from None
    if status == psutil.STATUS_ZOMBIE:  # nobody has asked yet how it has ended
        raise ProcessLookupError(f"process {pid} has ended")
    return {"pid": pid, "created": created, **_here()}


@functools.lru_cache(1)
def _here() -> dict[str, str]:
    """The machine or container, and its start: whose numbers of processes those are."""
    found = {"host": socket.gethostname(), "boot_id": "", "pid_namespace": ""}
    with contextlib.suppress(OSError):
        found["boot_id"] = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        found["pid_namespace"] = os.readlink("/proc/self/ns/pid")
    return found


def _is_stale(path: Path, age: float) -> bool:
    """Whether its owner is not there any more, or it is none of ours."""
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), "rb") as file:
            told = json.loads(file.read(LARGEST))["owner"]
        pid, created, boot_id = told["pid"], told["created"], told["boot_id"]
        here, there = _here(), (told["host"], told["pid_namespace"])
    except (OSError, TypeError, KeyError, ValueError, RecursionError):
        return True
    if type(pid) is not int or pid <= 0 or type(created) not in (int, float):
        return True
    if there[0] != here["host"]:
        return age > FOREIGN
    if boot_id != here["boot_id"]:
        return True
    if there[1] != here["pid_namespace"]:
        # A container of that name from before: its main process had the number that this one has.
        return pid == os.getpid() or age > FOREIGN
    try:
        return not abs(created - owner(pid)["created"]) <= SAME  # what is no number is not near
    except (ProcessLookupError, OverflowError):
        return True


sentinels = Sentinels()
"""Those of this process."""
