"""Scenario: the HTTP interface of a main pool, asked by many, among them some that mean no good."""

from __future__ import annotations

import contextlib
import json
import random
import socket
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import click
import psutil

from .harness import Ratio, Reach, Result, interleave, percentile, progress, publish
from .processes import Child, children, idle_closing

ADDRESS = "127.0.0.4"
WITHOUT, WITH = "without HTTP", "with HTTP"
ALIVE_LIMIT = 0.01
CALL_LIMIT = 1.10  # of two processes of which one is asked all the time
GROWTH_LIMIT = 32 << 20
HEAD = b" HTTP/1.1\r\nhost: 127.0.0.4\r\n"


@dataclass
class Site:
    """A main pool that is told of over HTTP."""

    host: Child
    port: int

    def connect(self) -> socket.socket:
        return socket.create_connection((ADDRESS, self.port), timeout=60)

    def get(self, path: str) -> tuple[int, str]:
        """The status and the body of an answer."""
        with self.connect() as sock:
            sock.sendall(f"GET {path}".encode() + HEAD + b"\r\n")
            told = b"".join(iter(partial(sock.recv, 65536), b"")).decode()
        return int(told.split(" ", 2)[1]), told.partition("\r\n\r\n")[2]


@dataclass
class Crowd:
    """Those who ask all at once, until they are to go."""

    site: Site
    garbage: int = 0
    dropped: int = 0
    _stop: threading.Event = field(default_factory=threading.Event)
    _held: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)
    _threads: list[threading.Thread] = field(default_factory=list)

    def come(self, streams: int, deaf: int, slow: int) -> None:
        """So many follow the events, of whom some never read; and so many never say all."""
        readers = []
        for number in range(streams):
            sock = self._held.enter_context(self.site.connect())
            if number < deaf:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.sendall(b"GET /v1/events" + HEAD + b"last-event-id: 0\r\n\r\n")
            if number >= deaf:
                readers.append(sock)
        for work in (partial(self._read, readers), partial(self._drip, slow), self._throw):
            thread = threading.Thread(target=work, daemon=True)
            thread.start()
            self._threads.append(thread)

    def go(self) -> None:
        self._stop.set()
        for each in self._threads:
            each.join()
        self._held.close()

    def _read(self, readers: list[socket.socket]) -> None:
        for each in readers:
            each.setblocking(False)
        while not self._stop.wait(0.05):
            for each in readers:
                with contextlib.suppress(BlockingIOError):
                    each.recv(65536)

    def _drip(self, number: int) -> None:
        held: list[socket.socket] = []
        while not self._stop.wait(0.1):
            while len(held) < number:
                held.append(self.site.connect())
                held[-1].sendall(b"GET / HTTP/1.1\r\nx: ")
            for each in list(held):
                try:
                    each.sendall(b"x")
                except OSError:  # it has been hung up on
                    held.remove(each)
                    each.close()
                    self.dropped += 1
        for each in held:
            each.close()

    def _throw(self) -> None:
        chance = random.Random(15)
        while not self._stop.wait(0.002):
            with contextlib.suppress(OSError), self.site.connect() as sock:
                sock.sendall(chance.randbytes(200))
                self.garbage += 1


@contextlib.contextmanager
def _sites() -> Iterator[tuple[Site, Child, list[Child]]]:
    """A main pool with HTTP, one without, and a caller of each in another process."""
    with tempfile.TemporaryDirectory() as name, socket.create_server((ADDRESS, 0)) as free:
        port = free.getsockname()[1]
        free.close()

        def child(maker: str, **settings: str) -> Callable[[], Child]:
            own = Path(name) / f"{len(settings)}{maker}"
            own.mkdir(mode=0o700)
            told = {"XOSCAR_DIR": f"{own}", "XOSCAR_SUPERVISE_DIR": f"{own}"}
            environment = {**idle_closing(600), "XOSCAR_SUPERVISE": "act", **told, **settings}
            return lambda: Child(f"benchmarks.hosts:{maker}", environment, "asyncio")

        makers = [child("Host", XOSCAR_HEALTH_ADDRESS=f"{ADDRESS}:{port}"), child("Host")]
        with children(*makers, child("Elsewhere", A="1"), child("Elsewhere")) as made:
            served, plain, *callers = made
            for host, caller in zip((served, plain), callers, strict=True):
                (address,) = host.ask("open", 1)
                caller.ask("connect", address)
            yield Site(served, port), plain, callers
            for host in (served, plain):
                host.ask("close")


def _compared(
    callers: list[Child], rounds: int, calls: int
) -> tuple[Ratio, dict[str, list[float]]]:
    order = ("call", 100, 1, calls)
    sides = {WITH: partial(callers[0].ask, *order), WITHOUT: partial(callers[1].ask, *order)}
    measured = interleave(sides, rounds)
    return Ratio.of(measured[WITH], measured[WITHOUT]), measured


def _size(site: Site) -> tuple[int, int, int]:
    process = psutil.Process(site.host.process.pid)
    return process.memory_info().rss, process.num_fds(), process.num_threads()


