"""Scenario: what becomes of sub-pools that die, and of the calls to them."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import signal
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import psutil

from . import fragile
from .accounts import Account, account
from .harness import STOCK, Reach, Result, percentile, progress, publish
from .processes import Child, children, idle_closing

ACTING = "ours, act"
HOLDING = {"XOSCAR_RECOVERY_TIMEOUT": "60"}
UNSENT, RETRIED = "ours", "ours, `XOSCAR_RETRY=*`"
TERMINATED, STOPPED, AGAIN = (
    "stock, `kill -TERM`",
    "stock, `stop_sub_pool`",
    "stock, callers try again",
)
CALL = 0.1
"""Seconds that a call takes."""

PATIENCE = 600.0
"""Seconds after which something that has not happened never will."""


@dataclass(frozen=True)
class Fleet:
    """A main pool, those who call it from elsewhere, and what both write down."""

    host: Child
    callers: list[Child]
    directory: Path
    addresses: list[str]

    @property
    def acts(self) -> bool:
        return (self.directory / "records").exists()

    def pid(self, address: str) -> int:
        pid: int = self.host.ask("pid", address)
        return pid

    def kill(self, address: str, by: signal.Signals = signal.SIGKILL) -> tuple[int, float]:
        """Kill its process; which that was, and when."""
        pid = self.pid(address)
        now = time.monotonic()
        os.kill(pid, by)
        return pid, now

    def forget(self, address: str) -> None:
        """Let no death from before count: how often one may die is measured elsewhere."""
        if self.acts:
            self.host.ask("apply", "reset", address)

    def recovered(self, address: str, ended: int) -> None:
        """Wait until another process answers there than the one that has ended."""
        self.host.ask("recovered", [address], [ended], timeout=PATIENCE)

    def call(self, calls: int, again: bool) -> None:
        """Let so many calls be made at once, from now on."""
        each = calls // len(self.callers)
        for i, caller in enumerate(self.callers):
            path = f"{self.directory / f'said-{i}'}"
            caller.ask("begin", self.addresses, each, i * 10**9, CALL, path, again)

    def settle(self) -> Account:
        """Let these calls end, and see what became of them."""
        for caller in self.callers:
            caller.order("end")
        for caller in self.callers:
            caller.answer(PATIENCE)
        said = "".join(each.read_text() for each in self.directory.glob("said-*"))
        executed = (self.directory / "executed").read_text()
        return account(said.splitlines(), executed.splitlines())


@contextlib.contextmanager
def _fleet(side: str, n: int, settings: dict[str, str], callers: int = 0) -> Iterator[Fleet]:
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        environment = {"XOSCAR_DIR": name, fragile.VARIABLE: name}
        if not side.startswith(STOCK):
            records = directory / "records"
            records.mkdir()
            told = {"XOSCAR_SUPERVISE": "act", "XOSCAR_SUPERVISE_DIR": f"{records}"}
            environment |= idle_closing(30) | told | settings

        def child(maker: str) -> Callable[[], Child]:
            return lambda: Child(f"benchmarks.fleet:{maker}", environment)

        with children(child("Fleet"), *[child("Callers")] * callers) as (host, *others):
            executed = f"{directory / 'executed'}"
            addresses = host.ask("launch", n, executed, [fragile.__name__])
            yield Fleet(host, others, directory, addresses)
            host.ask("close")


# -- what dies whenever it is started --------------------------------------------------------------


def _flapping(
    result: Result,
    seconds: float,
    cooldown: float,
    limit: str = "3/60",
    sides: Sequence[str] = (STOCK, ACTING),
) -> None:
    table = result.table(
        f"A sub-pool that exits while it starts, {seconds:g} s long, and is then repaired",
        "", "starts", "processor seconds of these", "degraded after, s",
        "starts per try after that", "first answer after the repair, s",
    )  # fmt: skip
    settings = {"XOSCAR_RESTART_LIMIT": limit, "XOSCAR_RESTART_COOLDOWN": f"{cooldown:g}"}
    for side in sides:
        progress(f"recovery: flapping, {side}")
        with _fleet(side, 1, settings) as fleet:
            (address,), host = fleet.addresses, fleet.host
            if fleet.acts:
                host.ask("watch")
            fragile.spoil(fleet.directory, 0.0, 0.0)
            before, spent = len(_starts(fleet)), host.ask("spent")
            pid, killed = fleet.kill(address)
            time.sleep(seconds)
            starts, spent = len(_starts(fleet)) - before, host.ask("spent") - spent
            degraded: list[float] = []
            if fleet.acts:
                degraded = _degraded(fleet, 2)
                tries = [
                    sum(a < start < b for start in _starts(fleet))
                    for a, b in itertools.pairwise(degraded)
                ]
                result.data["flapping: states"] = host.ask("states")
            fragile.repair(fleet.directory)
            repaired = time.monotonic()
            said = host.ask("apply", "reset", address) if fleet.acts else ""
            fleet.recovered(address, pid)
            took = time.monotonic() - repaired
        result.data[f"flapping, {side}"] = {"starts": starts, "reset": said}
        shown = [degraded[0] - killed, ", ".join(map(str, tries))] if degraded else ["never", "-"]
        table.rows.append((side, starts, spent, *shown, took))
        if degraded:
            goal = "starts per try of a sub-pool that is degraded"
            result.reaches.append(Reach(goal, float(max(tries)), 1.0))
    result.notes.append(
        f"`XOSCAR_RESTART_LIMIT={limit}`, `XOSCAR_RESTART_COOLDOWN={cooldown:g}`. After the repair "
        "stock tries again by itself within half a second, and ours when it is told to (`reset`), "
        "or when it has cooled down."
    )


def _loading(result: Result, load: float, live: float, limit: str = "3/60") -> None:
    table = result.table(
        f"A sub-pool that loads for {load:g} s and exits {live:g} s after that",
        "", "seconds", "starts", "then",
    )  # fmt: skip
    took = 0.0
    for side in (ACTING, STOCK):
        progress(f"recovery: loading, {side}")
        with _fleet(side, 1, {"XOSCAR_RESTART_LIMIT": limit}) as fleet:
            if fleet.acts:
                fleet.host.ask("watch")
            fragile.spoil(fleet.directory, load, live)
            before = len(_starts(fleet))
            _, killed = fleet.kill(fleet.addresses[0])
            if fleet.acts:
                took = _degraded(fleet, 1)[0] - killed
                states = fleet.host.ask("states")
                (then, *_) = [reason for _, state, reason in states if state == "degraded"]
                result.data["loading: states"] = states
            else:
                time.sleep(took)
                then = "goes on"
            starts = len(_starts(fleet)) - before
        table.rows.append((side, took, starts, then.replace("|", "/")))


def _starts(fleet: Fleet) -> list[float]:
    return fragile.starts(fleet.directory, fleet.host.process.pid)


def _degraded(fleet: Fleet, times: int) -> list[float]:
    """When it has become degraded, as soon as it has so often."""
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        found = [when for when, state, _ in fleet.host.ask("states") if state == "degraded"]
        if len(found) >= times:
            return found
        time.sleep(0.1)
    raise RuntimeError(f"it has not been degraded {times} times within {PATIENCE:g} s")


# -- calls meanwhile -------------------------------------------------------------------------------


def _accounts(
    result: Result, title: str, accounts: dict[str, Account], *more: tuple[Any, ...]
) -> None:
    rows: dict[str, Callable[[Account], Any]] = {
        "all": lambda a: a.calls,
        "answered": lambda a: a.answered,
        "failed: had been sent": lambda a: a.in_flight,
        "failed: had not been sent": lambda a: a.unsent,
        "failed, and no pool had begun them": lambda a: a.lost,
        "executed twice, at least": lambda a: a.twice,
        "executions cut off": lambda a: a.cut,
        "answered, but not executed to the end": lambda a: a.untold + a.invented,
        "errors": lambda a: ", ".join(f"{k} {v}" for k, v in a.errors.items()) or "-",
        "longest until the answer, s": lambda a: a.longest,
    }
    table = result.table(title, "calls", *accounts)
    table.rows += [(what, *map(read, accounts.values())) for what, read in rows.items()]
    table.rows += more
    result.data[title] = {side: vars(each) for side, each in accounts.items()}


def _rolling(
    result: Result,
    n: int,
    callers: int,
    sides: Sequence[str] = (TERMINATED, STOPPED, AGAIN, UNSENT),
) -> None:
    accounts: dict[str, Account] = {}
    took: dict[str, float] = {}
    for side in sides:
        progress(f"recovery: rolling restart, {side}")
        with _fleet(side, n, HOLDING, callers=2) as fleet:
            fleet.call(callers, again=side == AGAIN)
            began = time.monotonic()
            for address in fleet.addresses:
                pid = fleet.pid(address)
                if side == TERMINATED:
                    fleet.kill(address, signal.SIGTERM)
                elif side == UNSENT:
                    said = fleet.host.ask("apply", "restart", address, timeout=PATIENCE)
                    if not said.startswith("it has been replaced"):
                        result.notes.append(f"A restart failed: {said}")
                else:
                    fleet.host.ask("stop", address)
                fleet.recovered(address, pid)
            took[side] = time.monotonic() - began
            accounts[side] = fleet.settle()
    _accounts(
        result,
        f"{n} sub-pools restarted one after the other under {callers} callers in two processes",
        accounts,
        ("all restarts, s", *took.values()),
    )
    ours = accounts[UNSENT]
    result.reaches += [
        Reach("calls that fail in a rolling restart", float(ours.failed), 0.0),
        Reach("calls executed twice in a rolling restart", float(ours.twice), 0.0),
    ]


def _chaos(
    result: Result,
    n: int,
    callers: int,
    kills: int,
    every: float,
    sides: Sequence[str] = (STOCK, UNSENT, RETRIED),
) -> None:
    accounts: dict[str, Account] = {}
    for side in sides:
        retry = "*" if side == RETRIED else "unsent"
        settings = HOLDING | {"XOSCAR_RETRY": retry, "XOSCAR_RESTART_LIMIT": "off"}
        progress(f"recovery: chaos, {side}")
        with _fleet(side, n, settings, callers=2) as fleet:
            fleet.call(callers, again=False)
            result.data[f"chaos, {side}, kills"] = _kill_at_random(fleet, kills, every)
            accounts[side] = fleet.settle()
    _accounts(
        result,
        f"A random one of {n} sub-pools killed (SIGKILL) every {every:g} s, {kills} times, under "
        f"{callers} callers in two processes",
        accounts,
    )
    ours, retrying = accounts[UNSENT], accounts[RETRIED]
    others = ours.failed - ours.errors.get("PoolCrashed", 0)
    result.reaches += [
        Reach("calls that fail unsent while sub-pools are killed", float(ours.unsent), 0.0),
        Reach("calls that fail while sub-pools are killed, with `XOSCAR_RETRY=*`",
              float(retrying.failed), 0.0),
        Reach("calls that fail with another error than `PoolCrashed`", float(others), 0.0),
        Reach("calls executed twice while sub-pools are killed", float(ours.twice), 0.0),
        Reach("calls answered without having been executed to the end",
              float(sum(a.untold + a.invented for a in (ours, retrying))), 0.0),
    ]  # fmt: skip


def _kill_at_random(fleet: Fleet, kills: int, every: float) -> list[tuple[float, str]]:
    """Kill one that lives, again and again; when, and which."""
    chance, began, done = random.Random(1), time.monotonic(), list[tuple[float, str]]()
    for number in range(kills):
        if number % 30 == 0:
            progress(f"recovery: kill {number} of {kills}")
        time.sleep(max(0.0, began + every * (number + 1) - time.monotonic()))
        while len(done) == number:
            address = _living(fleet, chance)
            fleet.forget(address)
            with contextlib.suppress(ProcessLookupError):  # it was about to end
                _, when = fleet.kill(address)
                done.append((when - began, address))
    return done


def _living(fleet: Fleet, chance: random.Random) -> str:
    """A sub-pool whose process lives; there is none at times, and then there will be."""
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        address = chance.choice(fleet.addresses)
        with contextlib.suppress(psutil.NoSuchProcess):
            if psutil.Process(fleet.pid(address)).status() != psutil.STATUS_ZOMBIE:
                return address
        time.sleep(0.01)
    raise RuntimeError(f"no sub-pool has come back within {PATIENCE:g} s")


# -- how long it takes -----------------------------------------------------------------------------

PHASES = ("detection", "decision", "start", "all, to the first answer")


def _recoveries(result: Result, rounds: int, sides: Sequence[str] = (STOCK, ACTING)) -> None:
    took: dict[str, dict[str, list[float]]] = {s: {p: [] for p in PHASES} for s in sides}
    second: dict[str, list[float]] = {side: [] for side in sides}
    chance = random.Random(1)
    with contextlib.ExitStack() as stack:
        limit = {"XOSCAR_RESTART_LIMIT": "off"}
        fleets = {
            side: stack.enter_context(_fleet(side, 2, HOLDING | limit, callers=1)) for side in sides
        }
        for fleet in fleets.values():
            fleet.host.ask("note_beginnings")
        for number in range(rounds):
            if number % 10 == 0:
                progress(f"recovery: recovery {number} of {rounds}")
            for side, fleet in fleets.items():
                address = fleet.addresses[0]
                fleet.forget(address)
                fleet.callers[0].order("reach", address, fleet.pid(address))
                time.sleep(chance.uniform(0.5, 1.0))  # stock looks every half second
                _, killed = fleet.kill(address)
                answered = fleet.callers[0].answer(PATIENCE)
                at = _events(fleet, [address])[address]
                for phase, seconds in zip(
                    PHASES,
                    (
                        at["down"] - killed,
                        at["begins"] - at["down"],
                        at["recovered"] - at["begins"],
                        answered - killed,
                    ),
                    strict=True,
                ):
                    took[side][phase].append(seconds)
        for _ in range(max(1, rounds // 3)):
            for side, fleet in fleets.items():
                for address in fleet.addresses:
                    fleet.forget(address)
                time.sleep(chance.uniform(0.5, 1.0))
                killed = max(fleet.kill(address)[1] for address in fleet.addresses)
                events = _events(fleet, fleet.addresses)
                second[side].append(max(each["down"] for each in events.values()) - killed)
    result.data["seconds of a recovery"] = took
    result.data["seconds to the detection of the second of two deaths at once"] = second
    table = result.table(
        f"Milliseconds of a recovery, {rounds} interleaved", "",
        *(f"{side}, {what}" for side in sides for what in ("median", "p90")),
    )  # fmt: skip

    def row(name: str, values: dict[str, list[float]]) -> None:
        medians = {side: 1e3 * statistics.median(each) for side, each in values.items()}
        highs = {side: 1e3 * percentile(each, 90) for side, each in values.items()}
        table.rows.append((name, *(each[s] for s in sides for each in (medians, highs))))

    for phase in PHASES:
        row(phase, {side: took[side][phase] for side in sides})
    row("detection of the second of two that die at once", second)


def _events(fleet: Fleet, addresses: list[str]) -> dict[str, dict[str, float]]:
    """When what first happened to sub-pools that have been killed, when all are recovered."""
    found: dict[str, dict[str, float]] = {address: {} for address in addresses}
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        for what, address, when in fleet.host.ask("events"):
            found[address].setdefault(what, when)
        if all("recovered" in each for each in found.values()):
            return found
        time.sleep(0.02)
    raise RuntimeError(f"{found} is all that happened within {PATIENCE:g} s")


PARTS = ("flapping", "loading", "rolling", "recovery", "chaos")


@click.command()
@click.option("--seconds", default=60.0, show_default=True, help="For which one flaps.")
@click.option("--cooldown", default=20.0, show_default=True, help="Before it is tried again.")
@click.option("--load", default=20.0, show_default=True, help="Seconds that another one loads.")
@click.option("--sub-pools", default=8, show_default=True, help="That are called.")
@click.option("--callers", default=64, show_default=True, help="Who call them.")
@click.option("--kills", default=30, show_default=True, help="Per side; 300 take ten minutes.")
@click.option("--every", default=2.0, show_default=True, help="Seconds from kill to kill.")
@click.option("--rounds", default=30, show_default=True, help="Recoveries that are timed.")
@click.option("--part", "parts", multiple=True, type=click.Choice(PARTS), help="Not all of it.")
def recovery(
    seconds: float,
    cooldown: float,
    load: float,
    sub_pools: int,
    callers: int,
    kills: int,
    every: float,
    rounds: int,
    parts: tuple[str, ...],
) -> None:
    """Deaths and restarts of sub-pools: what is started, what calls are lost, how long it takes."""
    result = Result(
        "recovery",
        "Recovery",
        "Main pools with sub-pools, each with an actor that writes down which calls it executes: "
        "stock xoscar, which recovers by itself; and `XOSCAR_SUPERVISE=act`, for callers "
        "`XOSCAR_RECOVERY_TIMEOUT=60`. Callers are in processes of their own, over TCP; each makes "
        f"one call of {CALL:g} s after the other to a random sub-pool, pauses for as long after "
        "one that failed, and writes down what became of it. Where deaths are many, "
        "`XOSCAR_RESTART_LIMIT=off`, and the history of a sub-pool is forgotten (`reset`) before "
        "it is killed. A death is timed from before the signal is sent, detection until "
        "`on_process_down`, decision until `recover_sub_pool` is called, start until "
        "`on_process_recover`; the first answer is that of a caller who tries every 5 ms.",
    )
    measures: dict[str, Callable[[], Any]] = {
        "flapping": lambda: _flapping(result, seconds, cooldown),
        "loading": lambda: _loading(result, load, 1.0),
        "rolling": lambda: _rolling(result, sub_pools, callers),
        "chaos": lambda: _chaos(result, sub_pools, callers, kills, every),
        "recovery": lambda: _recoveries(result, rounds),
    }
    try:
        for name in parts or PARTS:
            measures[name]()
    finally:
        publish(result)  # it takes long: what has been measured is kept
