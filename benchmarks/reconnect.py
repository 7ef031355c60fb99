"""Scenario: the first call after a connection was reaped."""

from __future__ import annotations

import asyncio
import importlib.util
import statistics
import sys
import time
from typing import Any

import click

from .endpoints import Client
from .harness import OURS, STOCK, Ratio, Result, progress, publish
from .processes import Child, children, idle_closing

TIMEOUT = 0.05
CROWD = 1000


class Caller(Client):
    """Calls an endpoint over a connection that is open, and one that is not."""

    async def _forget(self) -> None:
        """Let the connection be reaped; stock's is replaced together with its caller."""
        if not _ours():
            await self.owner.stop()
            self.renew()
        await asyncio.sleep(2 * TIMEOUT)

    async def _timed(self, address: str) -> float:
        started = time.perf_counter()
        await self.call(address)
        return time.perf_counter() - started

    async def pairs(self, address: str, n: int) -> list[list[float]]:
        """Seconds of the first call over a connection, and of the one after it."""
        pairs = []
        for _ in range(n):
            await self._forget()
            pairs.append([await self._timed(address), await self._timed(address)])
        return pairs

    async def crowd(self, address: str, callers: int) -> float:
        """Seconds until all have their answer who call at once, without an open connection."""
        await self._forget()
        started = time.perf_counter()
        await asyncio.gather(*(self.call(address) for _ in range(callers)))
        return time.perf_counter() - started


def _ours() -> bool:
    import xoscar_idle

    return xoscar_idle.is_active()


class Nixl:
    """Copies between two sub-pools over NIXL, again after the connection was reaped."""

    async def copies(self, size: int, n: int) -> list[list[float]]:
        """Seconds of the first copy over a connection, and of the one after it."""
        import xoscar as xo

        pool = await xo.create_actor_pool(
            "127.0.0.1", n_process=2, external_address_schemes=[None, "nixl", "nixl"]
        )
        async with pool:
            sending, receiving = pool._config.get_external_addresses()[1:]
            sender = await xo.create_actor(_sender(), address=sending)
            receiver = await xo.create_actor(_receiver(), address=receiving)
            target = await receiver.target(size)
            await sender.copy(target, size)
            times = []
            for _ in range(n):
                await asyncio.sleep(4 * TIMEOUT)
                times.append([await sender.copy(target, size) for _ in range(2)])
        return times


def _sender() -> Any:
    import numpy as np
    import xoscar as xo

    class Sender(xo.StatelessActor):  # type: ignore[misc]  # xoscar is untyped
        async def copy(self, target: Any, size: int) -> float:
            array = np.ones(size, dtype="u1")
            started = time.perf_counter()
            await xo.copy_to([array], [target])
            return time.perf_counter() - started

    return Sender


def _receiver() -> Any:
    import numpy as np
    import xoscar as xo

    class Receiver(xo.StatelessActor):  # type: ignore[misc]
        def target(self, size: int) -> Any:
            self._array = np.zeros(size, dtype="u1")
            return xo.buffer_ref(self.address, self._array)

    return Receiver


@click.command()
@click.option("--reconnects", default=30, show_default=True)
@click.option("--rounds", default=5, show_default=True)
def reconnect(reconnects: int, rounds: int) -> None:
    """Cost of the first call after reaping, and of a crowd of them."""
    result = Result(
        "reconnect",
        "Reconnecting",
        f"An endpoint is called over a connection that has been reaped ({TIMEOUT:g} s), and once "
        "more over the new one. Stock never reaps; beside it stand the first calls of callers "
        f"that are new. A crowd is {CROWD:,} calls at once to one address without an open "
        "connection. Stock and ours take turns.",
    )
    table = result.table(
        "Microseconds",
        "transport",
        "side",
        "first call",
        "call on the open connection",
        "first/open",
    )
    crowd = result.table(
        f"{CROWD:,} calls at once", "transport", "stock, ms", "ours, ms", "ratio",
        "stock, connections opened", "ours, connections opened",
    )  # fmt: skip
    with children(
        lambda: Child("benchmarks.endpoints:Endpoints"),
        lambda: Child("benchmarks.reconnect:Caller"),
        lambda: Child("benchmarks.reconnect:Caller", idle_closing(TIMEOUT)),
    ) as (server, stock, ours):
        (tcp,) = server.ask("open", 1)
        sides = {STOCK: stock, OURS: ours}
        for transport, address in (("TCP", tcp), ("unix socket", server.ask("open_unix"))):
            progress(f"reconnect: {transport}")
            pairs: dict[str, list[list[float]]] = {STOCK: [], OURS: []}
            seconds: dict[str, list[float]] = {STOCK: [], OURS: []}
            opened = {STOCK: 0, OURS: 0}
            for _ in range(rounds):
                for side, client in sides.items():
                    pairs[side] += client.ask("pairs", address, reconnects // rounds)
                    before = server.ask("accepted")
                    seconds[side].append(client.ask("crowd", address, CROWD))
                    opened[side] += server.ask("accepted") - before
            for side, measured in pairs.items():
                first, then = (list(each) for each in zip(*measured, strict=True))
                medians = [1e6 * statistics.median(each) for each in (first, then)]
                table.rows.append((transport, side, *medians, Ratio.of(first, then)))
            medians = [1e3 * statistics.median(each) for each in seconds.values()]
            ratio = Ratio.of(seconds[OURS], seconds[STOCK])
            each = [count / rounds for count in opened.values()]
            crowd.rows.append((transport, *medians, ratio, *each))
            result.data[transport] = {"pairs": pairs, "crowd": seconds}
        server.ask("close_unix")
    if sys.platform == "linux" and importlib.util.find_spec("nixl"):
        progress("reconnect: NIXL")
        nixl = {"XOSCAR_IDLE_TIMEOUT_NIXL": f"{TIMEOUT:g}"}
        with Child("benchmarks.reconnect:Nixl", idle_closing(TIMEOUT) | nixl) as child:
            size = 1 << 20
            copies = child.ask("copies", size, 10)
        first, then = (list(each) for each in zip(*copies, strict=True))
        medians = [1e6 * statistics.median(each) for each in (first, then)]
        name = f"NIXL, copy of {size:,} B"
        table.rows.append((name, OURS, *medians, Ratio.of(first, then)))
        result.data["NIXL"] = copies
    else:
        result.notes.append("NIXL is not installed here, so it was not measured.")
    if importlib.util.find_spec("ucp") is None and importlib.util.find_spec("ucxx") is None:
        result.notes.append("UCX is not installed here, so it was not measured.")
    publish(result)