def _blocked(result: Result, site: Site, seconds: float) -> None:
    progress(f"interface: its loop is blocked for {seconds:g} s")
    site.host.order("block", seconds)
    begun, taken, ready = time.monotonic(), [], ""
    while time.monotonic() < begun + seconds - 1:
        started = time.perf_counter()
        status, _ = site.get("/livez")
        taken.append(time.perf_counter() - started)
        assert status == 200
        if time.monotonic() > begun + seconds / 2 and not ready:
            status, ready = site.get("/readyz")
            assert status == 503, ready
        time.sleep(0.05)
    site.host.answer()
    (main,) = json.loads(ready)["mains"]
    table = result.table(f"The loop is blocked for {seconds:g} s", "", "milliseconds")
    middle = statistics.median(taken)
    table.rows += [
        (f"`/livez`, median of {len(taken)}", middle * 1e3),
        ("`/livez`, 99th percentile", percentile(taken, 99) * 1e3),
    ]
    reasons = json.loads(ready)["reasons"]
    innermost = main["doing"].strip().splitlines()[1].strip()
    result.notes.append(f"`/readyz` said 503: {reasons[0]}; innermost line: `{innermost}`.")
    result.data["livez while blocked, seconds"] = taken
    goal = "`/livez` while the loop of the main pool is blocked, seconds"
    result.reaches.append(Reach(goal, middle, ALIVE_LIMIT))


def _kills(result: Result, site: Site, kills: int) -> None:
    progress("interface: from a kill to its event")
    told: list[float] = []
    for _ in range(kills):
        (pool,) = json.loads(site.get("/health")[1])["pools"]
        with site.connect() as sock:
            sock.sendall(b"GET /v1/events" + HEAD + b"\r\n")
            with sock.makefile("rb") as lines:
                while b"retry:" not in lines.readline():
                    pass
                started = time.perf_counter()
                psutil.Process(pool["pid"]).kill()
                while b"event: crash" not in lines.readline():
                    pass
                told.append(time.perf_counter() - started)
        while site.get("/readyz")[0] != 200:
            time.sleep(0.05)
    table = result.table("From `kill -9` to the event at a client", "", "milliseconds")
    table.rows += [("median", statistics.median(told) * 1e3), ("longest", max(told) * 1e3)]
    result.data["kill to event, seconds"] = told


def _crowd(
    result: Result, site: Site, callers: list[Child], rounds: int, calls: int, garbage: int
) -> None:
    progress("interface: calls, with nobody asking")
    quiet, quiet_times = _compared(callers, rounds, calls)
    for _ in range(50):
        site.get("/health")
    before = _size(site)
    progress("interface: calls, with all of them asking")
    crowd = Crowd(site)
    crowd.come(streams=200, deaf=20, slow=100)
    with site.connect() as sock, contextlib.suppress(OSError):
        for _ in range(10):
            sock.sendall(b"x" * (1 << 20))  # a request line of 10 MB
    among = _size(site)
    loud, loud_times = _compared(callers, rounds, calls)
    while crowd.garbage < garbage:
        time.sleep(0.1)
    peak = _size(site)
    crowd.go()
    deadline = time.monotonic() + 60
    while (after := _size(site))[1] > before[1] and time.monotonic() < deadline:
        time.sleep(0.1)
    table = result.table(
        "200 clients of the events, 20 of which never read, 100 that never say all, garbage, and a "
        "request line of 10 MB",
        "",
        "before",
        "with them",
        f"after {crowd.garbage} of garbage",
        "when they have gone",
    )
    rows = zip(("resident MB", "descriptors", "threads"), before, among, peak, after, strict=True)
    for name, *values in rows:
        scale = 1 << 20 if name.startswith("resident") else 1
        table.rows.append((name, *(value / scale for value in values)))
    calls_table = result.table("A call, with HTTP to without", "", "ratio")
    calls_table.rows += [("nobody asks", quiet), ("all of them ask", loud)]
    result.notes.append(f"{crowd.dropped} that never say all were hung up on.")
    result.data |= {"quiet": quiet_times, "loud": loud_times}
    result.reaches += [
        Reach("a call with HTTP to one without, nobody asks", quiet.median, 1.05, quiet.spread),
        Reach("the same, all of them ask", loud.median, CALL_LIMIT, loud.spread),
        Reach("memory that is left taken, bytes", after[0] - before[0], GROWTH_LIMIT),
        Reach("descriptors that are left open", after[1] - before[1], 0),
    ]


@click.command()
@click.option("--blocked", default=30.0, show_default=True, help="Seconds.")
@click.option("--kills", default=3, show_default=True, help="That are timed; a fourth degrades it.")
@click.option("--rounds", default=20, show_default=True, help="Pairs of measurements.")
@click.option("--calls", default=500, show_default=True, help="Per measurement.")
@click.option("--garbage", default=10_000, show_default=True, help="Requests that are none.")
def interface(blocked: float, kills: int, rounds: int, calls: int, garbage: int) -> None:
    """What the HTTP interface costs, and what becomes of it among many who ask."""
    result = Result(
        "interface",
        "The HTTP interface",
        "Two main pools with a sub-pool each, `XOSCAR_SUPERVISE=act`, one of them with "
        "`XOSCAR_HEALTH_ADDRESS`; a caller of each in a process of its own, over TCP, one call of "
        "100 bytes after the other. Those who ask over HTTP are threads of one more process on the "
        "same machine, whose processor they share with all the others.",
    )
    with _sites() as (site, _, callers):
        _crowd(result, site, callers, rounds, calls, garbage)
        _blocked(result, site, blocked)
        _kills(result, site, kills)
    publish(result)
