"""The demonstration: stock xoscar beside xoscar with idle closing, on real pools.

Each of the two sides has two server processes full of endpoints and one client process. The
clients make the same calls; they differ in one environment variable. The parent counts the
descriptors of all of them from outside.

The parent and its children speak JSON lines: orders on a child's stdin, reports on its stdout. A
child ends when its stdin does, so none outlives the parent, whatever ends that.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import logging
import math
import os
import queue
import random
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import psutil

from ..config import IDLE_TIMEOUT

# Times are in seconds.
SERVERS = 2  # processes per side
CONCURRENCY = 8  # calls at once per client
RATE = 200  # calls per second and client, which leaves two cores room for all processes
LAST_VISITS = 16
SAMPLE_INTERVAL = 0.4
CALL_TIMEOUT = 10.0
START_TIMEOUT = 60.0
GRACE = 30.0  # for clients that a loaded machine makes late
SPARE_DESCRIPTORS = 64  # of a process, for all that is not an endpoint

Orders = queue.SimpleQueue[str]


class Failure(Exception):
    """The demonstration cannot be completed; the message is for its user."""


class Interrupted(Exception):
    """A signal asked for the end; its number is the argument."""


# The parent


def demo(endpoints: int = 300, seconds: float = 24.0, idle_timeout: float = 2.0) -> int:
    """Show a stock client and one that closes idle connections, side by side.

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
        The exit status: 0 if no call was lost and the reaping client came to rest with fewer
        descriptors than the stock one, 1 if not, 128 + n if signal n ended the demonstration.

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
    if sys.platform == "win32":
        return endpoints
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY or endpoints + SPARE_DESCRIPTORS <= hard:
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
    with _noted_signals() as signals, contextlib.ExitStack() as stack:

        def start(name: str, environment: dict[str, str]) -> Side:
            shares = [(endpoints + i) // SERVERS for i in range(SERVERS)]
            servers = [
                stack.enter_context(Child(f"a server of the {name} client", {}, "server", share))
                for share in shares
            ]
            client = Child(f"the {name} client", environment, "client", seconds, rest)
            return Side(name, stack.enter_context(client), servers)

        stock = start("stock", {})
        reaping = start("reaping", {IDLE_TIMEOUT: str(idle_timeout)})
        clients = [stock.client, reaping.client]

        def wait(
            children: list[Child],
            event: str,
            within: float,
            step: Callable[[], None] = lambda: None,
        ) -> None:
            """Until all have reported ``event``; ``step`` is called all the while."""
            deadline = time.monotonic() + within
            while True:
                time.sleep(SAMPLE_INTERVAL)
                if signals:
                    raise Interrupted(signals[0])
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

        wait([*clients, *stock.servers, *reaping.servers], "ready", START_TIMEOUT)
        if not reaping.client.reports["ready"]:
            raise Failure(
                f"idle closing is not active in the reaping client: install xoscar-idle and a "
                f"xoscar that it supports for {sys.executable}"
            )
        sides = [stock, reaping]
        for side in sides:
            side.client.order([a for server in side.servers for a in server.reports["ready"]])
        board = Board(sides, endpoints)
        wait(clients, "rested", seconds + rest + GRACE, board.update)
        for side in sides:
            side.final = side.now
            side.client.order("visit again")
        wait(clients, "done", CALL_TIMEOUT + GRACE, board.update)
    print(_table(sides))
    return _verdict(stock, reaping)


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


class Child:
    """A process of this module, from its start to the end of the ``with`` block."""

    def __init__(self, name: str, environment: dict[str, str], *arguments: object) -> None:
        self.name = name
        self.reports: dict[str, Any] = {}
        """The latest report of each kind."""
        # Of xoscar's variables a child has those that are given, so that the sides differ in
        # these alone.
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("XOSCAR_")}
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
            process = psutil.Process(self.process.pid)
            if sys.platform == "win32":
                return process.num_handles()
            return process.num_fds()
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


def _verdict(stock: Side, reaping: Side) -> int:
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
    return 0


# The children


def _report(kind: str, value: object) -> None:
    print(json.dumps([kind, value]), flush=True)


def _orders() -> Orders:
    """The orders as they come in. This process ends with them: the parent has gone."""
    orders = Orders()

    def read() -> None:
        for line in sys.stdin:
            orders.put(line)
        os._exit(0)

    threading.Thread(target=read, daemon=True).start()
    return orders


def _allow(descriptors: int) -> None:
    """Raise this process's soft limit, if need be, so that it can open so many."""
    if sys.platform == "win32":
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < descriptors:
        resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, hard))


