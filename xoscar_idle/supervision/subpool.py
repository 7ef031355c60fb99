"""One process of a main pool: how it is started and followed, and what is known of its end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from .. import config
from ..periodic import spawn
from . import evidence, health, records
from .capture import Capture
from .evidence import Memory
from .health import Seen
from .page import Page
from .record import CrashRecord

logger = logging.getLogger("xoscar_idle")

TOLD_REQUESTS = 10
"""Requests in process of which a record tells, the oldest."""

RECENT = 10.0
"""Seconds for which a look at memory is as good as one at the end."""

_EXITING = 0x4
"""``PF_EXITING`` among the flags in ``/proc/PID/stat``, of Linux's ``include/linux/sched.h``."""

_ORPHANED = 233
"""With this code a sub-pool of xoscar ends when its main pool has gone."""


class Subpool:
    """One process and what there is of it until it has ended.

    Parameters
    ----------
    process
        xoscar's handle of it.
    page, capture
        What it was started with.
    """

    def __init__(self, process: Any, page: Page | None, capture: Capture | None = None) -> None:
        self.process = process
        self.pid: int = process.pid
        self.page = page
        self.capture = capture
        self.started = _started(self.pid)
        self.requested = ""
        """Who asked for its end."""
        self.killed = ""
        """Why it has been killed; empty: not by us."""
        self.is_being_killed = False
        self.drained = False
        """Whether all that it has executed is with those who asked, and it executes no more."""
        self.drain_is_over = False
        """Whether it has had its time to finish what it had begun, and has not."""
        self._last_stacks = ""
        self.death = Death()
        self._memory, self._memory_at = Memory.of(self.pid), time.monotonic()
        self._waited: int | None = None  # the exit code that the kernel has told
        self._stacks_from: int | None = None  # where those that were asked for begin
        self._stop_watching: Callable[[], None] = lambda: None

    @classmethod
    def adopted(cls, process: Any) -> Subpool:
        """One that somebody else started."""
        capture = None
        if config.current().capture_stderr:
            with contextlib.suppress(OSError, ValueError):
                capture = Capture.adopt(process.pid, records.own_directory())
        return cls(process, Page.of_process(process.pid), capture)

    @property
    def uptime(self) -> float:
        """Seconds since its start."""
        return max(0.0, time.time() - self.started)

    # -- its end ---------------------------------------------------------------------------------

    def watch(self, died: Callable[[Subpool], None]) -> None:
        """Call ``died`` once on the running loop, as soon as the process has ended."""
        loop = asyncio.get_running_loop()
        self._stop_watching()
        self.requested = ""
        if hasattr(self.process, "identity") and hasattr(os, "pidfd_open"):
            try:
                descriptor = os.pidfd_open(self.pid)
            except ProcessLookupError:
                loop.call_soon(died, self)
                return
            except OSError:  # out of descriptors, or a kernel before 5.3
                pass
            else:
                watch = _Watch(loop, descriptor, partial(self._readable, descriptor, died))
                self._stop_watching = watch.end
                return
        # xoscar's own way: its handle looks twenty times a second, or is told by asyncio.
        task = spawn(loop, self.process.wait())
        task.add_done_callback(lambda _: died(self) if not task.cancelled() else None)
        self._stop_watching = partial(_cancel, task)

    def _readable(self, descriptor: int, died: Callable[[Subpool], None]) -> None:
        self._waited = _exit_code(descriptor)
        self._stop_watching()
        died(self)

    def release(self) -> None:
        """It has ended: have nothing to do with it any more."""
        self._let_go()
        if self.capture is not None:
            self.capture.finish(wait=False)
            self.capture = None

    def leave(self) -> None:
        """Have nothing to do with it any more while it lives: another main pool has."""
        if self.page is not None:  # nobody would ever undo what was written there from here
            self.page.tell(draining=0, recreating=0)
        self._let_go()
        _forget(self.process)
        if self.capture is not None:
            self.capture.leave(wait=False)
            self.capture = None

    def _let_go(self) -> None:
        self._stop_watching()
        self.death.set()
        self.page = None  # not closed: the side thread may be looking at it

    def has_ended(self) -> bool:
        """Whether it has, as far as can be told at once."""
        return self.process.returncode is not None

    def is_ending(self) -> bool:
        """Whether the kernel is taking it down, or that cannot be told."""
        stat = _stat(self.pid)
        return stat is None or bool(stat.flags & _EXITING) or stat.state in "ZX"

    def exit_code(self) -> int | None:
        """Its exit code, negative for a signal; None: unknown."""
        code: int | None = self.process.returncode  # first: it takes the process from the kernel
        if self._waited is not None:
            return self._waited
        # Of a process that another main pool started the kernel tells nobody here, and of none to
        # a program that ignores SIGCHLD. xoscar and Python say 0.
        adopted = hasattr(self.process, "identity") and self.process._popen is None
        return None if adopted or _ignores_children() else code

    def record(self, address: str, **known: Any) -> CrashRecord:
        """What is known of its end."""
        code = self.exit_code()
        told: dict[str, Any] = {}
        if (page := self.page) is not None and page.writer() is not None:
            now = time.monotonic()
            told["in_flight"] = page.told().in_process
            told["requests"] = tuple(_requests(page, now))
            told["stacks"] = _of_fatal_signal(page.stacks())
            if fault := page.fault():
                told["why"] = f"it had raised {fault}"
        if self.capture is not None:
            told["log_tail"] = self.capture.tail()
        if code == _ORPHANED:
            told["why"] = "it found that its main pool had gone"
        if self.killed:
            told["why"] = f"its main pool has ended it: {self.killed}"
            told["stacks"] = told.get("stacks") or self._last_stacks
        oom = self._out_of_memory(code)
        if code == -signal.SIGKILL and not oom:
            told.setdefault("why", "sender unknown")
        return CrashRecord(
            address=address,
            pid=self.pid,
            when=time.time(),
            exit_code=code,
            signal=evidence.ended(code),
            uptime=self.uptime,
            oom=oom,
            **told | known,
        )

    def _out_of_memory(self, code: int | None) -> str | None:
        before, after = self._memory, self._memory.again()
        age = time.monotonic() - self._memory_at
        if age < RECENT:
            return evidence.out_of_memory(before, after, code)
        # Something else may have been killed since, and its size was another one then.
        told = evidence.out_of_memory(replace(before, resident=None), after, code)
        return f"{told}, within the last {age:.0f} s" if told else None

    # -- its health ------------------------------------------------------------------------------

    def seen(self, now: float, awake: float) -> Seen:
        """What can be seen of it at ``now``.

        Parameters
        ----------
        awake
            Since when this process has been looking without a gap: no silence is older.
        """
        page = self.page
        if page is None or page.writer() is None:
            return Seen()
        told = page.told()
        if not told.thread_beat:
            return Seen(fault=page.fault())
        silent = now - max(told.thread_beat, awake)
        oldest = page.requests()[:1] if told.in_process else []
        return Seen(
            thread_silent=silent,
            loop_silent=now - max(told.loop_asked, awake) if told.loop_asked else None,
            stopped=silent > 3 * health.BEAT and self._is_stopped(),
            oldest_request=now - max(oldest[0].since, awake) if oldest else None,
            no_progress=now - max(told.progress, awake) if told.progress else None,
            fault=page.fault(),
        )

    def in_process(self) -> int:
        """How many requests it has in process, as far as that was told."""
        page = self.page
        return 0 if page is None or page.writer() is None else page.told().in_process

    def created_last(self) -> float:
        """When an actor was created there last, in monotonic time; 0: unknown, or none was."""
        page = self.page
        return 0.0 if page is None else page.told().created

    def look_at_memory(self) -> None:
        """Let what the kernel counts from now on be evidence, and nothing that was before."""
        self._memory, self._memory_at = self._memory.latest(), time.monotonic()

    def _is_stopped(self) -> bool:
        stat = _stat(self.pid)
        return stat is not None and stat.state in "Tt"

    def ask_stacks(self) -> None:
        """Let the interpreter write its stacks, which needs no GIL; once, until they are forgotten.

        :meth:`doing` has them.
        """
        if self._stacks_from is not None:
            return
        page = self.page
        number = page.told().stack_signal if page is not None else 0
        # Without a handler the signal would end the process: the kernel knows best.
        if page is None or not number or self.death.told:
            return
        if not evidence.handles(self.pid, number):
            return
        page.drop_stacks()
        self._stacks_from = page.stacks_end()
        with contextlib.suppress(OSError):
            os.kill(self.pid, number)

    def forget_stacks(self) -> None:
        """Those that were asked for are of the past."""
        self._stacks_from = None

    @property
    def asked_stacks(self) -> bool:
        """Whether stacks have been asked for."""
        return self._stacks_from is not None

    def keep_stacks(self) -> None:
        """Let its record have what it does now."""
        self._last_stacks = self.doing()

    def doing(self) -> str:
        """What the thread of its event loop does, or all threads, as far as that was told."""
        if (page := self.page) is None:
            return ""
        return page.doing() if self._stacks_from is None else page.stacks(self._stacks_from)

    def told(self, now: float) -> dict[str, Any]:
        """What it tells of itself: fields of :class:`~.state.PoolInfo`."""
        page = self.page
        if page is None or page.writer() is None:
            return {}
        told, requests = page.told(), tuple(_requests(page, now))
        lag = now - told.loop_asked if told.loop_asked else told.loop_lag
        return {
            "in_process": told.in_process,
            "oldest_request": requests[0]["seconds"] if requests else None,
            "requests": requests,
            "loop_lag": lag if told.thread_beat else None,  # nobody has asked the loop else
            "rss": told.rss or None,
            "observed": bool(told.thread_beat),
        }


