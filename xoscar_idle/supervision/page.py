"""Memory that a sub-pool shares with its main pool, in which it tells what it does.

It is written without asking anybody and read without disturbing anybody, and it outlives its
writer: what a process had in process when it was killed stands there. It has no name in any file
system, so it goes with the last who has it open, however they end.

One writer, the sub-pool, but for two words; whoever reads may find a request half written, never a
crash. Times are those of ``time.monotonic()``, which processes of one machine have in common.
"""

from __future__ import annotations

import contextlib
import functools
import mmap
import os
import struct
import sys
import tempfile
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from ..connection.deadlines import actor_name

VARIABLE = "XOSCAR_IDLE_PAGE"
"""Where a sub-pool finds its page: the descriptor, and what the kernel knows the memory by."""

NAME = "xoscar-idle-page"

SLOTS = 256
"""Requests in process of which more is told than that they are there."""

_MAGIC = b"xoscar 4"
_HEAD = struct.Struct("8sQ")  # the magic, the process id
_TOLD = struct.Struct("ddddQQQIdIIII")  # in the order of Told
_TOLD_AT = 16
_FAULT_AT, _DOING_AT, _SLOTS_AT = 512, 1024, 16 * 1024
_SLOT = struct.Struct("d119p")
_SLOT_SIZE = 128
_SINCE = struct.Struct("d")
SIZE = _SLOTS_AT + SLOTS * _SLOT_SIZE
"""Bytes. What follows is written by the interpreter itself: the stacks of a fatal signal."""

LONGEST_STACKS = 64 * 1024
"""Bytes of stacks that are read, the newest."""

LAST_DRAIN = 255
"""After that the numbers of drains begin again with 1: they have one byte."""

AVAILABLE = os.name == "posix"
"""Whether a child can be given a descriptor."""


@dataclass(frozen=True)
class Told:
    """What a sub-pool tells of itself, all of one moment."""

    thread_beat: float = 0.0
    """When its side thread was there last. 0: it is not followed."""
    loop_asked: float = 0.0
    """When its event loop was asked for a sign that has not come yet. 0: it is not waited for."""
    loop_lag: float = 0.0
    """Seconds that the last sign took."""
    progress: float = 0.0
    """When a request ended last. 0: none has."""
    in_process: int = 0
    begun: int = 0
    """Requests so far."""
    rss: int = 0
    """Resident bytes."""
    stack_signal: int = 0
    """A signal that lets the interpreter write its stacks. 0: there is none."""
    created: float = 0.0
    """When an actor was created last. 0: none has been."""
    drained: int = 0
    """The number of the drain that is complete. 0: none has been."""
    answer_lost: int = 0
    """Whether an answer may have been lost with its connection when that was told."""
    draining: int = 0
    """The number of the drain: it is to begin nothing more. 0: it may. The main pool writes it."""
    recreating: int = 0
    """Whether the actors that its predecessor had are still being created. The main pool writes
    it."""

    @property
    def is_drained(self) -> bool:
        """Whether all that was begun has ended, and nothing more is begun."""
        return 0 < self.draining == self.drained


@dataclass(frozen=True)
class Request:
    """A request in process: which method of which actor, and since when."""

    since: float
    actor: str
    method: str


