"""A loop in virtual time that a plain function turns by hand, one turn at a time."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from .memory import VirtualTimeLoop


class SteppedLoop(VirtualTimeLoop):
    """Runs when told to, and keeps what reaches its exception handler."""

    _ready: Any
    _scheduled: Any
    _clock_resolution: float
    _run_once: Callable[[], None]

    def __init__(self) -> None:
        super().__init__()
        self.errors: list[str] = []
        # As text: the context holds on to what is to be collected.
        self.set_exception_handler(lambda _, context: self.errors.append(repr(context)))

    @contextlib.contextmanager
    def current(self) -> Iterator[None]:
        """Let what is called in this block find this loop running."""
        asyncio._set_running_loop(self)
        try:
            yield
        finally:
            asyncio._set_running_loop(None)

    @property
    def resting(self) -> bool:
        """Whether there is nothing to do before the next timer."""
        due = self.now + self._clock_resolution
        return not self._ready and not any(
            timer._when < due for timer in self._scheduled if not timer._cancelled
        )

    def turn(self, turns: int = 1) -> None:
        """Run what is ready, ``turns`` times; no time passes."""
        with self.current():
            for _ in range(turns):
                if self.resting:
                    return
                self._run_once()

    def rest(self) -> None:
        """Run until nothing is ready; no time passes."""
        with self.current():
            for _ in range(10_000):
                if self.resting:
                    return
                self._run_once()
        raise AssertionError("it never comes to rest")

    def sleep(self, seconds: float) -> None:
        """Let time pass."""
        self.run_until_complete(asyncio.sleep(seconds))
        self.rest()
