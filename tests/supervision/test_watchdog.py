"""What systemd is told: read from a socket of the test's own, as systemd reads it."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import os
import socket
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import xoscar as xo

import xoscar_idle
from xoscar_idle import side_thread
from xoscar_idle.supervision import watchdog
from xoscar_idle.supervision.watchdog import OFTEN, Watchdog, Wish

from ..support.endpoints import ELSEWHERE, HOST
from ..support.environment import environment
from ..support.loops import AskedLoop
from ..support.processes import line, started, tell
from ..support.waiting import BOUND, eventually, eventually_here

INTERVAL = 0.05
USEC = f"{int(INTERVAL * OFTEN * 1e6)}"

_names = itertools.count()


class Systemd:
    """The socket, and what comes there."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.settimeout(BOUND)
        self._socket.bind(f"\0{address[1:]}" if address.startswith("@") else address)

    def next(self) -> str:
        """The next datagram, within the bound."""
        return self._socket.recv(4096).decode()

    def drained(self) -> list[str]:
        """All that have come."""
        found = []
        self._socket.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                found.append(self._socket.recv(4096).decode())
        self._socket.settimeout(BOUND)
        return found

    def close(self) -> None:
        self._socket.close()


@pytest.fixture(params=["path", "abstract"])
def systemd(request: pytest.FixtureRequest) -> Iterator[Systemd]:
    with tempfile.TemporaryDirectory() as directory:  # a path that is short enough
        name = f"@xoscar-idle-{os.getpid()}-{next(_names)}"
        made = Systemd(f"{directory}/notify" if request.param == "path" else name)
        try:
            yield made
        finally:
            made.close()


# -- what is wished for ----------------------------------------------------------------------------

NOTIFY, USUAL = {"NOTIFY_SOCKET": "/run/systemd/notify"}, {"WATCHDOG_USEC": "60000000"}


@pytest.mark.parametrize(
    ("environ", "wish"),
    [
        ({**NOTIFY, **USUAL}, Wish("/run/systemd/notify", 20.0)),
        ({**NOTIFY, **USUAL, "WATCHDOG_PID": "4711"}, Wish("/run/systemd/notify", 20.0)),
        ({**NOTIFY, **USUAL, "WATCHDOG_PID": " 04711 "}, Wish("/run/systemd/notify", 20.0)),
        ({**USUAL, "NOTIFY_SOCKET": "@abstract"}, Wish("@abstract", 20.0)),
        ({**NOTIFY, "WATCHDOG_USEC": "1500000"}, Wish("/run/systemd/notify", 0.5)),
    ],
)
def test_a_wish(environ: dict[str, str], wish: Wish) -> None:
    assert Wish.of(environ, 4711) == wish