class Page:
    """One page; made in the main pool, and opened in the sub-pool.

    It goes with its last reference: another thread may still read what one lets go of.
    """

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self._map = mmap.mmap(descriptor, SIZE)
        self._close = weakref.finalize(self, os.close, descriptor)
        self._close.atexit = False
        self._free = list(range(SLOTS - 1, -1, -1))
        self.in_process = 0
        self.begun = 0

    @classmethod
    def create(cls) -> Page:
        """A new one.

        Raises
        ------
        OSError
            There is no memory for it, or no descriptor.
        """
        import fcntl  # there is none on Windows

        descriptor = _memory()
        try:
            os.ftruncate(descriptor, SIZE)
            # The interpreter writes stacks behind it, wherever that is by then.
            fcntl.fcntl(
                descriptor, fcntl.F_SETFL, fcntl.fcntl(descriptor, fcntl.F_GETFL) | os.O_APPEND
            )
            return cls(descriptor)
        except BaseException:
            os.close(descriptor)
            raise

    @classmethod
    def of_process(cls, pid: int) -> Page | None:
        """That of a living process which somebody else started; None if it has none."""
        with contextlib.suppress(OSError, ValueError):
            for number in os.listdir(path := f"/proc/{pid}/fd"):
                if os.readlink(f"{path}/{number}").startswith(f"/memfd:{NAME}"):
                    descriptor = os.open(f"{path}/{number}", os.O_RDWR | os.O_CLOEXEC)
                    try:
                        found = cls(descriptor)
                        if found.writer() == pid:  # else that of a sub-pool of its own
                            return found
                        found.close()
                        continue
                    except BaseException:
                        os.close(descriptor)
                        raise
        return None

    @classmethod
    def given(cls, environ: Mapping[str, str] = os.environ) -> Page | None:
        """That which this process was started with; None if it was started without one."""
        numbers = environ.get(VARIABLE, "").split(":")
        try:
            descriptor, device, inode = map(int, numbers)
            found = os.fstat(descriptor)
            if (found.st_dev, found.st_ino) != (device, inode):
                return None  # another file: this is not the process that the variable is for
            os.set_inheritable(descriptor, False)
            return cls(descriptor)
        except (OSError, OverflowError, ValueError):
            return None

    def variable(self) -> str:
        """What :data:`VARIABLE` is to be for who shall find it."""
        found = os.fstat(self.descriptor)
        return f"{self.descriptor}:{found.st_dev}:{found.st_ino}"

    def close(self) -> None:
        """Let go of it; nobody else has it."""
        self._map.close()
        self._close()

    def disown(self) -> None:
        """In a forked child: the page is the parent's, whatever is still written to its number."""
        self._map.close()
        null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        os.dup2(null, self.descriptor, inheritable=False)
        os.close(null)

    # -- the writer ------------------------------------------------------------------------------

    def claim(self) -> None:
        """This process is the one that writes."""
        _HEAD.pack_into(self._map, 0, _MAGIC, os.getpid())

    def tell(self, **told: float | int) -> None:
        """Set fields of :class:`Told`."""
        for name, value in told.items():
            field, offset = _FIELDS[name]
            field.pack_into(self._map, offset, value)

    def tell_fault(self, text: str) -> None:
        """An error says that this process is broken."""
        _write_text(self._map, _FAULT_AT, _DOING_AT, text)

    def tell_doing(self, text: str) -> None:
        """What the thread of the event loop does just now."""
        _write_text(self._map, _DOING_AT, _SLOTS_AT, text)

    @property
    def draining(self) -> int:
        """As in :class:`Told`; looked at for each request."""
        return self._map[_DRAINING_AT]

    @property
    def recreating(self) -> int:
        """As in :class:`Told`; looked at for each request."""
        return self._map[_RECREATING_AT]

    def drain(self) -> int:
        """Say that nothing more is to be begun; the number of that drain."""
        told = self.told()
        if told.draining:
            return told.draining
        self.tell(draining=(number := told.drained % LAST_DRAIN + 1))
        return number

    def begin(self, now: float, actor: bytes, method: str) -> int:
        """A request is in process; what :meth:`end` is to be given for it."""
        name = _name(actor, method)
        self.in_process = in_process = self.in_process + 1
        self.begun = begun = self.begun + 1
        _COUNTS.pack_into(self._map, _COUNTS_AT, in_process, begun)
        if not (free := self._free):
            return -1
        slot = free.pop()
        _SLOT.pack_into(self._map, _SLOTS_AT + slot * _SLOT_SIZE, now, name)
        return slot

    def end(self, now: float, slot: int) -> None:
        """It is not any more."""
        self.in_process = in_process = self.in_process - 1
        _PROGRESS.pack_into(self._map, _PROGRESS_AT, now, in_process)
        if slot >= 0:
            _SINCE.pack_into(self._map, _SLOTS_AT + slot * _SLOT_SIZE, 0.0)
            self._free.append(slot)

    # -- readers ---------------------------------------------------------------------------------

    def writer(self) -> int | None:
        """The process that writes; None: none has begun to."""
        magic, pid = _HEAD.unpack_from(self._map)
        return pid if magic == _MAGIC else None

    def told(self) -> Told:
        """What stands there."""
        return Told(*_TOLD.unpack_from(self._map, _TOLD_AT))

    def fault(self) -> str:
        """The error that says that it is broken; empty: none."""
        return _read_text(self._map, _FAULT_AT, _DOING_AT)

    def doing(self) -> str:
        """What the thread of its event loop did when that was written last."""
        return _read_text(self._map, _DOING_AT, _SLOTS_AT)

    def requests(self) -> list[Request]:
        """The requests in process, the oldest first; with :data:`SLOTS` of them, not all."""
        return sorted(self._requests(), key=lambda each: each.since)

    def _requests(self) -> Iterator[Request]:
        for offset in range(_SLOTS_AT, SIZE, _SLOT_SIZE):
            since, name = _SLOT.unpack_from(self._map, offset)
            if since:
                actor, _, method = name.partition(b"\0")
                yield Request(since, _printable(actor), _printable(method))

    def drop_stacks(self) -> None:
        """Let there be room for more, if there are many: it is memory."""
        if self.stacks_end() - SIZE > LONGEST_STACKS:
            os.ftruncate(self.descriptor, SIZE)

    def stacks_end(self) -> int:
        """Where the next stacks will be written."""
        return os.fstat(self.descriptor).st_size

    def stacks(self, begin: int = SIZE) -> str:
        """What the interpreter has written of its stacks from there on; the end of it."""
        end = self.stacks_end()
        begin = max(begin, end - LONGEST_STACKS)
        return _decoded(os.pread(self.descriptor, max(0, end - begin), begin))


