"""Scenario: descriptors over time."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import click

from .endpoints import Client
from .harness import OURS, STOCK, Reach, Result, plot, progress, publish
from .processes import Child, children, idle_closing, raise_descriptor_limit

TIMEOUT = 1.0
WIDTH = 50  # endpoints that are in use at a time
AT_ONCE = 8
THREADS = 20
REST = 2 * TIMEOUT + 1
SAMPLE_INTERVAL = 0.1
SPARE = 100  # descriptors of a process, for all that is no connection


class Visitor(Client):
    """The client process."""

    async def moving(self, addresses: list[str], calls: int, seconds: float) -> int:
        """Visit all, a few at a time, and rest with the last ones still in use."""
        plan = list(_plan(addresses, calls))
        started = time.monotonic()
        for i in range(0, len(plan), AT_ONCE):
            await asyncio.sleep(started + seconds * i / len(plan) - time.monotonic())
            await asyncio.gather(*map(self.call, plan[i : i + AT_ONCE]))
        until = time.monotonic() + REST
        while time.monotonic() < until:
            await self.call_all(addresses[-WIDTH:])
            await asyncio.sleep(TIMEOUT / 4)
        return WIDTH

    async def bursts(self, addresses: list[str], bursts: int) -> int:
        """Call all at once, and again after a pause."""
        for _ in range(bursts):
            await asyncio.gather(*map(self.call, addresses))
            await asyncio.sleep(REST)
        return 0

    async def start_threads(self, threads: int) -> None:
        """Start threads with a loop each, which has descriptors of its own."""
        self._loops = [asyncio.new_event_loop() for _ in range(threads)]
        for loop in self._loops:
            threading.Thread(target=loop.run_forever, daemon=True).start()

    async def threads(self, addresses: list[str]) -> int:
        """Let all threads visit all addresses, and live on without calling."""
        visits = [
            asyncio.run_coroutine_threadsafe(self.call_all(addresses, AT_ONCE), loop)
            for loop in self._loops
        ]
        await asyncio.gather(*map(asyncio.wrap_future, visits))
        await asyncio.sleep(REST)
        return 0

    async def loops(self, addresses: list[str], loops: int) -> int:
        """Let short loops visit all, one after the other; they are closed without a goodbye."""

        def run() -> None:
            for _ in range(loops):
                loop = asyncio.new_event_loop()
                loop.run_until_complete(self.call_all(addresses, AT_ONCE))
                loop.close()

        await asyncio.to_thread(run)
        await asyncio.sleep(REST)
        return 0


def _plan(addresses: list[str], calls: int) -> Iterator[str]:
    """Addresses in an order that is the same for all: a working set that moves through them."""
    rng = random.Random(1)
    for newest, address in enumerate(addresses):
        yield address
        for _ in range(calls // len(addresses) - 1):
            yield addresses[newest - rng.randrange(min(WIDTH, newest + 1))]


class Side:
    """A client and its server, and how many connections each holds by time."""

    def __init__(self, client: Child, server: Child) -> None:
        self.processes = {"client": client, "server": server}
        self.times: list[float] = []
        self.connections: dict[str, list[int]] = {"client": [], "server": []}

    def prepare(self, endpoints: int, threads: int) -> None:
        client, server = self.processes.values()
        client.ask("start_threads", threads)
        self._addresses = server.ask("open", endpoints)
        self._before = {name: each.descriptors() for name, each in self.processes.items()}

    def begin(self, method: str, *arguments: Any) -> None:
        self._started = time.monotonic()
        self.processes["client"].order(method, self._addresses, *arguments)

    def sample(self) -> None:
        self.times.append(time.monotonic() - self._started)
        for name, each in self.processes.items():
            self.connections[name].append(each.descriptors() - self._before[name])

    @property
    def result(self) -> dict[str, Any]:
        return {"seconds": self.times, **self.connections}


def run(method: str, endpoints: int, *arguments: Any) -> tuple[dict[str, Side], int]:
    """Let stock and ours do the same side by side; with the size of the working set at rest."""

    def client(environment: dict[str, str]) -> Callable[[], Child]:
        return lambda: Child("benchmarks.descriptors:Visitor", environment)

    def server() -> Child:
        return Child("benchmarks.endpoints:Endpoints")

    with children(client({}), server, client(idle_closing(TIMEOUT)), server) as four:
        sides = {STOCK: Side(*four[:2]), OURS: Side(*four[2:])}
        for side in sides.values():
            side.prepare(endpoints, THREADS if method == "threads" else 0)
        for side in sides.values():
            side.begin(method, *arguments)
        clients = [side.processes["client"] for side in sides.values()]
        while any(each.busy for each in clients):
            time.sleep(SAMPLE_INTERVAL)
            for side in sides.values():
                side.sample()
        (working_set,) = {each.answer() for each in clients}
    return sides, working_set


def _front(endpoints: int, sides: dict[str, Side], figure: Any) -> None:
    """The picture of the README: the client's connections alone, named where they are."""
    axes = figure.subplots()
    names = {STOCK: "stock xoscar", OURS: f"with xoscar-idle, idle timeout {TIMEOUT:g} s"}
    for key, side in sides.items():
        counts = side.connections["client"]
        (line,) = axes.plot(side.times, counts)
        axes.annotate(
            f"{names[key]}: {counts[-1]:,} in the end",
            (side.times[-1], counts[-1]),
            (0, 12 if key == STOCK else 30),
            textcoords="offset points",
            ha="right",
            color=line.get_color(),
        )
    axes.set_title(f"A client calls {endpoints:,} endpoints, {WIDTH} of them at a time")
    axes.set_xlabel("seconds")
    axes.set_ylabel("connections")
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.set_ylim(0, 1.15 * endpoints)
    axes.set_xlim(left=0)


