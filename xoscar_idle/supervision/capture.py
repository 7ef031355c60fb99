"""The stderr of a sub-pool as a file, from which its main pool copies it on to its own.

A file and no pipe: that would break with the main pool, lose the last words, and let the process
wait for a main pool that is slow or stopped. The process appends, one thread of the main pool
copies for all of them, and what has been copied is given back to the disk, but for the end.

Whoever has such a file open, to write or to copy it, holds a shared lock on it (``flock``), which
the kernel takes away with the last descriptor. So a file on which an exclusive one can be had is
nobody's, whichever pids are in use again, or belong to another container or host.
"""

from __future__ import annotations

import atexit
import contextlib
import enum
import errno
import itertools
import logging
import os
import re
import select
import stat
import sys
import threading
import time
from pathlib import Path

import psutil

from ..locks import process_lock
from ..logs import one_line
from . import holes

logger = logging.getLogger("xoscar_idle")

TICK = 0.1
"""Seconds between two looks at what has arrived."""

TIMEOUT = 2.0
"""Seconds for which somebody waits at most until what is left has been copied."""

GRACE = 3 * TICK
"""Seconds that the copier has from then on to close and remove."""

TAIL = 4096
"""Bytes that are told of the end."""

KEPT = 64 * 1024
"""Bytes at the end of what has been copied that stay on the disk; so much is given back at once."""

CHUNK = 64 * 1024
"""Bytes of one process that are copied before it is another's turn."""

BACKLOG = 64 * 1024 * 1024
"""Bytes that may wait to be copied; what stderr is slower to take is left out, and that is told.

Also the size to which a file may grow where nothing can be given back.
"""

PIECE = getattr(select, "PIPE_BUF", 512)
"""Bytes that a pipe takes as a whole, and without waiting where it says that it takes any."""

NAME = re.compile(r"stderr-(\d+)-(\d+)\.log")

_lock = process_lock()
_numbers = itertools.count(1)


class Next(enum.IntEnum):
    """What is to be done after a look."""

    REST = 0
    GO_ON = 1
    """There is more to copy."""
    WAIT = 2
    """There is more to copy, but stderr does not take it now."""