def _memory() -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create(NAME, os.MFD_CLOEXEC)
    descriptor, path = tempfile.mkstemp(prefix=NAME)
    os.unlink(path)
    return descriptor


@functools.lru_cache(256)  # a process has few, and is asked often
def _name(actor: bytes, method: str) -> bytes:
    return actor_name(actor).encode()[:60] + b"\0" + method.encode(errors="replace")[:58]


def _write_text(memory: mmap.mmap, begin: int, end: int, text: str) -> None:
    encoded = text.encode(errors="replace")[: end - begin - 1] + b"\0"
    memory[begin : begin + len(encoded)] = encoded


def _read_text(memory: mmap.mmap, begin: int, end: int) -> str:
    return _decoded(memory[begin:end].partition(b"\0")[0])


def _printable(text: bytes) -> str:
    """A name as one can write it on a line, whatever a program has made of it."""
    decoded = _decoded(text)
    if decoded.isprintable():
        return decoded
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in decoded)


def _decoded(text: bytes) -> str:
    return text.decode(errors="replace")


def _fields() -> Iterator[tuple[str, tuple[struct.Struct, int]]]:
    for i, (name, kind) in enumerate(zip(Told.__annotations__, _TOLD.format, strict=True)):
        before = struct.Struct(_TOLD.format[: i + 1])
        field = struct.Struct(kind)
        yield name, (field, _TOLD_AT + before.size - field.size)


_FIELDS = dict(_fields())
_COUNTS, _COUNTS_AT = struct.Struct("QQ"), _FIELDS["in_process"][1]
_LOW_BYTE = 3 if sys.byteorder == "big" else 0
_DRAINING_AT = _FIELDS["draining"][1] + _LOW_BYTE
_RECREATING_AT = _FIELDS["recreating"][1] + _LOW_BYTE
_PROGRESS, _PROGRESS_AT = struct.Struct("dQ"), _FIELDS["progress"][1]
