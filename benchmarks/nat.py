"""Scenario: calls through a NAT that forgets quiet sessions."""

from __future__ import annotations

import asyncio
import importlib.util
import time
from functools import partial
from typing import Any

import click
import xoscar as xo

from .harness import OURS, STOCK, Reach, Result, percentile, progress, publish
from .pools import UID
from .processes import Child, children, idle_closing

REMEMBER = 3  # seconds that the NAT remembers a quiet session
TIMEOUT = 1.0
SILENCE = 1.5 * REMEMBER
BOUND = 5.0
ANSWERED, NO_ANSWER = "answered", "no answer"


class Caller:
    """A client behind the NAT."""

    async def calls(self, addresses: list[str], rounds: int) -> list[list[Any]]:
        """The outcome and the seconds of the first call to each address after some silence."""
        actors = [await xo.actor_ref(address=address, uid=UID) for address in addresses]
        outcomes = []
        for _ in range(rounds):
            await asyncio.gather(*(self._call(actor) for actor in actors))
            await asyncio.sleep(SILENCE)
            outcomes += await asyncio.gather(*(self._call(actor) for actor in actors))
        return outcomes

    async def _call(self, actor: Any) -> list[Any]:
        started = time.perf_counter()
        task = asyncio.ensure_future(actor.size(b""))
        done, _ = await asyncio.wait([task], timeout=BOUND)  # not cancelled: that may hang, too
        error = task.exception() if done else None
        outcome = NO_ANSWER if not done else type(error).__name__ if error else ANSWERED
        return [outcome, time.perf_counter() - started]


def _measure(endpoints: int, rounds: int) -> dict[str, list[list[Any]]]:
    from tests.support.nat import nat

    with nat(REMEMBER) as box:

        def child(where: str, maker: str, environment: dict[str, str]) -> Child:
            return Child(maker, environment, start=partial(box.run, where))

        sides = {STOCK: {}, OURS: idle_closing(TIMEOUT)}
        with children(
            *(partial(child, "server", "benchmarks.pools:Pools", {}) for _ in sides),
            *(partial(child, "client", "benchmarks.nat:Caller", each) for each in sides.values()),
        ) as processes:
            servers, clients = processes[: len(sides)], processes[len(sides) :]
            for server, client in zip(servers, clients, strict=True):
                addresses = server.ask("open", endpoints, box.server_address)
                client.order("calls", list(addresses), rounds)
            outcomes = [client.answer() for client in clients]
            for server in servers:
                server.ask("close")
    return dict(zip(sides, outcomes, strict=True))


@click.command()
@click.option("--endpoints", default=30, show_default=True)
@click.option("--rounds", default=2, show_default=True)
def nat(endpoints: int, rounds: int) -> None:
    """Calls through a real NAT that forgets (needs root)."""
    result = Result(
        "nat",
        "Behind a NAT",
        f"A client calls actors in {endpoints} pools through a NAT (network namespaces, "
        f"nftables) that forgets a session after {REMEMBER} s of silence; every {SILENCE:g} s it "
        f"calls all of them at once, {rounds} times. Counted are the calls after the silence. "
        f"Stock and ours ({TIMEOUT:g} s) run side by side. A call is given up after {BOUND:g} s.",
    )
    reason: str | None = "tests/support/nat.py, which makes one, is not in this checkout"
    if importlib.util.find_spec("tests") and importlib.util.find_spec("tests.support.nat"):
        from tests.support.nat import unavailable

        reason = unavailable()
    if reason is not None:
        result.notes.append(f"Not measured: there is no NAT here ({reason}).")
        progress(f"nat: {result.notes[-1]}")
        publish(result)
        return
    progress(f"nat: {endpoints} endpoints")
    outcomes = _measure(endpoints, rounds)
    table = result.table(
        "First calls after the silence", "side", "calls", "answered", "failed", "no answer",
        "p50, ms", "p99, ms",
    )  # fmt: skip
    for side, calls in outcomes.items():
        count = {kind: sum(each[0] == kind for each in calls) for kind in (ANSWERED, NO_ANSWER)}
        failed = len(calls) - sum(count.values())
        took = [1e3 * each[1] for each in calls]
        table.rows.append(
            (
                side,
                len(calls),
                count[ANSWERED],
                failed,
                count[NO_ANSWER],
                percentile(took, 50),
                percentile(took, 99),
            )
        )
    lost = sum(each[0] != ANSWERED for each in outcomes[OURS])
    result.reaches.append(Reach("calls lost through the NAT", float(lost), 0.0))
    result.data = dict(outcomes)
    publish(result)