def _cancel(task: asyncio.Task[Any]) -> None:
    task.cancel()


class Death:
    """Comes when what is known of a process's end has been told; for any thread and loop."""

    def __init__(self) -> None:
        self.told = False
        self._lock = threading.Lock()
        self._waiting: set[Callable[[], None]] = set()

    def set(self) -> None:
        """It has come."""
        with self._lock:
            self.told, waiting = True, list(self._waiting)
        for wake in waiting:
            wake()

    async def wait(self, timeout: float) -> bool:
        """Wait for it, at most ``timeout`` seconds; whether it has come."""
        loop = asyncio.get_running_loop()
        woken = asyncio.Event()

        def wake() -> None:
            with contextlib.suppress(RuntimeError):  # the loop has been closed meanwhile
                loop.call_soon_threadsafe(woken.set)

        with self._lock:
            if self.told:
                return True
            self._waiting.add(wake)
        try:
            await asyncio.wait_for(woken.wait(), timeout)
        except asyncio.TimeoutError:
            pass
        finally:
            with self._lock:
                self._waiting.discard(wake)
        return self.told


class _Watch:
    """A descriptor that becomes readable when the process has ended, and who is told."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, descriptor: int, died: Callable[[], None]
    ) -> None:
        self._loop, self._descriptor = loop, descriptor
        # A loop that is closed before gives the descriptor back with this.
        self._close = weakref.finalize(self, os.close, descriptor)
        loop.add_reader(descriptor, died)

    def end(self) -> None:
        """Watch no more."""
        if self._close.alive:
            if not self._loop.is_closed():
                self._loop.remove_reader(self._descriptor)
            self._close()


# -- that of a handle of xoscar's ------------------------------------------------------------------


def of(process: Any) -> Subpool:
    """That of xoscar's handle of it."""
    found = known(process)
    if found is None:
        found = put(process, Subpool.adopted(process))
    return found


