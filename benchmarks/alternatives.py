"""Scenario: the same visits with what a user might take instead."""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import click
import psutil

from .harness import OURS, STOCK, Result, interleave, percentile, plot, progress, publish
from .pools import UID, Pools
from .processes import Child, children, idle_closing

TIMEOUT = 2.0
WIDTH = 10  # endpoints that stay in use
AT_ONCE = 8
PAYLOAD = bytes(100)
QUIET = 3.0  # idle timeouts: gRPC closes between one and two of them
SAMPLE_INTERVAL = 0.02
POOL_LIMIT = 512  # dask.distributed's own default

Call = Callable[[bytes], Awaitable[Any]]


class XoscarClient:
    async def connect(self, address: str) -> Call:
        import xoscar as xo

        actor = await xo.actor_ref(address=address, uid=UID)
        call: Call = actor.size
        return call


class GrpcServer:
    async def open(self, n: int) -> list[str]:
        import grpc

        async def size(request: bytes, _: Any) -> bytes:
            return str(len(request)).encode()

        handler = grpc.method_handlers_generic_handler(
            "Echo", {"size": grpc.unary_unary_rpc_method_handler(size)}
        )
        self._servers = []
        addresses = []
        for _ in range(n):
            server = grpc.aio.server()
            server.add_generic_rpc_handlers((handler,))
            addresses.append(f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}")
            await server.start()
            self._servers.append(server)
        return addresses


class GrpcClient:
    async def connect(self, address: str) -> Call:
        import grpc

        options = [("grpc.client_idle_timeout_ms", int(1000 * TIMEOUT))]
        channel = grpc.aio.insecure_channel(address, options=options)
        call: Call = channel.unary_unary("/Echo/size")
        return call


class DaskServer:
    async def open(self, n: int) -> list[str]:
        from distributed.core import Server

        async def size(payload: bytes) -> int:
            return len(payload)

        self._servers = []
        for _ in range(n):
            server = Server({"size": size})
            await server.listen("tcp://127.0.0.1:0")
            self._servers.append(server)
        return [server.address for server in self._servers]


class DaskClient:
    limit = POOL_LIMIT

    async def connect(self, address: str) -> Call:
        from distributed.core import ConnectionPool

        if not hasattr(self, "_pool"):
            # It tells of every time that it makes room.
            logging.getLogger("distributed.core").setLevel(logging.WARNING)
            self._pool = await ConnectionPool(limit=self.limit)
        peer = self._pool(address)
        return lambda payload: peer.size(payload=payload)


class SmallDaskClient(DaskClient):
    limit = WIDTH


@dataclass(frozen=True)
class Kind:
    """A server and a client of it, the module they need, and the client's environment."""

    server: type
    client: type
    module: str
    environment: dict[str, str]


KINDS = {
    STOCK: Kind(Pools, XoscarClient, "xoscar", {}),
    OURS: Kind(Pools, XoscarClient, "xoscar", idle_closing(TIMEOUT)),
    "grpc.aio": Kind(GrpcServer, GrpcClient, "grpc", {}),
    f"distributed, limit {POOL_LIMIT}": Kind(DaskServer, DaskClient, "distributed", {}),
    f"distributed, limit {WIDTH}": Kind(DaskServer, SmallDaskClient, "distributed", {}),
}


class Server:
    """A server process of the given kind."""

    async def open(self, kind: str, n: int) -> list[str]:
        self._server = KINDS[kind].server()
        return list(await self._server.open(n))

    async def close(self) -> None:
        if isinstance(self._server, Pools):
            await self._server.close()


class Client:
    """A client process of the given kind: the same visits for all."""

    async def visit(self, kind: str, addresses: list[str], visits: int) -> None:
        """Call each address so many times, a few addresses at a time."""
        client = KINDS[kind].client()
        self._calls: list[Call] = []
        for i in range(0, len(addresses), AT_ONCE):
            some = [await client.connect(address) for address in addresses[i : i + AT_ONCE]]
            for _ in range(visits):
                await asyncio.gather(*(call(PAYLOAD) for call in some))
            self._calls += some

    async def use(self, calls: int) -> list[float]:
        """Call the last ones visited, one after the other; the seconds of each call."""
        latencies = []
        for i in range(calls):
            started = time.perf_counter()
            await self._calls[-1 - i % WIDTH](PAYLOAD)
            latencies.append(time.perf_counter() - started)
        return latencies

    async def closing(self) -> list[float]:
        """Keep quiet; seconds after the last call at which connections were seen to be closed."""
        started = time.perf_counter()
        closed: list[float] = []
        before = _connections()
        while (now := time.perf_counter() - started) < QUIET * TIMEOUT:
            closed += [now] * (before - len(closed) - _connections())
            await asyncio.sleep(SAMPLE_INTERVAL)
        return closed

    async def connections(self) -> int:
        return _connections()


