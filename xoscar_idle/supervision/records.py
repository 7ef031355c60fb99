"""Crash records in files, so that what is known of a death outlives the main pool.

A record is ``crash-MILLISECONDS-PID.json``, with the Unix time of the death, in a directory that
only its owner can enter, named by ``XOSCAR_SUPERVISE_DIR`` or among the state of the user. It is
there whole or not at all, and the newest hundred stay.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import os
import re
import stat
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from .. import side_channel, values
from ..logs import one_line
from .record import CrashRecord

logger = logging.getLogger("xoscar_idle")

DIRECTORY = "XOSCAR_SUPERVISE_DIR"

KEPT = 100
"""Records; older ones are removed."""

LARGEST = 1 << 20
"""Bytes of a record; what is larger is none of ours."""

LONGEST_PART = LARGEST // 32
"""Characters of the stacks and of the stderr in a record that is too large: JSON takes up to twelve
bytes for each of them."""

UNFINISHED = ".crash-"
"""How the names of files begin that are being written."""

LEFT = 3600.0
"""Seconds after which nobody writes such a file any more: its writer was killed."""

_NAME = re.compile(r"crash-([0-9]{1,16})-([0-9]{1,10})\.json")


# Where they are


def directory(environ: Mapping[str, str] = os.environ) -> Path:
    """Where this process can put records, made if need be.

    Raises
    ------
    ValueError
        ``XOSCAR_SUPERVISE_DIR`` is not the absolute path of a directory.
    OSError
        There is no such place; the message names each that was tried, and what is wrong with it.
    """
    complaints = []
    for place in directories(environ):
        wrong = _wrong_with(place)
        if wrong is None:
            return place
        complaints.append(f"{place} {wrong}")
    raise OSError(f"{'; '.join(complaints)}; {DIRECTORY} can name another directory")


def own_directory() -> Path:
    """That of what this process keeps; raises OSError as :func:`directory` does.

    A bad variable has cost the warning of its setting, which says that the default is used.
    """
    try:
        return directory()
    except ValueError:
        return directory({**os.environ, DIRECTORY: ""})


def directories(environ: Mapping[str, str] = os.environ) -> list[Path]:
    """Where records can be, the preferred place first; raises as :func:`directory` does.

    There are several: a service and the shell of its operator often differ in what they may write.
    """
    if sys.platform == "win32":
        raise OSError("there are no private directories for crash records on this platform")
    given = environ.get(DIRECTORY, "").strip()
    if given and not given.startswith("/"):
        raise ValueError(
            f"{DIRECTORY}={values.shown(given)} is not the absolute path of a directory"
        )
    if given:
        return [Path(given)]
    state = _state(environ)
    return [*([state / "xoscar-idle"] if state else []), *side_channel.in_temporary()]


def _state(environ: Mapping[str, str]) -> Path | None:
    """Where programs of this user keep what is to outlive them; None if there is no such place."""
    state = Path(environ.get("XDG_STATE_HOME", ""))
    if state.is_absolute():  # the standard has others ignored
        return state
    home = _home(environ)
    try:
        # With sudo it may be another user's, whose programs could not use what is made there.
        is_own = home.is_absolute() and home.stat().st_uid == os.geteuid()
    except OSError:
        return None
    return home / ".local/state" if is_own else None


def _home(environ: Mapping[str, str]) -> Path:
    """The home directory, also for a service that is not told of it; no absolute path: none."""
    if not environ.get("HOME"):
        import pwd

        with contextlib.suppress(KeyError):  # a user without a name, as containers have
            return Path(pwd.getpwuid(os.geteuid()).pw_dir)
    return Path(environ.get("HOME", ""))


def _wrong_with(place: Path) -> str | None:
    """Why ``place``, which is made if need be, is none for records; None if it is one."""
    try:
        for above in reversed(place.parents):
            if not above.exists():
                above.mkdir(0o700, exist_ok=True)
    except OSError as error:
        return f"cannot be made: {_told(error)}"
    return side_channel.wrong_with(place)


# Writing

_warned: set[str] = set()


def write(record: CrashRecord) -> str | None:
    """The path of the new file; None if there is none: what prevents it costs one warning."""
    try:
        return f"{_written(record)}"
    except Exception as error:  # whatever it is, those who wait for the record are to be told of it
        told = one_line(error)
        if told not in _warned:
            _warned.add(told)
            logger.warning("no crash record: %s", told)
        return None


def _written(record: CrashRecord) -> Path:
    place = own_directory()
    path = place / _name(record)
    text = _bounded(dataclasses.replace(record, record=f"{path}"))
    try:
        put(text, path)
    except OSError as error:
        told = f"{place}: {_told(error)}; {DIRECTORY} can name another directory"
        raise OSError(told) from None
    with contextlib.suppress(OSError):
        _tidy(place)
    return path


def _name(record: CrashRecord) -> str:
    name = f"crash-{math.floor(record.when * 1000)}-{record.pid}.json"
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"process {values.shown(record.pid)} cannot have died at {values.shown(record.when)}"
        )
    return name


def _bounded(record: CrashRecord) -> str:
    text = record.to_json()
    if len(text) > LARGEST:
        stacks, log_tail = record.stacks[:LONGEST_PART], record.log_tail[-LONGEST_PART:]
        text = dataclasses.replace(record, stacks=stacks, log_tail=log_tail).to_json()
    if len(text) > LARGEST:
        raise ValueError(f"that of process {record.pid} would have more than {LARGEST} bytes")
    return text


def put(text: str, path: Path) -> None:
    """Write a file whole; where there is a link of that name, the file takes its place."""
    # A new one, with mode 600.
    fd, unfinished = tempfile.mkstemp(prefix=UNFINISHED, dir=path.parent)
    try:
        with open(fd, "w", encoding="ascii") as file:  # as JSON is here
            file.write(text)
        os.replace(unfinished, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(unfinished)
        raise


def _tidy(place: Path) -> None:
    """Remove the oldest records, and what killed writers left."""
    left = [
        path
        for path in place.glob(f"{UNFINISHED}*")
        if (found := own_file(path)) and time.time() - found.st_mtime > LEFT
    ]
    for path in (*_records(place)[:-KEPT], *left):
        with contextlib.suppress(OSError):  # another process has been faster
            path.unlink()


# Reading


def read_all(environ: Mapping[str, str] = os.environ) -> tuple[list[CrashRecord], list[str]]:
    """The records that there are, the oldest first, and a line for whatever could not be read."""
    records: list[CrashRecord] = []
    complaints: list[str] = []
    try:
        places = [each for each in directories(environ) if os.path.lexists(each)]
    except (OSError, ValueError) as error:
        return [], [one_line(error)]
    for place in places:
        if not side_channel.is_private(place):
            complaints.append(f"{place} is not {side_channel.PRIVATE}")
            continue
        try:
            found = _records(place)
        except OSError as error:
            complaints.append(f"{place}: {_told(error)}")
            continue
        for path in found:
            try:
                records += _read(path)
            except FileNotFoundError:  # removed meanwhile, as the oldest
                continue
            except (OSError, ValueError) as error:
                complaints.append(f"{path}: {_told(error)}")
    return sorted(records, key=lambda record: record.when), complaints


def _records(place: Path) -> list[Path]:
    """What is called as a record and is a file of this user, the oldest first."""
    named = [(found, path) for path in place.iterdir() if (found := _NAME.fullmatch(path.name))]
    named.sort(key=lambda each: (int(each[0][1]), int(each[0][2])))
    return [path for _, path in named if own_file(path)]


def own_file(path: Path) -> os.stat_result | None:
    """What is known of a file of this user; None if it is none, a link above all."""
    try:
        found = path.lstat()
    except OSError:
        return None
    return found if stat.S_ISREG(found.st_mode) and found.st_uid == os.geteuid() else None


def _read(path: Path) -> list[CrashRecord]:
    """The record in a file; none if the file is too large for one.

    Raises
    ------
    ValueError
        What is in it is no record.
    """
    with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), "rb") as file:
        text = file.read(LARGEST + 1)
    if len(text) > LARGEST:
        return []
    try:
        record = CrashRecord.from_json(text)
        if _name(record) != path.name or type(record.pid) is not int:
            raise ValueError("time or process are not those of its name")
    except Exception as error:  # anybody may have written anything
        told = one_line(error).removeprefix("no crash record: ")
        raise ValueError(f"no crash record: {told}") from None
    return [dataclasses.replace(record, record=f"{path}")]


def _told(error: BaseException) -> str:
    """What it says, without the path, which is told before."""
    return getattr(error, "strerror", None) or one_line(error)