class Capture:
    """The file that is the stderr of one process, followed from :meth:`open` to :meth:`finish`."""

    def __init__(
        self, path: Path, reader: int, writer: int | None = None, position: int = 0
    ) -> None:
        self.path = path
        self._reader: int | None = reader
        self._writer = writer
        self._position = position
        self._given_back = 0
        self._punching = True
        self._size = position
        self._held = -1
        self._waits = False
        self._left_out = 0
        self._before = b""
        self._deadline: float | None = None
        self._follows = True
        self._finished = threading.Event()

    @classmethod
    def open(cls, directory: Path) -> Capture:
        """A new file, readable by the user alone, which is copied from now on.

        Raises
        ------
        OSError
            There can be none; the message names the path, what is wrong, and what would help.
        """
        path = directory
        try:
            if sys.platform == "win32":
                raise OSError(errno.ENOSYS, "needs descriptors that a child inherits")
            while True:
                path = directory / _name()
                with contextlib.suppress(FileExistsError):  # of a process with the same pid
                    writer = _opened(path, os.O_CREAT | os.O_EXCL)
                    if _is_held(writer):
                        break
                    os.close(writer)
            try:
                reader = _opened(path)
                _share(reader)
            except OSError:
                os.close(writer)
                path.unlink(missing_ok=True)
                raise
        except OSError as error:
            raise OSError(
                f"stderr cannot be captured in {path}: {error.strerror}; {_remedy(error)}"
            ) from error
        made = cls(path, reader, writer)
        made._begin()
        return made

    @classmethod
    def adopt(cls, pid: int, directory: Path) -> Capture | None:
        """The file of a process that another main pool has started.

        None: it has no such file, or that is followed here already, or cannot be.

        It is copied from its end on: how far the other has come is not known here, so that what the
        process wrote between them appears on neither stderr. The tail has it.
        """
        link = f"/proc/{pid}/fd/2"
        try:
            path = Path(os.readlink(link))
            if not NAME.fullmatch(path.name) or path.parent != directory.resolve():
                return None
            reader = _opened(path)
        except OSError:  # it has gone, is another user's, or there is no /proc
            return None
        try:
            found = os.fstat(reader)
            if not (
                os.path.samestat(found, os.stat(link))
                and _is_own(found)
                and not _leads_to(2, found)  # our own stderr would be copied to itself for ever
                and not _copier.follows(found)
            ):
                os.close(reader)
                return None
        except OSError:
            os.close(reader)
            return None
        _share(reader)
        adopted = cls(_renamed(path), reader, position=found.st_size)
        try:
            adopted._begin()
        except OSError as error:
            logger.warning("%s", error)
            return None
        return adopted

    def _begin(self) -> None:
        try:
            _copier.add(self)
        except RuntimeError as error:  # there can be no more threads
            self.close_in_parent()
            self.close()
            raise OSError(f"stderr cannot be captured in {self.path}: {one_line(error)}") from error

    @property
    def descriptor(self) -> int:
        """For the stderr of the process, until :meth:`close_in_parent`."""
        if self._writer is None:  # never a number: -1 is subprocess.PIPE
            raise ValueError(f"{self.path} is no longer open for a process to be started")
        return self._writer

    def close_in_parent(self) -> None:
        """The process has been started, or will not be: only what copies stays open here."""
        with _lock:
            writer, self._writer = self._writer, None
            if writer is not None:
                os.close(writer)

    def tail(self, limit: int = TAIL) -> str:
        """The last ``limit`` bytes, 64 KiB at most, from the start of a line on; later, 4 KiB."""
        limit = min(limit, KEPT)
        with _lock:
            data = self._last(limit + 1)
        return last_lines(data, limit)

    def finish(self, timeout: float = TIMEOUT, wait: bool = True) -> None:
        """The process has died: copy what is left, close and remove the file.

        Whoever it has started and left behind may still write to it: then that goes on being
        copied, and the file is removed with the last of them. What stderr has not taken within
        ``timeout`` (seconds) is dropped. Returns within 0.3 s of that, whatever stderr does, or at
        once where nobody is to ``wait``.
        """
        self._end(timeout, wait, follows=True)

    def leave(self, timeout: float = TIMEOUT, wait: bool = True) -> None:
        """Copy what has arrived and leave the file to the process, for another main pool."""
        self._end(timeout, wait, follows=False)

    def _end(self, timeout: float, wait: bool, follows: bool) -> None:
        self.close_in_parent()
        with _lock:
            if self not in _copier.captures:  # done, or followed by the process that forked this
                return
            self.end_by(time.monotonic() + timeout, follows)
        _copier.wake()
        if wait:
            self._finished.wait(timeout + GRACE)

    def end_by(self, deadline: float, follows: bool) -> None:
        """Let the copier end when all has been copied, or then; but see :meth:`finish`."""
        self._deadline = deadline
        self._follows = follows
        self._finished.clear()

    def is_of(self, found: os.stat_result) -> bool:
        """Whether this is its file."""
        return self._reader is not None and _leads_to(self._reader, found)

    def look(self, now: float) -> Next:
        """Copy of what has arrived; by the copier alone, as what follows."""
        assert self._reader is not None
        before, self._size = self._size, os.fstat(self._reader).st_size
        if before == self._size == self._position and before <= BACKLOG and not self._left_out:
            return Next.REST
        if self._size < self._position:  # the process has truncated it, most likely to nothing
            self._position = self._given_back = 0
        if self._waits and self._size - self._position > BACKLOG:
            self._left_out += self._size - KEPT - self._position
            self._position = self._size - KEPT
        result = self._copy() if self._size > self._position or self._left_out else Next.REST
        self._waits = result is Next.WAIT
        self._give_back(stood_still=before == self._size)
        return result

    def is_done(self, now: float, result: Next) -> bool:
        """Whether it is to be followed no more."""
        if self._deadline is None or (result is not Next.REST and now < self._deadline):
            return False
        if not self._follows or self._is_nobodys():
            return True
        self._finished.set()
        return False

    def close(self) -> None:
        """Follow it no more; it is removed unless somebody else has it open."""
        with _lock:
            if self._reader is None:
                return
            if self._is_nobodys():
                with contextlib.suppress(OSError):  # gone already
                    if self.is_of(self.path.lstat()):
                        self.path.unlink()
            self._before = self._last(TAIL + 1)
            reader, self._reader = self._reader, None
            with contextlib.suppress(OSError):  # of a file system that has gone
                os.close(reader)
        self._finished.set()

    def _copy(self) -> Next:
        assert self._reader is not None
        data = os.pread(self._reader, CHUNK, self._position)
        waited = self._deadline is not None or self._held == self._position
        ripe = data[: whole_lines(data) or (len(data) if waited or len(data) == CHUNK else 0)]
        note = self._note()
        taken = _write(note + ripe)
        if taken >= len(note):
            self._left_out = 0
            self._position += taken - len(note)
        self._held = -1
        if taken < len(note) + len(ripe):
            return Next.WAIT
        if len(data) == CHUNK or (waited and self._position < self._size):
            return Next.GO_ON
        if self._position < self._size:
            self._held = self._position  # a part of a line, which gets one tick to be whole
        return Next.REST

    def _note(self) -> bytes:
        if not self._left_out:
            return b""
        return (
            f"[xoscar_idle: {self._left_out / 2**20:.0f} MiB of {self.path.name} are left out "
            "here: more was written than stderr took]\n"
        ).encode()

    def _last(self, limit: int) -> bytes:
        """Up to so many bytes from its end."""
        data = b""
        if self._reader is not None:
            with contextlib.suppress(OSError):
                start = max(os.fstat(self._reader).st_size - limit, 0)
                data = os.pread(self._reader, limit, start)
        return (self._before + data)[-limit:]

    def _give_back(self, stood_still: bool) -> None:
        """Let it take no more room than its end and what has not been copied."""
        assert self._reader is not None
        if self._punching:
            end = (self._position - KEPT) // KEPT * KEPT
            if end <= self._given_back:
                return
            try:
                holes.punch(self._reader, self._given_back, end - self._given_back)
                self._given_back = end
            except InterruptedError:  # the next time
                pass
            except OSError as error:
                logger.debug(
                    "%s cannot be given back to the disk in parts (%s): it is emptied when it has "
                    "%d MiB",
                    self.path,
                    error.strerror,
                    BACKLOG // 2**20,
                )
                self._punching = False
            return
        if self._size <= BACKLOG:
            return
        # Whatever is written between the two calls would be lost, so it is done in a quiet moment;
        # a process that has none, or a stderr that takes nothing, must not fill the disk.
        late = self._size > 4 * BACKLOG
        if late or (stood_still and self._position == self._size):
            with _lock:
                kept = self._last(KEPT + 1)
                size = os.fstat(self._reader).st_size
                if late or size == self._position:
                    os.ftruncate(self._reader, 0)
                    self._left_out += size - self._position
                    self._before, self._position, self._size = kept, 0, 0

    def _is_nobodys(self) -> bool:
        """Whether no other process has it open; its own lock is needed no more then."""
        assert self._reader is not None
        try:
            return _own(self._reader)
        except OSError:  # there are no locks here
            return self._follows