@pytest.mark.parametrize(
    ("environ", "says"),
    [
        ({}, "NOTIFY_SOCKET is not set: the unit needs Type=notify"),
        (USUAL, "NOTIFY_SOCKET is not set: the unit needs Type=notify"),
        ({**USUAL, "NOTIFY_SOCKET": ""}, "NOTIFY_SOCKET is not set"),
        ({**USUAL, "NOTIFY_SOCKET": "notify"}, "NOTIFY_SOCKET is not set"),
        ({**USUAL, "NOTIFY_SOCKET": "vsock:2:1234"}, "NOTIFY_SOCKET is not set"),
        (NOTIFY, "WATCHDOG_USEC is not set: the unit needs WatchdogSec="),
        *(
            ({**NOTIFY, "WATCHDOG_USEC": usec}, "WATCHDOG_USEC is not set")
            for usec in ("", "0", "-1", "soon", "1.5", "9" * 30, "9" * 5000, "٣٠", "1e6")
        ),
        *(
            ({**NOTIFY, **USUAL, "WATCHDOG_PID": pid}, "WATCHDOG_PID names another process than")
            for pid in ("1", "47110", "", "0", "-4711", "me", "9" * 5000)
        ),
    ],
)
def test_no_wish_for_this_process(environ: dict[str, str], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Wish.of(environ, 4711)


# -- when a sign is sent ---------------------------------------------------------------------------


READY, LIVES = "READY=1\nWATCHDOG=1", "WATCHDOG=1"


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What has been sent."""
    found: list[str] = []

    def send(address: str, text: str) -> bool:
        found.append(text)
        return True

    monkeypatch.setattr(watchdog, "_sent", send)
    return found


def fed_by(*loops: Any) -> tuple[Watchdog, list[Any]]:
    there = list(loops)
    return Watchdog(Wish("/none", 1.0), lambda: there), there


def test_a_sign_is_that_of_the_loops(sent: list[str]) -> None:
    """Of all of them: one that is blocked is as bad as all."""
    first, second = AskedLoop(), AskedLoop()
    fed, _ = fed_by(first, second)
    fed.feed()
    first.answer()
    assert sent == [], "one of two has answered"
    for _ in range(9):
        fed.feed()
    first.answer()
    assert sent == []
    assert len(second.asked) == 1, "it is asked once, however long it takes"
    second.answer()
    assert sent == [READY]
    fed.feed()
    for each in (first, second):
        each.answer()
    assert sent == [READY, LIVES]


def test_where_there_are_none_nothing_can_be_blocked(sent: list[str]) -> None:
    loop = AskedLoop()
    fed, there = fed_by(loop)
    fed.feed()
    loop.answer()
    there.clear()
    fed.feed()
    fed.feed()
    assert sent == [READY, LIVES, LIVES]


@pytest.mark.parametrize("how", ["its pool ends", "it is closed"])
def test_one_that_ends_while_it_is_waited_for(sent: list[str], how: str) -> None:
    first, second = AskedLoop(), AskedLoop()
    fed, there = fed_by(first, second)
    fed.feed()
    first.answer()
    if how == "it is closed":
        second.closed = True
    there.remove(second)
    fed.feed()
    first.answer()
    assert sent == [READY]
    second.closed = False
    second.answer()
    fed.feed()
    first.answer()
    assert sent[-1] == LIVES


def test_one_that_is_closed_and_still_there(sent: list[str]) -> None:
    first, second = AskedLoop(), AskedLoop()
    fed, _ = fed_by(first, second)
    second.closed = True
    for _ in range(3):
        fed.feed()
        first.answer()
    assert sent == [READY, LIVES, LIVES]


def test_ready_is_said_until_it_could_be_sent(systemd: Systemd) -> None:
    loop = AskedLoop()
    absent = Watchdog(Wish("/no/such/socket", 1.0), lambda: [loop])  # type: ignore[list-item]
    absent.feed()
    loop.answer()
    absent.wish = Wish(systemd.address, 1.0)
    for _ in range(2):
        absent.feed()
        loop.answer()
    assert systemd.drained() == [READY, LIVES]


def test_a_socket_that_nobody_reads_from(systemd: Systemd) -> None:
    """Neither waits nor raises."""
    loop = AskedLoop()
    fed = Watchdog(Wish(systemd.address, 1.0), lambda: [loop])  # type: ignore[list-item]
    for _ in range(2000):
        fed.feed()
        loop.answer()
    found = systemd.drained()
    assert found == [READY, *[LIVES] * (len(found) - 1)]
    assert len(found) < 2000, "it was full"
    fed.feed()
    loop.answer()
    assert systemd.drained() == [LIVES]


# -- a program -------------------------------------------------------------------------------------

# Told on stdin what to do. Its side thread tells how often it has come by, in a file.
PROGRAM = """
import asyncio, gc, os, sys, time
import xoscar as xo
import xoscar_idle
from xoscar_idle import side_thread

place, interval = sys.argv[1], float(sys.argv[2])
rounds = 0

def turn():
    global rounds
    rounds += 1
    with open(f"{place}/rounds.new", "w") as file:
        file.write(f"{rounds}")
    os.replace(f"{place}/rounds.new", f"{place}/rounds")

async def main():
    pools = []
    read = asyncio.get_running_loop().run_in_executor
    side_thread.every(interval, turn)
    print("begun", flush=True)
    while words := (await read(None, sys.stdin.readline)).split():
        if words[0] == "pool":
            pools.append(await xo.create_actor_pool(sys.argv[3], n_process=0))
        elif words[0] == "block":
            open(f"{place}/blocked", "w").close()
            while not os.path.exists(f"{place}/go on"):
                time.sleep(0.01)
        elif words[0] == "stop":
            await pools[-1].stop()
        elif words[0] == "forget":
            pools.clear()
            gc.collect()
        elif words[0] == "configure":
            xoscar_idle.configure(idle_timeout=9)
        print("done", flush=True)

asyncio.run(main())
"""


class Program:
    """It, and how often its side thread has come by."""

    def __init__(self, process: Any, place: Path) -> None:
        self.process = process
        self.place = place
        assert line(process) == "begun"

    def tell(self, *words: str) -> None:
        for word in words:
            tell(self.process, word)
            assert line(self.process) == "done"

    def rounds(self) -> int:
        with contextlib.suppress(FileNotFoundError):
            return int((self.place / "rounds").read_text())
        return 0

    def intervals_pass(self, count: int) -> None:
        """So many of those of the watchdog, as its side thread sees them."""
        until = self.rounds() + count
        eventually(lambda: self.rounds() >= until)


@contextlib.contextmanager
def program(place: Path, address: str, **variables: str) -> Iterator[Program]:
    given = {
        "XOSCAR_IDLE_TIMEOUT": "600",
        "XOSCAR_WATCHDOG": "1",
        "NOTIFY_SOCKET": address,
        "WATCHDOG_USEC": USEC,
        **variables,
    }
    with started(
        *(sys.executable, "-c", PROGRAM, f"{place}", f"{INTERVAL}", ELSEWHERE),
        env=environment() | given,
    ) as process:
        yield Program(process, place)


@pytest.mark.integration
def test_it_is_ready_with_its_main_pool_and_then_lives(tmp_path: Path, systemd: Systemd) -> None:
    with program(tmp_path, systemd.address) as found:
        found.intervals_pass(6)
        assert systemd.drained() == [], "it is not ready before it has a main pool"
        found.tell("pool")
        assert systemd.next() == READY
        assert [systemd.next() for _ in range(5)] == [LIVES] * 5


@pytest.mark.integration
def test_nothing_comes_while_the_loop_is_blocked(tmp_path: Path, systemd: Systemd) -> None:
    with program(tmp_path, systemd.address) as found:
        found.tell("pool")
        assert systemd.next() == READY
        assert systemd.next() == LIVES
        tell(found.process, "block")
        eventually((tmp_path / "blocked").exists)
        systemd.drained()  # it is blocked: whatever it has sent has come
        found.intervals_pass(3 * OFTEN)
        assert systemd.drained() == [], "though its side thread goes on"
        (tmp_path / "go on").touch()
        assert line(found.process) == "done"
        assert [systemd.next() for _ in range(3)] == [LIVES] * 3


@pytest.mark.integration
def test_a_program_that_goes_on_without_a_main_pool(tmp_path: Path, systemd: Systemd) -> None:
    """Else systemd would end it."""
    with program(tmp_path, systemd.address) as found:
        found.tell("pool")
        assert systemd.next() == READY
        found.tell("stop")
        systemd.drained()
        assert [systemd.next() for _ in range(4)] == [LIVES] * 4
        found.tell("forget")
        systemd.drained()
        assert [systemd.next() for _ in range(4)] == [LIVES] * 4
        found.tell("configure")
        systemd.drained()
        assert [systemd.next() for _ in range(4)] == [LIVES] * 4
        found.tell("pool")
        systemd.drained()
        assert [systemd.next() for _ in range(4)] == [LIVES] * 4


@pytest.mark.integration
@pytest.mark.parametrize(
    "variables", [{"WATCHDOG_PID": "1"}, {"XOSCAR_WATCHDOG": "0"}, {"WATCHDOG_USEC": "0"}]
)
def test_nothing_is_sent_where_it_is_not_asked_for(
    tmp_path: Path, systemd: Systemd, variables: dict[str, str]
) -> None:
    with program(tmp_path, systemd.address, **variables) as found:
        found.tell("pool")
        found.intervals_pass(3 * OFTEN)
        assert systemd.drained() == []


# -- in this process -------------------------------------------------------------------------------


@pytest.mark.integration
async def test_without_a_socket_it_does_nothing_and_says_so_once(
    active: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"):
        monkeypatch.delenv(name, raising=False)
    xoscar_idle.install(idle_timeout=600, watchdog=True)
    assert not caplog.records, "there is no main pool yet"
    for _ in range(2):
        async with await xo.create_actor_pool(HOST, n_process=0):
            xoscar_idle.configure(connect_timeout=5)
    found = [each.getMessage() for each in caplog.records]
    assert found[:1] == [
        "XOSCAR_WATCHDOG does nothing: NOTIFY_SOCKET is not set: the unit needs Type=notify"
    ]
    assert len(found) == 1
    assert side_thread._running is None


@pytest.mark.integration
async def test_it_is_switched_on_and_off_while_it_runs(
    active: None, monkeypatch: pytest.MonkeyPatch, systemd: Systemd
) -> None:
    gc.collect()  # main pools of other tests
    monkeypatch.setenv("NOTIFY_SOCKET", systemd.address)
    monkeypatch.setenv("WATCHDOG_USEC", USEC)
    monkeypatch.setenv("WATCHDOG_PID", f"{os.getpid()}")
    found: list[str] = []

    def come(count: int) -> bool:
        found.extend(systemd.drained())
        return len(found) >= count

    xoscar_idle.install(idle_timeout=600)
    async with await xo.create_actor_pool(HOST, n_process=0):
        assert side_thread._running is None
        xoscar_idle.configure(watchdog=True)
        await eventually_here(lambda: come(3))
        assert found == [READY, *[LIVES] * (len(found) - 1)]
        xoscar_idle.configure(watchdog=False)
        assert side_thread._running is None
        assert watchdog._running is None
        await asyncio.sleep(0)
        systemd.drained()
        found.clear()
        xoscar_idle.configure(watchdog=True)
        await eventually_here(lambda: come(2))
        xoscar_idle.uninstall()
        assert side_thread._running is None
        assert watchdog._running is None
