"""Scenario: the cost of a call."""

from __future__ import annotations

import statistics
from functools import partial

import click
import psutil

from . import caller_work
from .harness import OURS, STOCK, Ratio, Reach, Result, interleave, progress, publish
from .processes import Child, children, idle_closing

LIMIT = 1.0
SMALL, LARGE = 100, 10_000_000
MEMORY_FACTOR = 6  # copies of what is in flight that client and server may have between them


def _calls(size: int, callers: int) -> int:
    """How many calls a measurement takes: so many that it takes about half a second."""
    if size == LARGE:
        return max(callers, 20)
    return 800 if callers == 1 else 2000


def _end_to_end(result: Result, loop: str, rounds: int) -> None:
    client = "benchmarks.pools:Caller"
    with children(
        lambda: Child("benchmarks.pools:Pools", loop=loop),
        lambda: Child(client, loop=loop),
        lambda: Child(client, idle_closing(30), loop=loop),
    ) as (server, stock, ours):
        addresses = server.ask("open", 1)
        ((external, internal),) = addresses.items()
        for transport, route in (("TCP", None), ("unix socket", internal)):
            for client_ in (stock, ours):
                client_.ask("connect", external, route)
            for size in (SMALL, LARGE):
                for callers in (1, 100):
                    free = psutil.virtual_memory().available
                    callers = max(1, min(callers, free // (size * MEMORY_FACTOR)))
                    name = f"{transport}, {loop}, {size:,} B, {callers} at once"
                    progress(f"calls: {name}")
                    order = ("call", size, callers, _calls(size, callers))
                    # What takes seconds needs no warming up, and fewer rounds.
                    few = size == LARGE and callers > 1
                    measured = interleave(
                        {STOCK: partial(stock.ask, *order), OURS: partial(ours.ask, *order)},
                        3 if few else rounds,
                        warm_up=0 if few else 1,
                    )
                    ratio = Ratio.of(measured[OURS], measured[STOCK])
                    medians = [statistics.median(each) * 1e6 for each in measured.values()]
                    result.tables[-1].rows.append(
                        (transport, loop, f"{size:,} B", callers, *medians, ratio)
                    )
                    result.data[f"{name}, seconds per call"] = measured
        server.ask("close")


@click.command()
@click.option("--rounds", default=5, show_default=True, help="How often both sides take turns.")
@click.option("--calls", "n", default=5_000, show_default=True, help="Calls in memory per turn.")
@click.option("--memory-only", is_flag=True, help="Leave out the calls over sockets.")
def calls(rounds: int, n: int, memory_only: bool) -> None:
    """Cost of a call: in memory, and between processes."""
    result = Result(
        "calls",
        "Cost of a call",
        "In memory: stock xoscar's `ActorCaller` and `Router`, with xoscar-idle installed and not, "
        "turn about in one process, over a connection that answers each message with itself in "
        "the loop's next turn. End to end: two client processes, one of them with xoscar-idle, "
        "take turns in calling an actor in a third, which is stock. All on one machine, so the "
        "server's share is in the figures.",
    )
    caller_work.measure(result, rounds, n)
    if not memory_only:
        result.table(
            "Between processes, microseconds per call (with many at once: the time of all by their "
            "number)",
            "transport", "loop", "payload", "callers at once", STOCK, OURS, "ratio",
        )  # fmt: skip
        for loop in ("asyncio", "uvloop"):
            _end_to_end(result, loop, rounds)
        ratios: list[Ratio] = [row[-1] for row in result.tables[-1].rows]
        middle = statistics.geometric_mean(ratio.median for ratio in ratios)
        worst = max(ratios, key=lambda ratio: ratio.median)
        result.reaches += [
            Reach("a call end to end, geometric mean of all forms", middle, LIMIT),
            Reach("a call end to end, worst form", worst.median, LIMIT, worst.spread),
        ]
    publish(result)
