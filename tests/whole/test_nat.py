"""Through a NAT that forgets quiet sessions, stock xoscar beside ours in one run."""

from __future__ import annotations

import contextlib
import json
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest

from ..support import programs
from ..support.environment import environment
from ..support.hosting import sockets
from ..support.nat import ANSWERED, BROKEN_OFF, IDLE_ROUNDS, NO_ANSWER, Nat, nat, unavailable
from ..support.processes import line, tell
from ..support.waiting import eventually

pytestmark = pytest.mark.integration

REMEMBER = 3
"""Seconds. Keepalive counts in whole ones, so less would leave it no room."""

# The kernel's limit for data that nobody acknowledges is the same on both sides: by default 30 s,
# longer than these tests want to wait for stock.
BOTH = {"XOSCAR_TCP_USER_TIMEOUT": "1000"}
STOCK: dict[str, str] = {}
OURS = {"XOSCAR_IDLE_TIMEOUT": "1", "XOSCAR_KEEPALIVE_INTERVAL": "1"}


@pytest.fixture
def box() -> Iterator[Nat]:
    """A NAT that remembers a quiet session for REMEMBER seconds."""
    if reason := unavailable():
        programs.missing(reason)
    with nat(REMEMBER) as made:
        yield made


def start(box: Nat, where: str, *arguments: str, **settings: str) -> subprocess.Popen[str]:
    """``python -m tests.support.nat`` in a namespace, with no setting but those given."""
    return box.run(
        where,
        [sys.executable, "-m", "tests.support.nat", *arguments],
        env=environment(**BOTH | settings),
    )


class Pair:
    """A server and, once started, a client; both stock or both ours."""

    def __init__(self, box: Nat, n_pools: int, environment: dict[str, str]) -> None:
        self.box = box
        self.environment = environment
        self.server = start(box, "server", "serve", box.server_address, str(n_pools), **environment)

    def start(self, scenario: str, seconds: float = 0.0, **environment: str) -> None:
        addresses = line(self.server).split()
        self.before = sockets(self.server.pid)
        arguments = ("client", scenario, str(seconds), *addresses)
        self.client = start(self.box, "client", *arguments, **self.environment | environment)

    def result(self) -> dict[str, Any]:
        result: dict[str, Any] = json.loads(line(self.client))
        return result

    def left(self) -> int:
        """How many connections the server has not given up."""
        return sockets(self.server.pid) - self.before


def side_by_side(box: Nat, n_pools: int) -> tuple[Pair, Pair]:
    return Pair(box, n_pools, STOCK), Pair(box, n_pools, OURS)


def outcomes(box: Nat, n: int, scenario: str, seconds: float) -> list[dict[str, int]]:
    """What came of the calls, with stock and with ours."""
    pairs = side_by_side(box, n)
    for pair in pairs:
        pair.start(scenario, seconds)
    return [pair.result()["outcomes"] for pair in pairs]


def test_idle_longer_than_the_nat_remembers(box: Nat) -> None:
    n = 50
    stock, ours = outcomes(box, n, "idle", 1.5 * REMEMBER)
    assert ours == {ANSWERED: n * IDLE_ROUNDS}
    assert ANSWERED not in stock


def test_a_call_longer_than_the_nat_remembers(box: Nat) -> None:
    n = 5
    stock, ours = outcomes(box, n, "long", 3 * REMEMBER)
    assert ours == {ANSWERED: n}
    assert ANSWERED not in stock


def test_a_server_gives_up_clients_that_died_behind_the_nat(box: Nat) -> None:
    n = 20
    pairs = stock, ours = side_by_side(box, n)
    stock.start("hold")
    ours.start("hold", XOSCAR_IDLE_TIMEOUT="60")  # not to close them itself before they are cut off
    for pair in pairs:
        pair.result()
    assert (stock.left(), ours.left()) == (n, n)
    assert box.sessions() == 2 * n
    box.flush()
    assert box.sessions() == 0
    for pair in pairs:
        pair.client.kill()
        pair.client.wait()
    eventually(lambda: ours.left() == 0)
    assert stock.left() == n


def test_a_flapping_nat(box: Nat) -> None:
    """Every call returns or raises within its deadline, and nothing is left behind."""
    rng = random.Random(11)
    n = 8
    pairs = side_by_side(box, n)
    for pair in pairs:
        pair.start("load", 4.0)  # the rest after it: ours closes what is idle, or dead
    eventually(lambda: box.sessions() >= 2 * n)
    for _ in range(6):
        time.sleep(rng.uniform(0.3, 2.5))
        box.flush()
    for pair in pairs:
        tell(pair.client)
    results = [pair.result() for pair in pairs]
    print(*results, sep="\n")
    stock, ours = (result["outcomes"] for result in results)
    assert ours.pop(ANSWERED) > n
    assert ours, "the NAT broke nothing off"
    assert ours.keys() <= {kind.__name__ for kind in BROKEN_OFF}
    assert NO_ANSWER in stock
    assert results[1]["again"] == {ANSWERED: n}

    stock_pair, our_pair = pairs
    eventually(lambda: sockets(our_pair.client.pid) <= results[1]["before"])
    eventually(lambda: our_pair.left() == 0)
    # Stock's client keeps its good connections, too; with it gone, the forgotten ones are left.
    with contextlib.suppress(ProcessLookupError):
        stock_pair.client.kill()
    stock_pair.client.wait()
    assert stock_pair.left() > 0