async def _serve(endpoints: int) -> None:
    """Host that many pools with an actor each, until the process ends."""
    import xoscar as xo

    class Echo(xo.StatelessActor):  # type: ignore[misc]
        async def echo(self, number: int) -> tuple[str, int]:
            return self.address, number

    _allow(2 * endpoints + SPARE_DESCRIPTORS)
    pools = []
    for _ in range(endpoints):
        # An internal address would be a unix socket, whose file outlives a process that is ended.
        pool = await xo.create_actor_pool(
            "127.0.0.1", n_process=0, enable_internal_addresses=[False]
        )
        await xo.create_actor(Echo, uid="echo", address=pool.external_address)
        pools.append(pool)
    _report("ready", [pool.external_address for pool in pools])
    await asyncio.Event().wait()


def _plan(addresses: list[str], calls: int) -> Iterator[str]:
    """About ``calls`` addresses to call, in an order that is the same in every process.

    Calls go at random to a working set of an eighth of the addresses. It moves through all of
    them, and each is called at least four times.
    """
    rng = random.Random(2)
    order = rng.sample(addresses, len(addresses))
    width = max(1, len(order) // 8)
    for newest, address in enumerate(order):
        yield address
        for _ in range(max(4, round(calls / len(order))) - 1):
            yield order[newest - rng.randrange(min(width, newest + 1))]


class Visitor:
    """Calls endpoints, checks what they answer and keeps count."""

    def __init__(self) -> None:
        self._calls = 0
        self._lost = 0
        self._references: dict[str, Any] = {}
        self.latencies: list[float] = []
        """Seconds that each call took that was not lost, with connecting where it was needed."""

    async def visit(self, phase: str, addresses: list[str]) -> None:
        await asyncio.gather(*map(self._visit, addresses))
        self.report(phase)

    def report(self, phase: str) -> None:
        _report("progress", {"phase": phase, "calls": self._calls, "lost": self._lost})

    async def _visit(self, address: str) -> None:
        import xoscar as xo

        self._calls += 1
        number = self._calls
        started = time.perf_counter()
        try:
            # asyncio.wait_for would wait on for an answer to its cancellation.
            answer = await xo.wait_for(self._call(address, number), CALL_TIMEOUT)
            if answer != (address, number):
                raise ValueError(f"wrong answer {answer} to {number}")
        except Exception as error:
            if not self._lost:
                _report("lost", f"{address}: {type(error).__name__}: {error}")
            self._lost += 1
        else:
            self.latencies.append(time.perf_counter() - started)

    async def _call(self, address: str, number: int) -> Any:
        import xoscar as xo

        if address not in self._references:
            self._references[address] = await xo.actor_ref(address=address, uid="echo")
        return await self._references[address].echo(number)


async def _visit(orders: Orders, seconds: float, rest: float) -> None:
    """Visit the endpoints for so long, rest, and visit some of them again."""
    import xoscar as xo  # noqa: F401  # what the variable activates, it activates now

    from .. import is_active

    # It warns of every tenth connection from the hundredth on, which is what the board shows.
    logging.getLogger("xoscar.backends.core").setLevel(logging.ERROR)
    _report("ready", is_active())
    addresses = json.loads(await asyncio.to_thread(orders.get))
    _allow(len(addresses) + SPARE_DESCRIPTORS)
    visitor = Visitor()
    calls = list(_plan(addresses, round(RATE * seconds)))
    await visitor.visit("visiting", calls[:1])  # late, since xoscar imports more on its first call
    started = time.monotonic()
    for i in range(1, len(calls), CONCURRENCY):
        await asyncio.sleep(started + seconds * i / len(calls) - time.monotonic())
        await visitor.visit("visiting", calls[i : i + CONCURRENCY])
    visitor.report("resting")
    await asyncio.sleep(rest)
    _report("rested", True)
    await asyncio.to_thread(orders.get)
    again = addresses[:LAST_VISITS]
    for i in range(0, len(again), CONCURRENCY):
        await visitor.visit("last visits", again[i : i + CONCURRENCY])
    latencies = visitor.latencies
    percentiles = statistics.quantiles(latencies, n=100) if len(latencies) > 1 else [math.nan] * 99
    _report("done", {"median": percentiles[49], "p99": percentiles[98]})
    await asyncio.Event().wait()


def _main() -> None:
    parser = argparse.ArgumentParser(description="The child processes of xoscar-idle demo.")
    roles = parser.add_subparsers(dest="role", required=True)
    server = roles.add_parser("server")
    server.add_argument("endpoints", type=int)
    client = roles.add_parser("client")
    client.add_argument("seconds", type=float)
    client.add_argument("rest", type=float)
    arguments = parser.parse_args()
    orders = _orders()
    if arguments.role == "server":
        logging.getLogger("xoscar.backends.core").setLevel(logging.ERROR)
        asyncio.run(_serve(arguments.endpoints))
    else:
        asyncio.run(_visit(orders, arguments.seconds, arguments.rest))


if __name__ == "__main__":
    _main()
