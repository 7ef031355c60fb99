"""The processes of the demonstration, as the one that starts them has them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import psutil

from ... import config, descriptors

SPARE_DESCRIPTORS = 64
"""Of a process, for all that is not an endpoint."""

CALL_TIMEOUT = 10.0
"""Seconds that a call of the client may take."""

PATIENCE = 40.0
"""Seconds for which the caller of a killed sub-pool goes on trying."""

# Times are in seconds.
SAMPLE_INTERVAL = 0.4
START_TIMEOUT = 60.0
GRACE = 30.0  # for children that a loaded machine makes late


class Failure(Exception):
    """The demonstration cannot be completed; the message is for its user."""


class Interrupted(Exception):
    """A signal asked for the end; its number is the argument."""


def end_group(leader: int) -> None:
    """End a child with the sub-pools that it has started, which are in its process group."""
    if sys.platform != "win32":  # there they end with it
        with contextlib.suppress(ProcessLookupError):
            os.killpg(leader, signal.SIGKILL)


class Child:
    """A process that :mod:`.__main__` runs, from its start to the end of the ``with`` block."""

    def __init__(self, name: str, environment: dict[str, str], *arguments: object) -> None:
        self.name = name
        self.reports: dict[str, Any] = {}
        """The latest report of each kind."""
        # Of xoscar's variables a child has those that are given, so that the sides differ in
        # these alone.
        inherited = config.unset_everywhere(os.environ)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "xoscar_idle.commands.demo", *map(str, arguments)],
            env=inherited | environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C is for the parent alone
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            for line in lines:
                kind, value = json.loads(line)
                self.reports[kind] = value

    def order(self, value: object) -> None:
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # that it ended is noticed elsewhere
            print(json.dumps(value), file=self.process.stdin, flush=True)

    def descriptors(self) -> int:
        """How many it has open; 0 once it has ended."""
        try:
            return descriptors.count(psutil.Process(self.process.pid))
        except psutil.Error:
            return 0

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        end_group(self.process.pid)  # it has nothing to put in order
        self.process.kill()
        self.process.wait()
        self._reader.join(2)  # for its sub-pools, which have its stdout, too


class Children:
    """All of them, until the end of the ``with`` block; signals end that with the next wait."""

    def __enter__(self) -> Children:
        self._stack = contextlib.ExitStack()
        self._signals = self._stack.enter_context(_noted_signals())
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def start(self, name: str, environment: dict[str, str], *arguments: object) -> Child:
        return self._stack.enter_context(Child(name, environment, *arguments))

    def wait(
        self,
        children: list[Child],
        event: str,
        within: float,
        step: Callable[[], None] = lambda: None,
    ) -> None:
        """Until these have reported ``event``; ``step`` is called all the while."""
        deadline = time.monotonic() + within
        while True:
            time.sleep(SAMPLE_INTERVAL)
            if self._signals:
                raise Interrupted(self._signals[0])
            for child in children:
                if (status := child.process.poll()) is not None:
                    raise Failure(f"{child.name} ended with exit status {status}")
            step()
            late = [child for child in children if event not in child.reports]
            if not late:
                return
            if time.monotonic() > deadline:
                raise Failure(
                    f"{late[0].name} has not reported {event!r} within {within:g} s: "
                    "try fewer endpoints, or a less busy machine"
                )


@contextlib.contextmanager
def _noted_signals() -> Iterator[list[int]]:
    """SIGINT and SIGTERM, noted and not raised: a child just being started would be lost."""
    noted: list[int] = []
    before = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, lambda number, _: noted.append(number))
    try:
        yield noted
    finally:
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