def _connections() -> int:
    tcp = psutil.Process().net_connections("tcp")
    return sum(each.status == psutil.CONN_ESTABLISHED for each in tcp)


@click.command()
@click.option("--endpoints", default=200, show_default=True)
@click.option("--seconds", default=7.0, show_default=True, help="For which the last are used.")
def alternatives(endpoints: int, seconds: float) -> None:
    """The same visits with grpc.aio, dask.distributed, stock and ours."""
    result = Result(
        "alternatives",
        "Beside other libraries",
        f"Clients visit {endpoints} endpoints, {AT_ONCE} at a time and each 5 times, then go on "
        f"with {WIDTH} of them for {seconds:g} s, in turns of 100 calls of 100 B, one after the "
        "other; then they keep quiet. Each has its server process with all endpoints. Idle "
        f"timeout: {TIMEOUT:g} s for xoscar-idle (`XOSCAR_IDLE_TIMEOUT`) and gRPC "
        "(`grpc.client_idle_timeout_ms`, one channel per endpoint, other settings as they are). "
        "distributed's `ConnectionPool` has none; it closes idle connections when it would "
        f"exceed its limit, which is {POOL_LIMIT} by default; with it stands one with a limit of "
        f"{WIDTH}. Stock xoscar closes none.",
    )
    kinds = {name: kind for name, kind in KINDS.items() if importlib.util.find_spec(kind.module)}
    for name in KINDS.keys() - kinds.keys():
        result.notes.append(f"{name} is not installed here, so it was not measured.")
    with tempfile.TemporaryDirectory() as scratch:
        _compare(result, kinds, endpoints, seconds, {"DASK_TEMPORARY_DIRECTORY": scratch})
    publish(result)


def _compare(
    result: Result, kinds: dict[str, Kind], endpoints: int, seconds: float, common: dict[str, str]
) -> None:
    makers = [partial(Child, "benchmarks.alternatives:Server", common) for _ in kinds]
    makers += [
        partial(Child, "benchmarks.alternatives:Client", common | kind.environment)
        for kind in kinds.values()
    ]
    with children(*makers) as processes:
        servers = dict(zip(kinds, processes, strict=False))
        clients = dict(zip(kinds, processes[len(kinds) :], strict=True))
        peak = {}
        for kind in kinds:
            progress(f"alternatives: {kind}, {endpoints} endpoints")
            clients[kind].ask("visit", kind, servers[kind].ask("open", kind, endpoints), 5)
            peak[kind] = clients[kind].ask("connections")
        progress("alternatives: using some of them")
        latencies: dict[str, list[float]] = {kind: [] for kind in kinds}

        def use(kind: str) -> float:
            latencies[kind] += clients[kind].ask("use", 100)
            return 0.0

        until = time.monotonic() + seconds
        while time.monotonic() < until:
            interleave({kind: partial(use, kind) for kind in kinds}, rounds=1, warm_up=0)
        at_rest = {kind: client.ask("connections") for kind, client in clients.items()}
        progress("alternatives: keeping quiet")
        for client in clients.values():
            client.ask("use", WIDTH)
            client.order("closing")
        closed = {kind: client.answer() for kind, client in clients.items()}
        after = {kind: client.ask("use", WIDTH) for kind, client in clients.items()}
        for server in servers.values():
            server.ask("close")
    table = result.table(
        f"{WIDTH} endpoints in use of {endpoints} visited", "", "connections after the visits",
        "at rest", "closed when quiet", "median lateness of these, s", "latency p50, ms",
        "latency p99, ms", "first calls after the quiet, p50, ms",
    )  # fmt: skip
    for kind in kinds:
        late = [each - TIMEOUT for each in closed[kind]]
        table.rows.append(
            (
                kind,
                peak[kind],
                at_rest[kind],
                len(late),
                percentile(late, 50) if late else "never",
                1e3 * percentile(latencies[kind], 50),
                1e3 * percentile(latencies[kind], 99),
                1e3 * percentile(after[kind], 50),
            )
        )
    result.data = {"latencies": latencies, "closed": closed, "after": after, "at rest": at_rest}

    def draw(figure: Any) -> None:
        left, right = figure.subplots(1, 2)
        names = list(kinds)
        left.barh(names, [at_rest[kind] for kind in names])
        left.axvline(WIDTH, color="gray", linestyle=":")
        left.set_xlabel("connections at rest")
        left.invert_yaxis()
        right.boxplot(
            [[1e3 * v for v in latencies[k]] for k in names], vert=False, showfliers=False
        )
        right.set_yticks([])
        right.set_xlabel("latency of a call, ms")
        right.invert_yaxis()

    result.plots.append(plot("alternatives", draw, (10, 3)))
