"""The second part of the demonstration: a kill, on a stock side and on a supervised one."""

from __future__ import annotations

import contextlib
import textwrap
import time
from collections.abc import Callable, Iterator
from typing import Any

import psutil

from ...config import variable
from ...gate import SUPERVISE
from .process import GRACE, PATIENCE, START_TIMEOUT, Children, Failure

# Times are in seconds.
RECOVERY_TIMEOUT = 30.0  # less than PATIENCE

SUPERVISED = {SUPERVISE: "act", variable("recovery_timeout"): f"{RECOVERY_TIMEOUT:g}"}
"""What the sides differ in, but for the place of the crash records."""

WIDTH = 78


class Crash:
    """The two sides; they start now, and are idle until :meth:`show`."""

    def __init__(self, children: Children, records: str) -> None:
        self._children = children
        private = {variable("supervise_dir"): records}  # not among the user's own
        self._stock = Side("stock", {}, children)
        self._supervised = Side("supervised", SUPERVISED | private, children)
        self._sides = [self._stock, self._supervised]
        self._hosts = [side.host for side in self._sides]
        self._callers = [side.caller for side in self._sides]

    def show(self) -> None:
        """Kill, and show what comes of it.

        Raises
        ------
        Failure
            The supervised side does not tell of it, or does not recover.
        """
        print(
            "\nNow a sub-pool that is answering a call is killed, in stock xoscar and with\n"
            f"{' '.join(f'{name}={value}' for name, value in SUPERVISED.items())}.\n",
            flush=True,
        )
        wait = self._children.wait
        wait([*self._hosts, *self._callers], "ready", START_TIMEOUT)
        for side in self._sides:
            side.host.order("tell the states")
            side.caller.order(side.host.reports["ready"])
        wait(self._callers, "in flight", GRACE)
        for side in self._sides:
            side.kill()
        print(flush=True)
        wait(self._callers, "done", PATIENCE + GRACE, self._check)
        self._check()
        wait([self._supervised.host], "recovered", GRACE)
        for side in self._sides:
            print("\n".join(side.story()))
        print(self._table())
        print(
            "\nThe supervised caller read what had happened, and lost only the call in flight.",
            flush=True,
        )

    def _check(self) -> None:
        """Raise :class:`Failure` if the supervised side has not done what it should so far."""
        told = self._supervised.caller.reports
        if "crashed" in told and not told["crashed"]["error"].startswith("PoolCrashed: "):
            raise Failure(
                f"the supervised caller read no PoolCrashed, but {told['crashed']['error']}"
            )
        if "failed" in told:
            raise Failure(
                "the supervised sub-pool was not recovered: the next call failed with "
                f"{told['failed']['first']}"
            )

    def _table(self) -> str:
        def row(label: str, cell: Callable[[Side], object]) -> str:
            return f"{label:27}" + "".join(f"{cell(side):>12}" for side in self._sides)

        states = self._supervised.states()
        rows = [
            row("after the kill", lambda side: side.name),
            row("the call in flight failed", lambda side: side.after(side.told["crashed"]["at"])),
            row("the next answer came", lambda side: side.after(side.told["answered"])),
            row("calls failed in between", lambda side: side.told["failed"]["calls"]),
            *(f"the sub-pool was {state:10}{'-':>12}{at:>12}" for state, at in states),
            f"{'restarts':27}{'-':>12}{self._supervised.host.reports['recovered']:>12}",
        ]
        return "\n".join(["", *rows])


class Side:
    """A main pool with two sub-pools, and a caller of one of these."""

    def __init__(self, name: str, environment: dict[str, str], children: Children) -> None:
        self.name = name
        self.host = children.start(f"the {name} main pool", environment, "host")
        self.caller = children.start(f"the {name} caller", environment, "caller")
        self._killed = 0.0

    def kill(self) -> None:
        pid = self.host.reports["ready"]["pid"]
        self._killed = time.time()
        with contextlib.suppress(psutil.NoSuchProcess):
            psutil.Process(pid).kill()
        print(f"kill -9 {pid}  # {self.name}", flush=True)

    def after(self, moment: float | None) -> str:
        """How long after the kill that was."""
        return "never" if moment is None else f"{moment - self._killed:.2f} s"

    @property
    def told(self) -> dict[str, Any]:
        """What its caller has reported."""
        return {"failed": {"calls": 0}, "answered": None, **self.caller.reports}

    def story(self) -> Iterator[str]:
        """What its caller read."""
        yield f"{self.name}: the call in flight failed with"
        yield _quoted(self.told["crashed"]["error"])
        if self.told["failed"]["calls"]:
            yield "and the next call with"
            yield _quoted(self.told["failed"]["first"])
        else:
            waited = self.told["answered"] - self.told["crashed"]["at"]
            yield f"and the next call waited for {waited:.2f} s, and succeeded."

    def states(self) -> Iterator[tuple[str, str]]:
        """Those of the sub-pool after the kill, with their time, as its main pool tells them."""
        for state, since in self.host.reports["states"]:
            if since >= self._killed:
                yield state, self.after(since)


def _quoted(text: str) -> str:
    return textwrap.indent(textwrap.fill(text, WIDTH - 4, break_on_hyphens=False), "    ")
