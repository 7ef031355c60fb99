"""Scenario: the cost of the check and of closing, in memory."""

from __future__ import annotations

import asyncio
import gc
import statistics
import time
import tracemalloc
from functools import partial

import click

import xoscar_idle
from xoscar_idle.connection import registry

from .caller_work import within
from .endpoints import Client
from .harness import OURS, STOCK, Ratio, Reach, Result, interleave, progress, publish
from .memory import Caller, messages
from .processes import Child, children, idle_closing, quiet

TIMEOUT = 1000.0
CHECK_LIMIT, CLOSE_LIMIT, MEMORY_LIMIT, SAME = 10e-6, 50e-6, 1.1, 1.2


class ManualClock:
    """Seconds that pass when they are told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Idle:
    """So many idle connections in memory, opened at intervals of a second."""

    def __init__(self, n: int) -> None:
        self.n = n
        self.clock = ManualClock()
        self.caller = Caller()

    async def open(self) -> None:
        xoscar_idle.configure(idle_timeout=TIMEOUT + self.n)
        self._ours = registry.here(self.caller.owner)
        self._ours.clock = self.clock
        for i, message in enumerate(messages(self.n)):
            await self.caller.call(message, f"127.0.0.1:{i}")
            self.clock.now += 1

    def check(self) -> float:
        """Seconds that one turn of the check takes, up to its sleep."""
        turn = self._ours.periodic_check()
        started = time.perf_counter()
        turn.send(None)
        took = time.perf_counter() - started
        turn.close()
        return took

    async def expire(self, count: int) -> tuple[float, float]:
        """Seconds per close: deciding and unlinking alone, and until nothing is left of them."""
        # So late that as many have been idle for too long; the first fell idle at 1000.
        left = len(self._ours._all)
        first = self.n - left
        self.clock.now = 1000.0 + first + count - 1 + TIMEOUT + self.n
        gc.collect()
        started = time.perf_counter()
        turn = self._ours.periodic_check()
        turn.send(None)
        decided = time.perf_counter() - started
        while len(self._ours._all) > left - count:  # noqa: ASYNC110  # nothing else waits here
            await asyncio.sleep(0)
        closed = time.perf_counter() - started
        turn.close()
        assert len(self._ours._all) == left - count
        return decided / count, closed / count


async def _checks(n: int, rounds: int) -> dict[str, float]:
    idle = Idle(n)
    await idle.open()
    gc.collect()
    gc.freeze()  # else the collector would measure how much there is
    nothing = statistics.median(idle.check() for _ in range(200 * rounds))
    count = max(1, n // 100)
    closes = [await idle.expire(count) for _ in range(rounds)]
    decided, closed = (statistics.median(each) for each in zip(*closes, strict=True))
    gc.unfreeze()
    return {
        "nothing expired": nothing,
        "expired": count,
        "check that closes": decided * count,
        "deciding, per close": decided,
        "closing, per close": closed,
    }


async def _memory(n: int) -> float:
    """Bytes per idle connection of a caller, those of the connection itself included."""
    caller = Caller()
    asked = messages(n)
    addresses = [f"127.0.0.1:{i}" for i in range(n)]
    await caller.call(asked[0], "127.0.0.1:65535")
    gc.collect()
    tracemalloc.start()
    for message, address in zip(asked, addresses, strict=True):
        await caller.call(message, address)
    gc.collect()
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return size / n


class Holder(Client):
    """A process that holds connections to endpoints."""

    async def hold(self, addresses: list[str]) -> float:
        """Bytes per idle connection over TCP."""
        self.renew()
        gc.collect()
        tracemalloc.start()
        await self.call_all(addresses)
        gc.collect()
        size, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return size / len(addresses)


def _over_tcp(rounds: int, n: int) -> dict[str, list[float]]:
    def holder(environment: dict[str, str]) -> Child:
        return Child("benchmarks.check:Holder", environment)

    with children(
        lambda: Child("benchmarks.endpoints:Endpoints"),
        lambda: holder({}),
        lambda: holder(idle_closing(600)),
    ) as (server, stock, ours):
        addresses = [server.ask("open", n) for _ in range(rounds + 1)]
        rest = {STOCK: iter(addresses), OURS: iter(addresses)}
        return interleave(
            {
                STOCK: lambda: stock.ask("hold", next(rest[STOCK])),
                OURS: lambda: ours.ask("hold", next(rest[OURS])),
            },
            rounds,
            warm_up=0,
        )


@click.command()
@click.option("--connections", default="100,1000,10000,100000", show_default=True)
@click.option("--rounds", default=5, show_default=True)
def check(connections: str, rounds: int) -> None:
    """Cost of the check, of a close, and of holding a connection."""
    quiet()
    result = Result(
        "check",
        "Cost of the check",
        "Connections in memory, whose own closing costs nothing, each to an address of its own; "
        "the clock is moved by hand. A check is one turn of `periodic_check`, up to its sleep. "
        "Closing is counted until nothing is left of a connection, with the event loop's share.",
    )
    table = result.table(
        "Microseconds", "open connections", "check, nothing expired", "expired",
        "check that closes these", "of that per close", "per close, until all is gone",
    )  # fmt: skip
    figures = {}
    for n in map(int, connections.split(",")):
        progress(f"check: {n:,} connections")
        figures[n] = found = within(OURS, _checks(n, rounds))
        table.rows.append(
            (
                n,
                *(v * (1 if key == "expired" else 1e6) for key, v in found.items()),
            )
        )
    result.data["checks"] = figures
    fewest, most = min(figures), max(figures)
    idle = [each["nothing expired"] for each in figures.values()]
    growth = figures[most]["nothing expired"] / figures[fewest]["nothing expired"]
    # One close alone is mostly turns of the loop that this measurement waits for.
    several = [each for each in figures.values() if each["expired"] >= 10]
    close = max(each["closing, per close"] for each in several or figures.values())
    result.reaches += [
        Reach(f"check with nothing expired, {most:,} to {fewest:,} connections", growth, SAME),
        Reach("check with nothing expired, microseconds", max(idle) * 1e6, CHECK_LIMIT * 1e6),
        Reach("a close of our own, microseconds", close * 1e6, CLOSE_LIMIT * 1e6),
    ]
    table = result.table("Bytes per idle connection", "connections", STOCK, OURS, "ratio")
    progress("check: memory")
    n, few = 2000, min(rounds, 3)  # it hardly varies

    def memory(side: str) -> float:
        return float(within(side, _memory(n)))

    for name, measured in (
        ("in memory", interleave({s: partial(memory, s) for s in (STOCK, OURS)}, few, warm_up=0)),
        ("over TCP", _over_tcp(few, 500)),
    ):
        ratio = Ratio.of(measured[OURS], measured[STOCK])
        medians = [statistics.median(values) for values in measured.values()]
        table.rows.append((name, *medians, ratio))
        result.data[f"bytes per connection, {name}"] = measured
        goal = f"memory per idle connection, {name}"
        result.reaches.append(Reach(goal, ratio.median, MEMORY_LIMIT, ratio.spread))
    publish(result)