class Copier:
    """One thread for all captures of a process, there as long as there is one."""

    def __init__(self) -> None:
        self.captures: list[Capture] = []
        self._thread: threading.Thread | None = None
        self._wake = threading.Event()

    def add(self, capture: Capture) -> None:
        """Follow it.

        Raises
        ------
        RuntimeError
            There can be no thread.
        """
        with _lock:
            if self._thread is None:
                thread = threading.Thread(target=self._run, name="xoscar-idle-stderr", daemon=True)
                self.captures.append(capture)
                try:
                    thread.start()
                except RuntimeError:
                    self.captures.remove(capture)
                    raise
                self._thread = thread
            else:
                self.captures.append(capture)

    def follows(self, found: os.stat_result) -> bool:
        """Whether one of the captures is of this file."""
        with _lock:
            return any(each.is_of(found) for each in self.captures)

    def wake(self) -> None:
        """Look now."""
        self._wake.set()

    def stop(self, timeout: float = TIMEOUT) -> None:
        """Copy what has arrived and leave the files to their processes."""
        with _lock:
            thread = self._thread
            for capture in self.captures:
                capture.end_by(time.monotonic() + timeout, follows=False)
        self.wake()
        if thread is not None:
            thread.join(timeout + GRACE)

    def _run(self) -> None:
        while True:
            result = self._look()
            with _lock:
                if not self.captures:
                    self._thread = None
                    return
            if result is Next.WAIT:
                _room(TICK)
                time.sleep(TICK / 10)  # it may say that it takes something, and then not do so
            elif result is Next.REST:
                self._wake.wait(TICK)
                self._wake.clear()

    def _look(self) -> Next:
        result = Next.REST
        with _lock:
            captures = list(self.captures)
        now = time.monotonic()
        for capture in captures:
            try:
                after = capture.look(now)
                done = capture.is_done(now, after)
            except Exception as error:
                logger.warning(
                    "what is written to %s is copied to stderr no more: %s",
                    capture.path,
                    one_line(error),
                )
                after, done = Next.REST, True
            if after is not Next.REST:
                result = max(result, after)
            if done:
                with _lock:  # not after it has been closed: a fork may come between
                    self.captures.remove(capture)
                capture.close()
        return result


_copier = Copier()


@atexit.register
def _stop() -> None:
    _copier.stop()


def after_fork() -> None:
    """A child copies nothing of its parent's, whose files stay where they are.

    Nothing is closed either: the child may be about to become the process that writes to one.
    """
    global _copier
    _copier = Copier()


