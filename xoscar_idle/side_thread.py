"""The one thread of ours that goes on while the program's event loops are blocked.

It runs what is to be done at intervals and, in between, waits for who asks over the side channel.
There is none as long as there is neither.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from .locks import process_lock

logger = logging.getLogger("xoscar_idle")

END = 2.0
"""Seconds for which the end of the thread is waited for."""


class Source(Protocol):
    """Something that the thread waits for."""

    def serve(self, timeout: float | None) -> None:
        """Wait for one that asks, at most ``timeout`` seconds, and answer."""

    def wake(self) -> None:
        """Let :meth:`serve` return."""


class _Nobody:
    """Waits where there is no source."""

    def __init__(self) -> None:
        self._woken = threading.Event()

    def serve(self, timeout: float | None) -> None:
        self._woken.wait(timeout)
        self._woken.clear()

    def wake(self) -> None:
        self._woken.set()


@dataclass
class _Job:
    work: Callable[[], None]
    interval: float
    due: float = field(default_factory=time.monotonic)
    failed: bool = False

    def run(self, now: float) -> None:
        self.due = now + self.interval
        try:
            self.work()
        except Exception:
            if not self.failed:
                self.failed = True
                logger.warning("%s failed; it is tried again", self.work, exc_info=True)


class _Thread:
    """As long as there is something to do."""

    def __init__(self) -> None:
        self.jobs: dict[Callable[[], None], _Job] = {}
        self.source: Source | None = None
        self.waiting: Source = _Nobody()
        self.ending = False
        self._thread = threading.Thread(target=self._run, name="xoscar-idle-side", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def end(self) -> None:
        self.ending = True
        self.waiting.wake()
        if threading.current_thread() is not self._thread:
            self._thread.join(END)

    def _run(self) -> None:
        nobody = self.waiting
        while not self.ending:
            self.waiting = self.source or nobody
            now = time.monotonic()
            jobs = list(self.jobs.values())
            for job in jobs:
                if job.due <= now and not self.ending:
                    job.run(now)
            due = min((job.due for job in jobs), default=None)
            if not self.ending and self.waiting is (self.source or nobody):
                self.waiting.serve(None if due is None else max(0.0, due - time.monotonic()))


_lock = process_lock()
_running: _Thread | None = None


def every(interval: float, work: Callable[[], None]) -> None:
    """Run ``work`` now and every ``interval`` seconds, until :func:`never`.

    An error that it raises costs one warning.
    """
    with _lock:
        thread = _begin()
        thread.jobs = {**thread.jobs, work: _Job(work, interval)}
        _go_on(thread)


def never(work: Callable[[], None]) -> None:
    """Run ``work`` no more; it may be running just now."""
    with _lock:
        if _running is not None:
            _running.jobs = {key: job for key, job in _running.jobs.items() if key != work}
        ended = _taken_if_idle()
    if ended is not None:  # without the lock: what it just does may need it
        ended.end()


def soon(work: Callable[[], None]) -> None:
    """Run what is run at intervals as soon as possible; nothing where it is not."""
    with _lock:
        if _running is not None and (job := _running.jobs.get(work)) is not None:
            job.due = 0.0
            _running.waiting.wake()


def wait_for(source: Source) -> None:
    """Wait for ``source`` in between."""
    with _lock:
        thread = _begin()
        thread.source = source
        _go_on(thread)


def leave() -> None:
    """Wait for no source any more."""
    with _lock:
        if _running is not None:
            _running.source = None
            _running.waiting.wake()
        ended = _taken_if_idle()
    if ended is not None:
        ended.end()


def after_fork() -> None:
    """In a forked child: the thread is the parent's, and so is what it does."""
    global _running
    _running = None


def _begin() -> _Thread:
    return _running or _Thread()


def _go_on(thread: _Thread) -> None:
    global _running
    if _running is thread:
        thread.waiting.wake()
    else:
        thread.start()
        _running = thread


def _taken_if_idle() -> _Thread | None:
    global _running
    if _running is None or _running.jobs or _running.source is not None:
        return None
    thread, _running = _running, None
    return thread
