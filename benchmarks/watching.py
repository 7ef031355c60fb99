"""Scenario: what it costs to know what calls come to.

``python -m benchmarks.watching SIDE CALLS`` makes that many calls over TCP under callgrind.
"""

from __future__ import annotations

import asyncio
import gc
import shutil
import statistics
import sys
import tracemalloc
from functools import partial

import click

import xoscar_idle
from xoscar_idle.connection import history

from . import callgrind
from .caller_work import within
from .harness import OURS, Ratio, Reach, Result, interleave, progress, publish
from .memory import Caller, messages
from .pools import Caller as Client
from .processes import Child, children, idle_closing, quiet

LIMIT = 1.02
GROWTH_LIMIT = 1.02  # how many cancelled timers asyncio has not cleared yet is chance
OFF, TOTAL, METHOD = "off", "total", "method"
SIDES = (OFF, TOTAL, METHOD)
"""The values of ``XOSCAR_CALL_METRICS``; with the first, there is no history either."""
PEERS = 10_000


def _environment(side: str) -> dict[str, str]:
    history_ = {"XOSCAR_HISTORY": "0"} if side == OFF else {}
    return {**idle_closing(600), "XOSCAR_CALL_METRICS": side, **history_}


def _count(result: Result, calls: int) -> None:
    """Instructions of the client's process for a whole call, its messages and its bytes included.

    The server's share is left out: with it, the share of what is counted would be smaller.
    """
    progress("watching: counting instructions")
    result.data["counted"] = counted = callgrind.counted(__spec__.name, SIDES, calls)
    table = result.table("Counted by callgrind, a call over TCP, the client's side", *_COLUMNS)
    figures = [counted[side]["instructions"] for side in SIDES]
    table.rows.append(("instructions", *figures, *(each / figures[0] for each in figures[1:])))
    for side, figure in zip(SIDES[1:], figures[1:], strict=True):
        goal = f"instructions of a call, its client's side, `{side}` against `{OFF}`"
        result.reaches.append(Reach(goal, figure / figures[0], LIMIT))


_COLUMNS = ("per call", *SIDES, f"{TOTAL} / {OFF}", f"{METHOD} / {OFF}")


def _time(result: Result, rounds: int) -> None:
    """Both sides watch, or neither does."""
    table = result.table("Between processes, microseconds per call", *_COLUMNS)

    def pair(side: str) -> tuple[partial[Child], partial[Child]]:
        environment = _environment(side)
        return (
            partial(Child, "benchmarks.pools:Pools", environment),
            partial(Child, "benchmarks.pools:Caller", environment),
        )

    with children(*(maker for side in SIDES for maker in pair(side))) as started:
        servers, clients = started[::2], started[1::2]
        for server, client in zip(servers, clients, strict=True):
            ((external, _),) = server.ask("open", 1).items()
            client.ask("connect", external, None)
        for callers in (1, 100):
            progress(f"watching: between processes, {callers} at once")
            order = ("call", 100, callers, 1000)
            measured = interleave(
                {
                    side: partial(client.ask, *order)
                    for side, client in zip(SIDES, clients, strict=True)
                },
                rounds,
            )
            result.data[f"{callers} at once, seconds per call"] = measured
            medians = [statistics.median(measured[side]) * 1e6 for side in SIDES]
            ratios = [Ratio.of(measured[side], measured[OFF]) for side in SIDES[1:]]
            table.rows.append((f"{callers} at once", *medians, *ratios))
            for side, ratio in zip(SIDES[1:], ratios, strict=True):
                goal = f"a call between processes, {callers} at once, `{side}` against `{OFF}`"
                result.reaches.append(Reach(goal, ratio.median, LIMIT, ratio.spread))
        for server in servers:
            server.ask("close")


async def _grown(calls: int) -> dict[str, float]:
    """What the process holds of calls to many peers, whose connections come and go."""
    xoscar_idle.configure(call_metrics=METHOD, max_connections=100)
    caller = Caller()

    async def make(n: int) -> int:
        for i, message in enumerate(messages(n)):
            await caller.call(message, f"10.0.{i % PEERS // 256}.{i % 256}:1")
            if i % 1000 == 0:
                caller.router.opened.clear()  # the fake network's
        caller.router.opened.clear()
        gc.collect()
        size, _ = tracemalloc.get_traced_memory()
        return size

    gc.collect()
    tracemalloc.start()
    full = await make(2 * PEERS)  # until the history is full
    last = await make(calls)
    tracemalloc.stop()
    _, kept = history.journal.since(0)
    return {"after the first 20,000": full, "at the end": last, "remembered": len(kept)}


def _grow(result: Result, calls: int) -> None:
    progress(f"watching: {calls:,} calls to {PEERS:,} peers")
    result.data["grown"] = grown = within(OURS, _grown(calls))
    table = result.table(
        f"Bytes held, {calls:,} calls to {PEERS:,} peers, at most 100 connections", "", "figure"
    )
    table.rows += list(grown.items())
    ratio = grown["at the end"] / grown["after the first 20,000"]
    result.reaches.append(Reach("memory at the end against that at first", ratio, GROWTH_LIMIT))


@click.command()
@click.option("--rounds", default=9, show_default=True, help="How often the sides take turns.")
@click.option("--calls", "n", default=1_000_000, show_default=True, help="Calls to many peers.")
def watching(rounds: int, n: int) -> None:
    """What it costs to count calls, and to remember what happens."""
    quiet()
    result = Result(
        "watching",
        "Cost of knowing",
        "`XOSCAR_CALL_METRICS` off and without a history, and with calls counted all together, as "
        "is the default, or by method. Between processes, a server and a client for each of these "
        "take turns.",
    )
    if shutil.which("valgrind") is None:
        result.notes.append("There is no valgrind here, so instructions were not counted.")
    else:
        _count(result, 1500)
    _time(result, rounds)
    _grow(result, n)
    publish(result)


async def _make(calls: int) -> None:
    with children(lambda: Child("benchmarks.pools:Pools")) as (server,):
        ((external, _),) = server.ask("open", 1).items()
        client = Client()
        await client.connect(external)
        await client.call(100, 1, 100)
        gc.collect()
        gc.freeze()  # whether all that was imported is looked at once more is chance
        callgrind.count("on")
        await client.call(100, 1, calls)
        callgrind.count("off")
        server.ask("close")


if __name__ == "__main__":
    side = sys.argv[1]
    xoscar_idle.install(idle_timeout=600, call_metrics=side, history=0 if side == OFF else 1000)
    asyncio.run(_make(int(sys.argv[2])))
