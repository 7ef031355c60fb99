"""One process of the demonstration, as the one that starts it has it."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
from typing import Any

import psutil

from ... import config, descriptors

SPARE_DESCRIPTORS = 64
"""Of a process, for all that is not an endpoint."""

CALL_TIMEOUT = 10.0
"""Seconds that a call of the client may take."""


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
        self.process.terminate()  # it has nothing to put in order
        try:
            self.process.wait(2)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(2)
        self._reader.join(2)
