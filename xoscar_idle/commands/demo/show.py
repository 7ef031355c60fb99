"""The demonstration's parent: it starts the sides, counts, draws and judges."""

from __future__ import annotations

import itertools
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

from ... import descriptors
from ...gate import IDLE_TIMEOUT
from .crash import Crash
from .process import (
    CALL_TIMEOUT,
    GRACE,
    SPARE_DESCRIPTORS,
    START_TIMEOUT,
    Child,
    Children,
    Failure,
    Interrupted,
)

# Times are in seconds.
SERVERS = 2  # processes per side


def demo(endpoints: int = 300, seconds: float = 24.0, idle_timeout: float = 2.0) -> int:
    """Show stock xoscar and xoscar with this package side by side: idle connections, then a crash.

    Parameters
    ----------
    endpoints
        How many endpoints each client visits; fewer if the limit on descriptors demands it.
    seconds
        How long the visits go on. A rest of somewhat more than ``idle_timeout`` and a last visit
        to some endpoints follow.
    idle_timeout
        Seconds after which the reaping client closes a connection; at most a third of
        ``seconds``, so that there is something to see.

    Returns
    -------
    int
        The exit status: 0 if no call was lost, the reaping client came to rest with fewer
        descriptors than the stock one, and the supervised side told of its crash and recovered
        without the loss of a further call; 1 if not, 128 + n if signal n ended the demonstration.

    Raises
    ------
    ValueError
        An argument is bad.
    """
    _check(endpoints, seconds, idle_timeout)
    try:
        return _run(_affordable(endpoints), seconds, idle_timeout)
    except Failure as failure:
        print(f"Failed: {failure}.", flush=True)
        return 1
    except Interrupted as interrupted:
        print("Interrupted; all processes of the demonstration have ended.", flush=True)
        return 128 + int(interrupted.args[0])


def _check(endpoints: int, seconds: float, idle_timeout: float) -> None:
    if endpoints < 2:
        raise ValueError(f"endpoints must be 2 or more, got {endpoints}: give a larger number")
    if not (math.isfinite(seconds) and seconds > 0):
        raise ValueError(
            f"seconds must be finite and more than 0, got {seconds:g}: give a longer time"
        )
    if not 0 < idle_timeout <= seconds / 3:
        raise ValueError(
            f"idle_timeout must be more than 0 and at most a third of seconds, got "
            f"{idle_timeout:g} of {seconds:g}: give 0 < idle_timeout <= {seconds / 3:g}, "
            "or more seconds"
        )


def _affordable(endpoints: int) -> int:
    """As many endpoints as one process may have descriptors for, said if they are fewer."""
    _, hard = descriptors.limits()
    if hard is None or endpoints + SPARE_DESCRIPTORS <= hard:
        return endpoints
    limit = f"a process may open {hard} descriptors here (ulimit -Hn)"
    affordable = hard - SPARE_DESCRIPTORS
    if affordable < 2:
        raise Failure(f"{limit}, too few: raise that to {endpoints + SPARE_DESCRIPTORS}")
    print(f"There are {affordable} endpoints instead of {endpoints}, since {limit}.")
    return affordable


