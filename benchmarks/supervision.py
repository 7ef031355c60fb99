"""Scenario: the cost of supervision, and what it tells when."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import click

from . import request_work
from .harness import OURS, STOCK, Ratio, Reach, Result, interleave, percentile, progress, publish
from .hosts import Lost
from .processes import Child, children, idle_closing

OBSERVED = "ours, observe"
SIDES = (STOCK, OURS, OBSERVED)
CALL_LIMIT = 1.05  # what two processes that do the same scatter by
REQUEST_LIMIT = 1.15
IDLE_LIMIT = 0.01
TOLD_LIMIT = 0.05
GROWTH = 1.02
CALLERS = ("main pool", "sibling", "another process, TCP")
OFF, ON = {"supervise": "off"}, {"supervise": "observe"}


def _environment(side: str, directory: Path) -> dict[str, str]:
    own = directory / side
    own.mkdir(exist_ok=True)
    told = {"XOSCAR_DIR": f"{own}"}
    if side != STOCK:
        told |= idle_closing(30)
    if side == OBSERVED:
        told |= {"XOSCAR_SUPERVISE": "observe", "XOSCAR_SUPERVISE_DIR": f"{own / 'records'}"}
    return told


@contextlib.contextmanager
def _hosts(*sides: str, callers: bool = False, loop: str = "asyncio") -> Iterator[list[Child]]:
    """A main pool for each side, and then a caller in another process for each, if wanted."""
    with tempfile.TemporaryDirectory() as name:

        def child(maker: str, side: str) -> Callable[[], Child]:
            return lambda: Child(f"benchmarks.hosts:{maker}", _environment(side, Path(name)), loop)

        hosts = [child("Host", side) for side in sides]
        others = [child("Elsewhere", side) for side in sides if callers]
        with children(*hosts, *others) as made:
            yield made
            for host in made[: len(sides)]:
                host.ask("close")


# -- what it costs ---------------------------------------------------------------------------------


def _calls(result: Result, rounds: int, calls: int) -> None:
    table = result.table(
        "A call to a sub-pool, microseconds", "caller", *SIDES, "ours to stock", "observe to ours"
    )
    pairs: tuple[list[float], list[float]] = ([], [])
    forms: dict[str, dict[str, list[float]]] = {}
    for _ in range(2):  # two sets of processes: where one lies in memory is chance
        with _hosts(*SIDES, callers=True) as made:
            hosts, elsewhere = made[: len(SIDES)], made[len(SIDES) :]
            for host, other in zip(hosts, elsewhere, strict=True):
                (address,) = host.ask("open", 1)
                host.ask("connect", address)
                other.ask("connect", address)
            for name, callers in (("main pool, unix socket", hosts), (CALLERS[-1], elsewhere)):
                progress(f"supervision: calls from {name}")
                order = ("call", 100, 1, calls)
                measured = interleave(
                    {
                        side: partial(each.ask, *order)
                        for side, each in zip(SIDES, callers, strict=True)
                    },
                    rounds,
                )
                form = forms.setdefault(name, {side: [] for side in SIDES})
                for side, values in measured.items():
                    form[side] += values
    for name, form in forms.items():
        medians = [statistics.median(values) * 1e6 for values in form.values()]
        ratios = Ratio.of(form[OURS], form[STOCK]), Ratio.of(form[OBSERVED], form[OURS])
        table.rows.append((name, *medians, *ratios))
        result.data[f"calls from {name}, seconds"] = form
        pairs[0].extend(form[OBSERVED])
        pairs[1].extend(form[OURS])
    ratio = Ratio.of(*pairs)
    goal = "a call with XOSCAR_SUPERVISE=observe to one without"
    result.reaches.append(Reach(goal, ratio.median, CALL_LIMIT, ratio.spread))


def _requests(result: Result, calls: int) -> None:
    if shutil.which("valgrind") is None:
        result.notes.append("There is no valgrind here, so instructions were not counted.")
        return
    progress("supervision: counting instructions of a request")
    result.data["counted"] = counted = request_work.measure(calls)
    counts = [counted[side]["instructions"] for side in request_work.SIDES]
    table = result.table(
        "Instructions of a request in a sub-pool, less its bytes",
        *request_work.SIDES, "ours to stock", "with a page to ours",
    )  # fmt: skip
    table.rows.append((*counts, counts[1] / counts[0], counts[2] / counts[1]))
    goal = "instructions of a request that is told to a page to one that is not"
    result.reaches.append(Reach(goal, counts[2] / counts[1], REQUEST_LIMIT))


def _idle(result: Result, n: int, seconds: float, rounds: int) -> None:
    """One main pool for both: it is switched while it runs."""
    used: dict[str, list[tuple[float, float]]] = {OURS: [], OBSERVED: []}
    with _hosts(OURS) as (host,):
        progress(f"supervision: {n} idle sub-pools")
        host.ask("open", n, timeout=600)
        for _ in range(rounds):
            for side, settings in ((OURS, OFF), (OBSERVED, ON)):
                host.ask("configure", settings)
                time.sleep(2.0)  # what that took is past
                before, began = host.ask("processor"), time.monotonic()
                time.sleep(seconds)
                after, took = host.ask("processor"), time.monotonic() - began
                main, subs = ((b - a) / took for a, b in zip(before, after, strict=True))
                used[side].append((main, subs / n))
    result.data[f"share of a core, {n} idle sub-pools: main pool, one sub-pool"] = used
    table = result.table(f"Percent of a core, {n} idle sub-pools", "process", *used, "difference")
    for i, process in enumerate(("main pool", "a sub-pool")):
        shares = [100 * statistics.median(each[i] for each in used[side]) for side in used]
        table.rows.append((process, *shares, shares[1] - shares[0]))
        if not i:
            goal = f"a core's share for watching {n} idle sub-pools"
            result.reaches.append(Reach(goal, (shares[1] - shares[0]) / 100, IDLE_LIMIT))


def _starts(result: Result, starts: int) -> None:
    progress("supervision: starts of sub-pools")
    with _hosts(*SIDES) as hosts:
        for host in hosts:
            host.ask("open", 1)
        before = [host.ask("weights") for host in hosts]
        took = interleave(
            {
                side: lambda host=host: float(host.ask("append"))  # type: ignore[misc]
                for side, host in zip(SIDES, hosts, strict=True)
            },
            starts,
        )
        after = [host.ask("weights") for host in hosts]
    result.data["seconds of a start"] = took
    table = result.table("Start of a sub-pool", *SIDES, "ours to stock", "observe to ours")
    medians = [f"{statistics.median(each):.2f} s" for each in took.values()]
    ratios = Ratio.of(took[OURS], took[STOCK]), Ratio.of(took[OBSERVED], took[OURS])
    table.rows.append((*medians, *ratios))
    table = result.table("Per sub-pool", "", *SIDES)
    new = after[0]["sub-pools"] - before[0]["sub-pools"]

    def grown(what: str) -> list[float]:
        return [(b[what] - a[what]) / new for a, b in zip(before, after, strict=True)]

    table.rows += [
        ("sub-pool, MB (PSS)", *(each["sub-pool"] / 1e6 for each in after)),
        ("main pool, kB (its own, and its part of pages)", *(each / 1e3 for each in grown("main"))),
        ("descriptors of the main pool", *grown("descriptors")),
    ]
    result.data["weights"] = {"before": before, "after": after}


# -- what it tells ---------------------------------------------------------------------------------


def _kill(pid: int) -> float:
    now = time.monotonic()
    os.kill(pid, signal.SIGKILL)
    return now


def _deaths(result: Result, kills: int) -> None:
    latencies: dict[str, dict[str, list[float]]] = {
        side: {caller: [] for caller in CALLERS} for side in (STOCK, OBSERVED)
    }
    explained = 0
    with _hosts(*latencies, callers=True) as made:
        sides = list(zip(latencies, made[:2], made[2:], strict=True))
        addresses = [host.ask("open", 2) for _, host, _ in sides]
        for number in range(kills):
            if number % 10 == 0:
                progress(f"supervision: death {number} of {kills}")
            for (side, host, elsewhere), (victim, sibling) in zip(sides, addresses, strict=True):
                elsewhere.order("lose", victim)
                host.ask("begin_to_lose", victim, sibling, len(CALLERS))
                pid = host.ask("pid", victim)
                time.sleep(0.3)  # whose pool it is has been learnt
                killed = _kill(pid)
                lost: list[Lost] = [*host.ask("lost"), elsewhere.answer()]
                for caller, (when, error) in zip(CALLERS, lost, strict=True):
                    latencies[side][caller].append(when - killed)
                    explained += side == OBSERVED and "PoolCrashed" in error
                host.ask("recovered", [victim], [pid])
    result.data["seconds from the kill to the error"] = latencies
    table = result.table(
        "Milliseconds from `kill -9` to the error of a call", "caller",
        *(f"{side}, {what}" for side in latencies for what in ("median", "p90")),
    )  # fmt: skip
    for caller in CALLERS:
        row = [1e3 * percentile(latencies[side][caller], p) for side in latencies for p in (50, 90)]
        table.rows.append((caller, *row))
    worst = max(percentile(each, 50) for each in latencies[OBSERVED].values())
    result.reaches += [
        Reach("from kill -9 to an explained error, median, worst caller, s", worst, TOLD_LIMIT),
        Reach("of these errors, unexplained", float(kills * len(CALLERS) - explained), 0.0),
    ]


def _crashes(result: Result, crashes: int, n: int = 8) -> None:
    states: list[dict[str, Any]] = []
    with _hosts(OBSERVED) as (host,):
        addresses = host.ask("open", n)
        host.ask("forget")
        started = time.monotonic()
        for number in range(max(2, crashes // n)):
            progress(f"supervision: crash {number * n} of {crashes}")
            pids = [host.ask("pid", address) for address in addresses]
            for pid in pids:
                _kill(pid)
            host.ask("recovered", addresses, pids, timeout=600)
            time.sleep(1.0)
            states.append(host.ask("state"))
        took = time.monotonic() - started
    result.data["states"] = states
    table = result.table(
        f"The main pool's process, and what it leaves, after crashes of {n} sub-pools at once",
        "of", "after the first round", f"after {len(states)} rounds",
    )  # fmt: skip
    table.rows += [(what, states[0][what], states[-1][what]) for what in states[0]]
    result.notes.append(f"{len(states) * n} crashes and recoveries took {took:.0f} s.")
    blocks = "memory blocks"
    result.reaches += [
        Reach(f"{what} more after {len(states)} rounds of crashes than after the first",
              float(states[-1][what] - states[0][what]), 0.0)
        for what in states[0] if what != blocks
    ]  # fmt: skip
    grown = states[-1][blocks] / states[0][blocks]
    result.reaches.append(
        Reach("memory blocks after these to those after the first", grown, GROWTH)
    )


PARTS = ("calls", "requests", "idle", "starts", "deaths", "crashes")


@click.command()
@click.option("--rounds", default=20, show_default=True, help="How often calls take turns.")
@click.option("--calls", default=400, show_default=True, help="Calls per turn.")
@click.option("--sub-pools", default=64, show_default=True, help="That are idle, 90 MB each.")
@click.option("--seconds", default=10.0, show_default=True, help="For which they are looked at.")
@click.option("--starts", default=8, show_default=True)
@click.option("--kills", default=30, show_default=True, help="Deaths that callers are told of.")
@click.option("--crashes", default=40, show_default=True, help="Recoveries, eight at once.")
@click.option("--part", "parts", multiple=True, type=click.Choice(PARTS), help="Not all of it.")
def supervision(
    rounds: int,
    calls: int,
    sub_pools: int,
    seconds: float,
    starts: int,
    kills: int,
    crashes: int,
    parts: tuple[str, ...],
) -> None:
    """Cost of supervision: of calls, sub-pools and idling; and how soon a death is told."""
    result = Result(
        "supervision",
        "Supervision",
        "Main pools with sub-pools, each in processes of its own and with an actor in each: stock "
        "xoscar; xoscar-idle, which explains crashes; and `XOSCAR_SUPERVISE=observe`. They take "
        "turns. Idling is measured in one main pool, where `observe` is switched on and off. A "
        "death is timed from before the signal is sent, by a third process, to when the caller "
        "has the error, with a call in flight from each caller at once; stock's errors are short.",
    )
    measures: dict[str, Callable[[], None]] = {
        "calls": lambda: _calls(result, rounds, calls),
        "requests": lambda: _requests(result, 1000),
        "idle": lambda: _idle(result, sub_pools, seconds, 2),
        "starts": lambda: _starts(result, starts),
        "deaths": lambda: _deaths(result, kills),
        "crashes": lambda: _crashes(result, crashes),
    }
    for name in parts or PARTS:
        measures[name]()
    publish(result)