@click.command()
@click.option(
    "--endpoints", default="100,1000,10000", show_default=True, help="How many there are."
)
def descriptors(endpoints: str) -> None:
    """Descriptors of client and server over time, stock beside ours."""
    limit = raise_descriptor_limit() - SPARE
    result = Result(
        "descriptors",
        "Descriptors over time",
        f"A client process calls endpoints in a server process over TCP, {AT_ONCE} calls at "
        f"once, from a working set of {WIDTH} that moves through all of them; then it calls only "
        f"the last {WIDTH} for {REST:g} s. Stock xoscar and xoscar-idle ({TIMEOUT:g} s) do the "
        "same side by side, each with a server of its own. The figures are connections: "
        "descriptors less those before the first call.",
    )
    table = result.table(
        "Connections", "workload", "process", "stock, peak", "ours, peak", "stock, at rest",
        "ours, at rest", "of these in use",
    )  # fmt: skip
    workloads: list[tuple[str, str, int, tuple[Any, ...]]] = []
    for n in sorted({min(int(each), limit) for each in endpoints.split(",")}):
        seconds = max(6.0, n / 500)
        workloads.append((f"{n:,} endpoints", "moving", n, (2 * n if n > 200 else 10 * n, seconds)))
    workloads += [
        ("2 bursts of 500 calls", "bursts", min(500, limit), (2,)),
        (f"{THREADS} threads, 25 endpoints", "threads", 25, ()),
        ("40 loops, 25 endpoints", "loops", 25, (40,)),
    ]
    excess = 0
    drawn = []
    for name, method, n, arguments in workloads:
        progress(f"descriptors: {name}")
        sides, working_set = run(method, n, *arguments)
        for process in ("client", "server"):
            counts = [side.connections[process] for side in sides.values()]
            at_rest = [count[-1] for count in counts]
            excess = max(excess, at_rest[1] - working_set)
            table.rows.append((name, process, *map(max, counts), *at_rest, working_set))
        result.data[name] = {key: side.result for key, side in sides.items()}
        drawn.append((name, sides))
    result.reaches.append(Reach("connections at rest beyond the working set", float(excess), 0.0))

    def draw(figure: Any) -> None:
        axes = figure.subplots(len(drawn), 2, squeeze=False)
        for row, (name, sides) in zip(axes, drawn, strict=True):
            for axis, process in zip(row, ("client", "server"), strict=True):
                for key, side in sides.items():
                    axis.plot(side.times, side.connections[process], label=key)
                axis.set_title(f"{name}, {process}", fontsize="medium")
                axis.set_ylim(bottom=0)
        for axis in axes[-1]:
            axis.set_xlabel("seconds")
        axes[0][0].legend()
        figure.supylabel("connections")

    result.plots.append(plot("descriptors", draw, (10, 2.4 * len(drawn))))
    most = max(n for _, method, n, _ in workloads if method == "moving")
    largest = dict(drawn)[f"{most:,} endpoints"]
    result.plots.append(plot("connections", partial(_front, most, largest), (9, 4), front=True))
    publish(result)