def _run(endpoints: int, seconds: float, idle_timeout: float) -> int:
    rest = 1.5 * idle_timeout + 0.5
    print(
        f"Two clients visit {endpoints} endpoints each, a few at a time, for {seconds:g} s, then "
        f"rest.\nThe reaping one runs with {IDLE_TIMEOUT}={idle_timeout:g}, the stock one "
        "without.\n",
        flush=True,
    )
    shares = [(endpoints + i) // SERVERS for i in range(SERVERS)]
    directory = tempfile.TemporaryDirectory(prefix="xoscar-idle-", ignore_cleanup_errors=True)
    with directory as records, Children() as children:

        def start(name: str, environment: dict[str, str]) -> Side:
            servers = [
                children.start(f"a server of the {name} client", {}, "server", share)
                for share in shares
            ]
            client = children.start(f"the {name} client", environment, "client", seconds, rest)
            return Side(name, client, servers)

        stock = start("stock", {})
        reaping = start("reaping", {IDLE_TIMEOUT: str(idle_timeout)})
        sides = [stock, reaping]
        clients = [side.client for side in sides]
        children.wait([*clients, *stock.servers, *reaping.servers], "ready", START_TIMEOUT)
        if not reaping.client.reports["ready"]:
            raise Failure(
                f"idle closing is not active in the reaping client: install xoscar-idle and a "
                f"xoscar that it supports for {sys.executable}"
            )
        for side in sides:
            side.client.order([a for server in side.servers for a in server.reports["ready"]])
        board = Board(sides, endpoints)
        children.wait(clients, "visited", seconds + GRACE, board.update)
        crash = Crash(children, records)  # the machine has time for its start now
        children.wait(clients, "rested", rest + GRACE, board.update)
        for side in sides:
            side.final = side.now
            side.client.order("visit again")
        children.wait(clients, "done", CALL_TIMEOUT + GRACE, board.update)
        print(_table(sides))
        _judge(stock, reaping)
        crash.show()
    return 0


class Side:
    """A client and its servers. Descriptor counts are pairs: of the client, of the servers."""

    def __init__(self, name: str, client: Child, servers: list[Child]) -> None:
        self.name = name
        self.client = client
        self.servers = servers
        self.now = self.peak = self.final = (0, 0)

    def sample(self) -> None:
        of_servers = sum(server.descriptors() for server in self.servers)
        self.now = (self.client.descriptors(), of_servers)
        self.peak = (max(self.peak[0], self.now[0]), max(self.peak[1], self.now[1]))

    @property
    def progress(self) -> dict[str, Any]:
        none_yet: dict[str, Any] = {"phase": "visiting", "calls": 0, "lost": 0}
        return {**none_yet, **self.client.reports.get("progress", {})}


class Board:
    """The descriptors as they move: bars on a terminal, else a line each time."""

    def __init__(self, sides: list[Side], endpoints: int) -> None:
        self._sides = sides
        self._started = time.monotonic()
        self._bars = sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb"
        # A server process has a listening socket and an accepted one per endpoint.
        self._full = 2 * endpoints + SPARE_DESCRIPTORS
        self._drawn = 0
        if not self._bars:
            print("Descriptors of the client and of its servers, and calls made:\n")
            heading = "".join(f"{f'{side.name} client':>15} servers  calls" for side in sides)
            print(f"seconds{heading}")

    def update(self) -> None:
        """Count and show."""
        for side in self._sides:
            side.sample()
        elapsed = time.monotonic() - self._started
        phase = self._sides[-1].progress["phase"]
        if self._bars:
            self._redraw(
                [f"{phase}, {elapsed:.1f} s", *itertools.chain(*map(self._rows, self._sides))]
            )
        else:
            counts = "".join(
                f"{side.now[0]:15}{side.now[1]:8}{side.progress['calls']:7}" for side in self._sides
            )
            print(f"{elapsed:7.1f}{counts}  {phase}", flush=True)

    def _rows(self, side: Side) -> Iterator[str]:
        for label, count in zip(("client ", "servers"), side.now, strict=True):
            bar = "#" * (50 * count // self._full)
            yield f"{side.name:8} {label} {count:6}  {bar}"
        yield f"{'':8} calls  {side.progress['calls']:6}, {side.progress['lost']} lost"

    def _redraw(self, lines: list[str]) -> None:
        up = f"\x1b[{self._drawn}A" if self._drawn else ""
        print(up + "".join(f"\x1b[K{line}\n" for line in lines), end="", flush=True)
        self._drawn = len(lines)


def _table(sides: list[Side]) -> str:
    def row(label: str, cell: Callable[[Side], object]) -> str:
        return f"{label:27}" + "".join(f"{cell(side):>12}" for side in sides)

    def latency(side: Side, which: str) -> str:
        return f"{side.client.reports['done'][which] * 1000:.2f} ms"

    rows = [
        row("", lambda side: side.name),
        row("client's descriptors, peak", lambda side: side.peak[0]),
        row("client's descriptors, final", lambda side: side.final[0]),
        row("servers' descriptors, peak", lambda side: side.peak[1]),
        row("servers' descriptors, final", lambda side: side.final[1]),
        row("calls made", lambda side: side.progress["calls"]),
        row("calls lost", lambda side: side.progress["lost"]),
        row("latency, median", lambda side: latency(side, "median")),
        row("latency, p99", lambda side: latency(side, "p99")),
    ]
    return "\n".join(["", *rows, ""])


def _judge(stock: Side, reaping: Side) -> None:
    for side in (stock, reaping):
        if lost := side.progress["lost"]:
            raise Failure(
                f"the {side.name} client lost {lost} of {side.progress['calls']} calls, the first "
                f"to {side.client.reports['lost']}"
            )
    if reaping.final[0] >= stock.final[0]:
        raise Failure(
            f"at rest the reaping client held {reaping.final[0]} descriptors, not fewer than the "
            f"{stock.final[0]} of the stock one"
        )
    print(
        f"At rest the stock client held {stock.final[0]} descriptors and the reaping one "
        f"{reaping.final[0]};\nit opened what it needed again on the last visits, and no call "
        "was lost.",
        flush=True,
    )
