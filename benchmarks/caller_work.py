"""The caller's own work per call, over connections in memory: time, memory, instructions.

``python -m benchmarks.caller_work SIDE CALLS`` makes that many calls under callgrind.
"""

from __future__ import annotations

import asyncio
import gc
import shutil
import statistics
import sys
import time
import tracemalloc
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import Any

import xoscar_idle

from . import callgrind
from .harness import OURS, STOCK, Ratio, Reach, Result, interleave, progress
from .memory import BareCaller, Caller, messages

LIMIT = 0.8
BARE = "bare"
CALLERS: dict[str, type[BareCaller | Caller]] = {BARE: BareCaller, STOCK: Caller, OURS: Caller}
Call = Callable[[Any], Coroutine[Any, Any, None]]


def within(side: str, block: Coroutine[Any, Any, Any]) -> Any:
    """Run ``block`` in this process, with xoscar as it is or with ours."""
    if side == OURS:
        xoscar_idle.install(idle_timeout=30)
    try:
        return asyncio.run(block)
    finally:
        xoscar_idle.uninstall()


async def _calls(call: Call, asked: Sequence[Any]) -> None:
    for message in asked:
        await call(message)


async def _timed(side: str, method: str, callers: int, calls: int) -> float:
    """Nanoseconds per call, with so many callers at once on one connection."""
    call = getattr(CALLERS[side](), method)
    await _calls(call, messages(100))
    shares = [messages(calls // callers) for _ in range(callers)]
    gc.collect()
    started = time.perf_counter_ns()
    if callers == 1:
        await _calls(call, shares[0])
    else:
        await asyncio.gather(*(_calls(call, share) for share in shares))
    return (time.perf_counter_ns() - started) / calls


async def _held(calls: int) -> dict[str, float]:
    """What a call holds while it waits for its reply."""
    caller = Caller()
    await _calls(caller.call, messages(10))
    caller.router.opened[0].mute = True
    asked = messages(calls)
    replies: list[Any] = [None] * calls
    gc.collect()
    blocks = sys.getallocatedblocks()
    tracemalloc.start()
    for i, message in enumerate(asked):
        replies[i] = await caller.owner.call(caller.router, message.address, message, False)
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    blocks = sys.getallocatedblocks() - blocks
    for reply in replies:
        reply.cancel()
    return {"bytes": size / calls, "blocks": blocks / calls}


def measure(result: Result, rounds: int, calls: int) -> None:
    """Fill in the part of the report that is about calls in memory."""
    _measure_times(result, rounds, calls)
    _measure_held(result)
    if shutil.which("valgrind") is None:
        result.notes.append("There is no valgrind here, so instructions were not counted.")
        return
    _measure_counted(result)


def _measure_times(result: Result, rounds: int, calls: int) -> None:
    columns = ("", "callers at once", BARE, STOCK, OURS, "ratio", "ratio of what exceeds bare")
    table = result.table("Over a connection in memory, nanoseconds per call", *columns)
    kinds = {"call": "`ActorCaller.call`", "send": "the same, shielded as in xoscar's context"}
    for method, label in kinds.items():
        for callers in (1, 100):
            progress(f"calls: in memory, {label}, {callers} at once")

            def timed(side: str, method: str = method, callers: int = callers) -> float:
                return float(within(side, _timed(side, method, callers, calls)))

            measured = interleave({side: partial(timed, side) for side in CALLERS}, rounds)
            result.data[f"in memory, {method}, {callers} callers, ns"] = measured
            bare, stock, ours = measured.values()
            whole = Ratio.of(ours, stock)
            own = Ratio.of(
                [a - b for a, b in zip(ours, bare, strict=True)],
                [a - b for a, b in zip(stock, bare, strict=True)],
            )
            medians = [statistics.median(values) for values in measured.values()]
            table.rows.append((label, callers, *medians, whole, own))
            if method == "call":
                goal = f"caller's own work per call, {callers} at once"
                result.reaches += [
                    Reach(goal, own.median, LIMIT, own.spread),
                    Reach(f"{goal}, with the loop's work", whole.median, LIMIT, whole.spread),
                ]
    result.notes.append(
        "*bare* is a future, a table of them and a task that listens, over the same connection: "
        "what exceeds it is the caller's own work, the rest is that of the event loop."
    )


def _measure_held(result: Result) -> None:
    columns = ("per call", STOCK, OURS, "ratio")
    table = result.table("What a call holds while it waits for its reply", *columns)
    held = {side: within(side, _held(1000)) for side in (STOCK, OURS)}
    for what in ("bytes", "blocks"):
        stock, ours = held[STOCK][what], held[OURS][what]
        table.rows.append((what, stock, ours, ours / stock))


def _measure_counted(result: Result) -> None:
    progress("calls: in memory, counting instructions")
    result.data["counted"] = counted = callgrind.counted(__spec__.name, CALLERS, 1500)
    columns = ("per call", *CALLERS, "ratio", "ratio of what exceeds bare")
    table = result.table("Counted by callgrind, `ActorCaller.call`, one caller", *columns)
    for what in ("instructions", "allocations"):
        bare, stock, ours = (counted[side][what] for side in CALLERS)
        if not bare:
            continue  # a stripped Python does not name its allocator
        own = (ours - bare) / (stock - bare)
        table.rows.append((what, bare, stock, ours, ours / stock, own))
        if what == "instructions":
            result.reaches += [
                Reach("instructions of the caller's own work per call", own, LIMIT),
                Reach("instructions per call, with the loop's work", ours / stock, LIMIT),
            ]


async def _make(side: str, calls: int) -> None:
    call = CALLERS[side]().call
    await _calls(call, messages(100))
    asked = messages(calls)
    gc.collect()
    gc.freeze()  # whether all that was imported is looked at once more is chance
    callgrind.count("on")
    await _calls(call, asked)
    callgrind.count("off")


if __name__ == "__main__":
    within(sys.argv[1], _make(sys.argv[1], int(sys.argv[2])))