def known(process: Any) -> Subpool | None:
    """That of xoscar's handle of it, if it has been met before; xoscar's tests have others."""
    found: Subpool | None = getattr(process, _OURS, None)
    return found


_OURS = "_xoscar_idle_subpool"  # kept on the handle, so that it goes with it


def put(process: Any, made: Subpool) -> Subpool:
    """Let that be the one of xoscar's handle from now on."""
    with contextlib.suppress(AttributeError):  # a handle of the program's own that takes none
        setattr(process, _OURS, made)
    return made


def _forget(process: Any) -> None:
    with contextlib.suppress(AttributeError):
        delattr(process, _OURS)


def keep(record: CrashRecord) -> str | None:
    """Put a record into a file, where that is wanted; its path."""
    return records.write(record) if config.current().supervise != "off" else None


# -- what the kernel tells -------------------------------------------------------------------------


class _Stat:
    def __init__(self, text: str) -> None:
        fields = text.rpartition(")")[2].split()
        self.state = fields[0]
        self.flags = int(fields[6])


def _stat(pid: int) -> _Stat | None:
    with contextlib.suppress(OSError, ValueError, IndexError):
        return _Stat(Path(f"/proc/{pid}/stat").read_text())
    return None


def _exit_code(descriptor: int) -> int | None:
    """Of the process of a pidfd, which has ended; None where the kernel tells it to others."""
    with contextlib.suppress(OSError, AttributeError):
        told = os.waitid(os.P_PIDFD, descriptor, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if told is not None:
            exited = told.si_code == os.CLD_EXITED
            return told.si_status if exited else -told.si_status
    return None


def _ignores_children() -> bool:
    return os.name == "posix" and signal.getsignal(signal.SIGCHLD) is signal.SIG_IGN


def _started(pid: int) -> float:
    try:
        return psutil.Process(pid).create_time()
    except psutil.Error:
        return time.time()


def _requests(page: Page, now: float) -> Iterator[dict[str, Any]]:
    for each in page.requests()[:TOLD_REQUESTS]:
        yield {
            "actor": each.actor,
            "method": each.method,
            "seconds": round(max(0.0, now - each.since), 3),
        }


def _of_fatal_signal(stacks: str) -> str:
    """The last that begins as Python's do; others were asked for."""
    begin = stacks.rfind("Fatal Python error: ")
    return stacks[begin:].partition("\nExtension modules: ")[0] if begin >= 0 else ""
