"""Scenario: what is left after a million calls and a hundred thousand connections."""

from __future__ import annotations

import asyncio
import gc
import sys
import time
from typing import Any

import click
import psutil

from .endpoints import Client, Endpoints
from .harness import Reach, Result, plot, progress, publish
from .processes import Child, children, idle_closing

TIMEOUT = 0.2
WIDTH = 10  # endpoints that are called again and again
ENDPOINTS = 5000
AT_ONCE = 100
STEPS = 10  # in each of which the state is looked at
GROWTH = 1.01


def _state() -> dict[str, int]:
    gc.collect()
    return {
        "descriptors": psutil.Process().num_fds(),
        "tasks": len(asyncio.all_tasks()),
        "memory blocks": sys.getallocatedblocks(),
        "resident KiB": psutil.Process().memory_info().rss >> 10,
    }


class Caller(Client):
    """The client process."""

    async def step(self, addresses: list[str], calls: int, cycles: int) -> dict[str, int]:
        """Both at the same time; the state when all connections are gone."""
        often, seldom = addresses[:WIDTH], addresses[WIDTH:]
        await asyncio.gather(self._calls(often, calls), self._cycles(seldom, cycles))
        await asyncio.sleep(3 * TIMEOUT)
        return _state()

    async def _calls(self, addresses: list[str], n: int) -> None:
        """Make ``n`` calls over open connections."""

        async def caller(address: str) -> None:
            for _ in range(n // AT_ONCE):
                await self.call(address)

        await asyncio.gather(*(caller(addresses[i % len(addresses)]) for i in range(AT_ONCE)))

    async def _cycles(self, addresses: list[str], n: int) -> None:
        """Open and close ``n`` connections."""
        for _ in range(n // len(addresses)):
            await self.call_all(addresses)
            await asyncio.sleep(2 * TIMEOUT)


class Server(Endpoints):
    """The server process."""

    async def state(self) -> dict[str, int]:
        return _state()


@click.command()
@click.option("--calls", default=1_000_000, show_default=True)
@click.option("--cycles", default=100_000, show_default=True)
def soak(calls: int, cycles: int) -> None:
    """Descriptors, memory and tasks after many calls and connections."""
    result = Result(
        "soak",
        "Soak",
        f"{calls:,} calls, {AT_ONCE} at once, over {WIDTH} TCP connections, and at the same "
        f"time {cycles:,} times opening, calling and being closed, with {ENDPOINTS:,} endpoints "
        f"and an idle timeout of {TIMEOUT:g} s; on uvloop. After each of {STEPS} "
        "steps, and when all is closed, the state is looked at. It starts after a tenth more of "
        "the same.",
    )
    states: list[dict[str, Any]] = []
    servers: list[dict[str, Any]] = []
    with children(
        lambda: Child("benchmarks.soak:Caller", idle_closing(TIMEOUT), loop="uvloop"),
        lambda: Child("benchmarks.soak:Server", loop="uvloop"),
    ) as (client, server):
        addresses = server.ask("open", WIDTH + ENDPOINTS)
        before = server.ask("accepted")
        started = time.monotonic()
        for step in range(STEPS + 1):
            progress(f"soak: step {step} of {STEPS}")
            states.append(client.ask("step", addresses, calls // STEPS, cycles // STEPS))
            servers.append(server.ask("state"))
        took = time.monotonic() - started
        opened = server.ask("accepted") - before
    result.notes.append(f"It took {took:.0f} s; the server accepted {opened:,} connections.")
    table = result.table("State", "process", "of", "at the start", "at the end", "most", "change")
    for process, seen in (("client", states), ("server", servers)):
        for what in seen[0]:
            values = [each[what] for each in seen]
            row = (values[0], values[-1], max(values), values[-1] - values[0])
            table.rows.append((process, what, *row))
    result.data = {"client": states, "server": servers}
    grown = {what: states[-1][what] - states[0][what] for what in states[0]}
    result.reaches += [
        Reach("descriptors more at the end than at the start", float(grown["descriptors"]), 0.0),
        Reach("tasks more at the end than at the start", float(grown["tasks"]), 0.0),
        Reach(
            "memory blocks at the end to those at the start",
            states[-1]["memory blocks"] / states[0]["memory blocks"],
            GROWTH,
        ),
    ]

    def draw(figure: Any) -> None:
        for axis, what in zip(figure.subplots(1, 4), states[0], strict=True):
            axis.plot([each[what] for each in states])
            axis.set_title(what, fontsize="medium")
            axis.set_ylim(0, 1.2 * max(each[what] for each in states))
            axis.set_xlabel("step")

    result.plots.append(plot("soak", draw, (11, 2.6)))
    publish(result)
