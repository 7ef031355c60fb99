"""What the processes of the demonstration do: serve endpoints, or visit them; or be in a crash."""

from __future__ import annotations

import argparse
import asyncio
import logging
import math
import random
import statistics
import time
from collections.abc import Iterator
from typing import Any

from ... import descriptors
from .orders import Orders, report
from .process import CALL_TIMEOUT, SPARE_DESCRIPTORS

# Times are in seconds.
CONCURRENCY = 8  # calls at once per client
RATE = 200  # calls per second and client, which leaves two cores room for all processes
LAST_VISITS = 16


async def _serve(endpoints: int) -> None:
    """Host that many pools with an actor each, until the process ends."""
    import xoscar as xo

    class Echo(xo.StatelessActor):  # type: ignore[misc]
        async def echo(self, number: int) -> tuple[str, int]:
            return self.address, number

    descriptors.allow(2 * endpoints + SPARE_DESCRIPTORS)
    pools = []
    for _ in range(endpoints):
        # An internal address would be a unix socket, whose file outlives a process that is ended.
        pool = await xo.create_actor_pool(
            "127.0.0.1", n_process=0, enable_internal_addresses=[False]
        )
        await xo.create_actor(Echo, uid="echo", address=pool.external_address)
        pools.append(pool)
    report("ready", [pool.external_address for pool in pools])
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
        report("progress", {"phase": phase, "calls": self._calls, "lost": self._lost})

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
                report("lost", f"{address}: {type(error).__name__}: {error}")
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

    from ... import is_active

    # It warns of every tenth connection from the hundredth on, which is what the board shows.
    logging.getLogger("xoscar.backends.core").setLevel(logging.ERROR)
    report("ready", is_active())
    addresses = await orders.next()
    descriptors.allow(len(addresses) + SPARE_DESCRIPTORS)
    visitor = Visitor()
    calls = list(_plan(addresses, round(RATE * seconds)))
    await visitor.visit("visiting", calls[:1])  # late, since xoscar imports more on its first call
    started = time.monotonic()
    for i in range(1, len(calls), CONCURRENCY):
        await asyncio.sleep(started + seconds * i / len(calls) - time.monotonic())
        await visitor.visit("visiting", calls[i : i + CONCURRENCY])
    visitor.report("resting")
    report("visited", True)
    await asyncio.sleep(rest)
    report("rested", True)
    await orders.next()
    again = addresses[:LAST_VISITS]
    for i in range(0, len(again), CONCURRENCY):
        await visitor.visit("last visits", again[i : i + CONCURRENCY])
    latencies = visitor.latencies
    percentiles = statistics.quantiles(latencies, n=100) if len(latencies) > 1 else [math.nan] * 99
    report("done", {"median": percentiles[49], "p99": percentiles[98]})
    await asyncio.Event().wait()


def _main() -> None:
    parser = argparse.ArgumentParser(description="The child processes of xoscar-idle demo.")
    roles = parser.add_subparsers(dest="role", required=True)
    server = roles.add_parser("server")
    server.add_argument("endpoints", type=int)
    client = roles.add_parser("client")
    client.add_argument("seconds", type=float)
    client.add_argument("rest", type=float)
    roles.add_parser("host")
    roles.add_parser("caller")
    arguments = parser.parse_args()
    orders = Orders()
    if arguments.role == "server":
        logging.getLogger("xoscar.backends.core").setLevel(logging.ERROR)
        asyncio.run(_serve(arguments.endpoints))
    elif arguments.role == "client":
        asyncio.run(_visit(orders, arguments.seconds, arguments.rest))
    else:
        from . import model  # it imports xoscar, which only here may be at once

        asyncio.run((model.host if arguments.role == "host" else model.call)(orders))


if __name__ == "__main__":
    _main()
