"""Scenario: healthy calls while other endpoints are dialed that never answer."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Iterator
from typing import Any

import click

from .endpoints import Client
from .harness import OURS, STOCK, Ratio, Reach, Result, percentile, plot, progress, publish
from .processes import Child, children, idle_closing

LIMIT = 1.2
HEALTHY = 10
PAUSE = 0.0005
HOPELESS_ROUNDS = 2  # of stock with a dead endpoint: hardly a call returns


@contextlib.contextmanager
def deaf_endpoints(n: int) -> Iterator[list[str]]:
    """Addresses where connects are neither accepted nor refused."""
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(socket.create_server(("0.0.0.0", 0), backlog=0))
        port = server.getsockname()[1]
        for _ in range(4):  # fill the queue that nobody accepts from
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(("127.0.0.1", port))
        yield [f"127.2.0.{i}:{port}" for i in range(1, n + 1)]


class Caller(Client):
    """Calls the healthy, and dials the deaf."""

    async def run(self, healthy: list[str], deaf: list[str], seconds: float) -> list[float]:
        """Seconds that each call to a healthy endpoint took; one without end counts as it is."""
        self.renew()
        await self.call_all(healthy)
        dials = [asyncio.ensure_future(self._dial(address)) for address in deaf]
        latencies: list[float] = []
        until = time.perf_counter() + seconds
        await asyncio.sleep(0.1)
        i = 0
        while (started := time.perf_counter()) < until:
            call = asyncio.ensure_future(self.call(healthy[i % len(healthy)]))
            await asyncio.wait([call], timeout=until - started)
            latencies.append(time.perf_counter() - started)
            call.cancel()
            await asyncio.sleep(PAUSE)
            i += 1
        for dial in dials:
            dial.cancel()
        await self.owner.stop()
        await asyncio.sleep(0.1)
        return latencies

    async def _dial(self, address: str) -> None:
        while True:
            with contextlib.suppress(OSError):
                await self.call(address)


@click.command()
@click.option("--seconds", default=1.0, show_default=True, help="For which healthy calls are made.")
@click.option("--rounds", default=3, show_default=True)
def dead_endpoint(seconds: float, rounds: int) -> None:
    """Latency of healthy calls while dead endpoints are dialed."""
    counts = (0, 1, 10, 100)
    result = Result(
        "dead_endpoint",
        "Dead endpoints",
        f"A client calls {HEALTHY} endpoints over open TCP connections, one call every "
        f"{PAUSE * 1e3:g} ms, while it dials others whose queue of connections is full, so that "
        f"they neither accept nor refuse. A turn takes {seconds:g} s; stock and ours, and the "
        f"numbers of dead endpoints, take turns, {rounds} times (stock with dead ones: "
        f"{HOPELESS_ROUNDS}). A call that has not returned "
        "when its turn ends counts with the time it took until then.",
    )
    table = result.table(
        "Latency of healthy calls, milliseconds", "dead endpoints", "stock, p50", "ours, p50",
        "stock, p99", "ours, p99", "stock, calls", "ours, calls",
    )  # fmt: skip
    with (
        children(
            lambda: Child("benchmarks.endpoints:Endpoints"),
            lambda: Child("benchmarks.dead_endpoint:Caller"),
            lambda: Child("benchmarks.dead_endpoint:Caller", idle_closing(30)),
        ) as (server, stock, ours),
        deaf_endpoints(max(counts)) as deaf,
    ):
        healthy = server.ask("open", HEALTHY)
        latencies: dict[tuple[str, int], list[list[float]]] = {}
        for number in range(rounds):
            progress(f"dead endpoints: round {number + 1} of {rounds}")
            for count in counts:
                for side, client in ((STOCK, stock), (OURS, ours)):
                    if side == STOCK and count and number >= HOPELESS_ROUNDS:
                        continue
                    turn = client.ask("run", healthy, deaf[:count], seconds)
                    latencies.setdefault((side, count), []).append(turn)
    p99 = {key: [percentile(turn, 99) for turn in turns] for key, turns in latencies.items()}
    for count in counts:
        flat = [
            [each for turn in latencies[side, count] for each in turn] for side in (STOCK, OURS)
        ]
        table.rows.append(
            (
                count,
                *(1e3 * percentile(each, 50) for each in flat),
                *(1e3 * percentile(each, 99) for each in flat),
                *map(len, flat),
            )
        )
    ratio = Ratio.of(p99[OURS, counts[-1]], p99[OURS, 0])
    goal = f"p99 of healthy calls with {counts[-1]} dead endpoints to that with none"
    result.reaches.append(Reach(goal, ratio.median, LIMIT, ratio.spread))
    result.data = {f"{side}, {count} dead": turns for (side, count), turns in latencies.items()}

    def draw(figure: Any) -> None:
        axis = figure.subplots()
        for side in (STOCK, OURS):
            axis.plot(
                list(map(str, counts)),
                [row[3 if side == STOCK else 4] for row in table.rows],
                marker="o",
                label=side,
            )
        axis.set_yscale("log")
        axis.set_xlabel("dead endpoints being dialed")
        axis.set_ylabel("p99 of healthy calls, milliseconds")
        axis.legend()

    result.plots.append(plot("dead_endpoint", draw, (7, 4)))
    publish(result)
