"""Scenario: how late connections are closed."""

from __future__ import annotations

import asyncio
import time
from functools import partial
from typing import Any

import click

from .endpoints import Client
from .harness import Reach, Result, percentile, plot, progress, publish
from .processes import Child, children, idle_closing, raise_descriptor_limit

LIMIT = 0.1
MARGIN = 4.0  # all are called before the first of them expires, also on a slow machine
SPARE = 100
AT_ONCE = 8


class Caller(Client):
    """Opens connections, and knows when each fell idle."""

    async def call_each(self, addresses: list[str], seconds: float) -> dict[str, float]:
        """Call each once within so many seconds; when its reply was there."""
        idle_since: dict[str, float] = {}

        async def call(address: str) -> None:
            await self.call(address)
            idle_since[address] = time.monotonic()

        started = time.monotonic()
        for i in range(0, len(addresses), AT_ONCE):
            await asyncio.sleep(started + seconds * i / len(addresses) - time.monotonic())
            await asyncio.gather(*map(call, addresses[i : i + AT_ONCE]))
        return idle_since


def _lateness(client: Child, server: Child, n: int, seconds: float, timeout: float) -> list[float]:
    server.ask("collect_no_garbage")
    addresses = server.ask("open", n)
    time.sleep(0.5)
    client.ask("call_each", addresses, 0.0)  # opens them, which takes longer than calling does
    idle_since = client.ask("call_each", addresses, seconds)
    last = max(idle_since.values())
    while True:
        time.sleep(0.5)
        ended = server.ask("ended")
        if all(ended.get(address, 0.0) > since for address, since in idle_since.items()):
            return [ended[each] - since - timeout for each, since in idle_since.items()]
        if time.monotonic() > last + timeout + 30:
            raise RuntimeError("there are connections that were not closed")


@click.command()
@click.option("--connections", default=10_000, show_default=True)
@click.option("--seconds", default=8.0, show_default=True, help="Over which they fall idle.")
def lateness(connections: int, seconds: float) -> None:
    """How long after its deadline a connection is closed."""
    n = min(connections, raise_descriptor_limit() - SPARE)
    result = Result(
        "lateness",
        "Lateness",
        f"{n:,} connections over TCP fall idle one after the other within {seconds:g} s, and "
        f"then, in a second run, as fast as they can be called; the idle timeout is {MARGIN:g} s "
        "longer than that takes. Counted is from the deadline, which is the timeout after the "
        "reply was there, to the moment the server, another process without garbage collection, "
        "has seen the connection end.",
    )
    table = result.table(
        "Milliseconds from the deadline to the end as the server sees it",
        "connections fall idle", "p50", "p99", "latest", "earliest",
    )  # fmt: skip
    measured: dict[str, list[float]] = {}
    for name, duration in ((f"within {seconds:g} s", seconds), ("all at once", 0.0)):
        progress(f"lateness: {n:,} connections, {name}")
        timeout = duration + MARGIN
        with children(
            partial(Child, "benchmarks.lateness:Caller", idle_closing(timeout)),
            partial(Child, "benchmarks.endpoints:Endpoints"),
        ) as (client, server):
            late = measured[name] = _lateness(client, server, n, duration, timeout)
        p50, p99 = percentile(late, 50), percentile(late, 99)
        table.rows.append((name, *(1e3 * each for each in (p50, p99, max(late), min(late)))))
        goal = f"lateness p99 at {n:,} connections that fall idle {name}, ms"
        result.reaches.append(Reach(goal, p99 * 1e3, LIMIT * 1e3))
    result.data = dict(measured)

    def draw(figure: Any) -> None:
        axis = figure.subplots()
        for name, late in measured.items():
            ordered = sorted(late)
            axis.plot(
                [1e3 * each for each in ordered],
                [i / len(ordered) for i in range(1, len(ordered) + 1)],
                label=name,
            )
        axis.axvline(LIMIT * 1e3, color="gray", linestyle=":")
        axis.set_xlabel("milliseconds after the deadline")
        axis.set_ylabel("share of connections closed")
        axis.legend()

    result.plots.append(plot("lateness", draw))
    publish(result)