def sweep(directory: Path) -> None:
    """Remove the files that nobody has open any more: their main pools and processes have ended."""
    with contextlib.suppress(OSError):  # there is no such directory, or no way into it
        for entry in list(os.scandir(directory)):
            named = NAME.fullmatch(entry.name)
            if named is not None:
                with contextlib.suppress(OSError):  # gone meanwhile, or not ours to open
                    _sweep(Path(entry.path), int(named[1]))


def _sweep(path: Path, main_pid: int) -> None:
    if not _is_own(path.lstat()):
        return
    descriptor = _opened(path)
    try:
        try:
            ended = _own(descriptor)
        except OSError:  # there are no locks here
            ended = not psutil.pid_exists(main_pid)
        if ended:
            logger.debug("remove %s: nobody has it open", path)
            path.unlink()
    finally:
        os.close(descriptor)


# What is decided


def whole_lines(data: bytes) -> int:
    """Up to where there are whole lines."""
    return data.rfind(b"\n") + 1


def last_lines(data: bytes, limit: int) -> str:
    """What to tell of the end of a log: whole lines of up to ``limit`` bytes, if there are any.

    ``data`` has one byte more where there was more, which may be the end of a line.
    """
    data = data.lstrip(b"\0")  # given back to the disk
    if len(data) > limit:
        line = data.find(b"\n") + 1
        data = data[line if 0 < line < len(data) else 1 :]
    return data.decode(errors="replace")


# The files


def _name() -> str:
    return f"stderr-{os.getpid()}-{next(_numbers)}.log"


def _opened(path: Path, flags: int = 0) -> int:
    """A descriptor of the file, which is no link; never one of those of stdin, stdout and stderr.

    These are free where a program has closed them, and a file that is stderr would be copied to
    itself.
    """
    flags |= os.O_RDWR | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
    low = []
    try:
        while (descriptor := os.open(path, flags, 0o600)) < 3:
            low.append(descriptor)
            flags &= ~(os.O_CREAT | os.O_EXCL)
    finally:
        for each in low:
            os.close(each)
    return descriptor


def _is_held(descriptor: int) -> bool:
    """Take the shared lock of a new file, unless a sweep has been quicker."""
    return _share(descriptor) and os.fstat(descriptor).st_nlink > 0


def _renamed(path: Path) -> Path:
    """Under the name of this main pool; where it cannot be, under the old one."""
    while os.path.lexists(new := path.with_name(_name())):
        pass
    with contextlib.suppress(OSError):
        path.rename(new)
        return new
    return path


def _is_own(found: os.stat_result) -> bool:
    return stat.S_ISREG(found.st_mode) and found.st_uid == os.geteuid()


def _leads_to(descriptor: int, found: os.stat_result) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), found)
    except OSError:  # it is closed
        return False


def _share(descriptor: int) -> bool:
    """Take the shared lock; False: somebody removes the file just now."""
    try:
        return _flock(descriptor, exclusive=False)
    except OSError:  # there are no locks here
        return True


def _own(descriptor: int) -> bool:
    """Take the exclusive lock, which nobody else can have; the shared one is lost in any case.

    Raises
    ------
    OSError
        The file system has no locks.
    """
    return _flock(descriptor, exclusive=True)


def _flock(descriptor: int, exclusive: bool) -> bool:
    if sys.platform == "win32":
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    import fcntl

    try:
        fcntl.flock(descriptor, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _remedy(error: OSError) -> str:
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return "allow more descriptors (ulimit -n)"
    return "XOSCAR_SUPERVISE_DIR can name another directory"


# Our stderr


def _write(data: bytes) -> int:
    """How much of it stderr took without waiting; all of it where it takes nothing ever again.

    In pieces of whole lines where it can be, since others write there, too.
    """
    done = 0
    while done < len(data):
        piece = data[done : done + PIECE]
        if len(piece) == PIECE:
            piece = piece[: whole_lines(piece) or PIECE]
        ready = _room(0)
        if ready is None:
            return len(data)
        if not ready:
            break
        try:
            done += os.write(2, piece)
        except (BlockingIOError, InterruptedError):
            break
        except OSError:  # closed, or nobody reads it
            return len(data)
    return done


def _room(timeout: float) -> bool | None:
    """Whether stderr takes something, within so many seconds; None: it is closed."""
    poll = select.poll()
    poll.register(2, select.POLLOUT)
    for _, events in poll.poll(timeout * 1000):
        # To write to what nobody reads could raise SIGPIPE, if the program has not ignored it.
        if events & (select.POLLERR | select.POLLHUP | select.POLLNVAL):
            return None
        return True
    return False
