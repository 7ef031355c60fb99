"""``xoscar-idle top`` and ``stats``: in a real terminal, on real pools, and asked nonsense."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import termios
import threading
from collections.abc import Iterator
from pathlib import Path

import click
import psutil
import pyte
import pytest
import xoscar as xo

from xoscar_idle.commands.cli import main
from xoscar_idle.commands.interrupting import until_interrupted
from xoscar_idle.commands.listings import VIEWS, headers

from ..support import processes
from ..support.endpoints import refusing
from ..support.hosting import Pools, pools, worker
from ..support.waiting import BOUND, eventually

pytestmark = pytest.mark.integration

COMMAND = "from xoscar_idle.commands.cli import main; main(prog_name='xoscar-idle')"


class Caller(xo.StatelessActor):  # type: ignore[misc]
    """Has a call in flight until it is released."""

    async def call(self, address: str) -> None:
        await (await worker(address)).hold()


@pytest.fixture(autouse=True)
def runtime(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where the sockets are, for these tests alone."""
    with tempfile.TemporaryDirectory() as directory:
        monkeypatch.setenv("XOSCAR_IDLE_MONITOR", directory)
        yield Path(directory)


def run(*arguments: str, prelude: str = "", **variables: str) -> subprocess.CompletedProcess[str]:
    command = (sys.executable, "-c", prelude + COMMAND, *arguments)
    return processes.run(*command, status=None, env=os.environ | variables)


class Terminal:
    """A pseudo-terminal in which the command runs, and its screen."""

    def __init__(self, columns: int, *arguments: str, prelude: str = "") -> None:
        self.columns = columns
        self.screen = pyte.Screen(columns, 40)
        self.output = ""
        self._stream = pyte.Stream(self.screen)
        self._lock = threading.Lock()
        self._ours, self._theirs = os.openpty()
        self.mode = termios.tcgetattr(self._theirs)
        fcntl.ioctl(self._theirs, termios.TIOCSWINSZ, struct.pack("4H", 40, columns, 0, 0))
        # Ctrl-C goes to those whose controlling terminal it is.
        control = "import fcntl, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); "
        environment = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES")}
        self._stack = contextlib.ExitStack()
        self.process = self._stack.enter_context(
            processes.started(
                *(sys.executable, "-c", control + prelude + COMMAND, *arguments),
                stdin=self._theirs,
                stdout=self._theirs,
                stderr=self._theirs,
                env={**environment, "TERM": "xterm-256color"},
                start_new_session=True,
            )
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        with contextlib.suppress(OSError):  # the other side is closed
            while data := os.read(self._ours, 65536):
                with self._lock:
                    text = data.decode()
                    self.output += text
                    self._stream.feed(text)

    def lines(self) -> list[str]:
        with self._lock:
            return [text.rstrip() for text in self.screen.display]

    def wait_for(self, *patterns: str) -> None:
        """Until the screen has a line that matches, for each."""

        def shown() -> bool:
            lines = self.lines()
            assert self.process.poll() is None, "\n".join(lines)
            return all(any(re.search(p, each) for each in lines) for p in patterns)

        try:
            eventually(shown)
        except AssertionError as error:
            raise AssertionError("\n".join([f"{error}: {patterns}", *self.lines()])) from None

    def type(self, keys: bytes) -> None:
        os.write(self._ours, keys)

    def press(self, key: bytes) -> int:
        """Press it; the exit status."""
        self.type(key)
        return self.process.wait(BOUND)

    def takes_single_keys(self) -> bool:
        local: int = termios.tcgetattr(self._theirs)[3]
        return not local & termios.ICANON

    def is_as_before(self) -> bool:
        return termios.tcgetattr(self._theirs) == self.mode

    def be_taken_by_a_shell(self) -> None:
        termios.tcsetattr(self._theirs, termios.TCSANOW, self.mode)

    def close(self) -> None:
        self._stack.close()
        os.close(self._theirs)
        self._reader.join(BOUND)
        os.close(self._ours)


@contextlib.contextmanager
def terminal(columns: int, *arguments: str, prelude: str = "") -> Iterator[Terminal]:
    opened = Terminal(columns, *arguments, prelude=prelude)
    try:
        yield opened
    finally:
        opened.close()


@pytest.fixture(scope="module")
def three_processes() -> Iterator[tuple[Pools, str, Pools]]:
    """A pool of three, the directory of their sockets, and a pool for them to call."""
    with (
        tempfile.TemporaryDirectory() as directory,
        pools(
            1,
            2,
            XOSCAR_IDLE_TIMEOUT="0.2",
            XOSCAR_IDLE_MONITOR=directory,
        ) as hosted,
        pools() as target,
    ):
        yield hosted, directory, target


@pytest.mark.parametrize(
    ("asked", "columns"),
    [
        pytest.param("pool", 80, id="pool-80"),
        pytest.param("processes", 160, id="processes-160"),
    ],
)
def test_connections_appear_fall_idle_and_go(
    asked: str,
    columns: int,
    three_processes: tuple[Pools, str, Pools],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hosted, directory, other = three_processes
    monkeypatch.setenv("XOSCAR_IDLE_MONITOR", directory)
    (target,) = other.addresses
    named = hosted.addresses[:1] if asked == "pool" else []

    seen_active, seen_idle = threading.Event(), threading.Event()

    async def call() -> None:
        sub_pool = await worker(hosted.addresses[1])
        await sub_pool.configure(idle_timeout=600)
        caller = await xo.create_actor(Caller, address=hosted.addresses[1])
        held = asyncio.ensure_future(caller.call(target))
        await asyncio.to_thread(seen_active.wait, BOUND)
        await (await worker(target)).release()
        await held
        await asyncio.to_thread(seen_idle.wait, BOUND)
        await sub_pool.configure(idle_timeout=0.2)
        await xo.destroy_actor(caller)

    with terminal(columns, "top", "--interval", "0.2", *named) as shown:
        shown.wait_for(r"3 processes, no connections", r"^ *PID  PROCESS .* FDS$")
        for address in hosted.addresses:
            shown.wait_for(rf"^ *\d+  {address[:9]}.*  active  +0  .* \d+/\d+$")
        if columns >= 160:
            shown.wait_for("OPEN/s  CLOSE/s  CALLS/s", r" 0\.0 +0\.0 .* \d+/\d+$")
        calling = threading.Thread(target=asyncio.run, args=(call(),), daemon=True)
        calling.start()
        shown.wait_for(r"3 processes, \d+ conn", rf"{target} +active +1 +\d+ ", "CONNECTION TO")
        seen_active.set()
        shown.wait_for(rf"{target} +idle +0 +\d+ ")
        seen_idle.set()
        calling.join()
        shown.wait_for(r"3 processes, no connections")
        assert not any(target in each for each in shown.lines())
        assert shown.press(b"\x03") == 0
    assert "Traceback" not in shown.output
    assert shown.output.rindex("\x1b[?1049l") > shown.output.rindex("\x1b[?1049h")
    assert shown.output.rindex("\x1b[?25h") > shown.output.rindex("\x1b[?25l")
    # Nothing of it stays behind in the pool.
    process = psutil.Process(hosted.pid)
    assert not [c for c in process.net_connections("tcp4") if c.status == "ESTABLISHED"]


@contextlib.contextmanager
def many_connections(n: int) -> Iterator[int]:
    """``n`` connections of this process to a port of its own: it has opened and accepted them."""
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=n))
        for _ in range(n):
            stack.enter_context(socket.create_connection(server.getsockname()))
            stack.enter_context(server.accept()[0])
        yield server.getsockname()[1]


def test_keys_lead_to_what_does_not_fit() -> None:
    """The interval is so long that nothing but a key draws."""
    with (
        many_connections(120),
        terminal(100, "top", "--interval", "1000", f"{os.getpid()}") as shown,
    ):
        shown.wait_for(r"1 process \(1 unmonitored\), 120 conn", "rows 1 to 32 of 121: q quits, h ")
        for keys, rows in (
            (b"j", "rows 2 to 33 of 121"),
            (b"\x1b[B", "rows 3 to 34 of 121"),
            (b"\x1b[6~", "rows 35 to 66 of 121"),
            (b"k", "rows 34 to 65 of 121"),
            (b"\x1bOAx", "rows 33 to 64 of 121"),
            (b"G", "rows 90 to 121 of 121"),
            (b"jj", "rows 90 to 121 of 121"),
            (b"k", "rows 89 to 120 of 121"),
            (b"\x1b[5~", "rows 57 to 88 of 121"),
            (b"g", "rows 1 to 32 of 121"),
            (b"k", "rows 1 to 32 of 121"),
            (b"kj", "rows 2 to 33 of 121"),
        ):
            shown.type(keys)
            shown.wait_for(rows)
        assert shown.press(b"q") == 0
        assert shown.is_as_before()
    assert "Traceback" not in shown.output


def test_keys_change_what_is_looked_at() -> None:
    """The interval is so long that nothing but a key draws."""
    with (
        many_connections(3) as port,
        terminal(100, "top", "--interval", "1000", f"{os.getpid()}") as shown,
    ):
        shown.wait_for("PID  PROCESS .* STATE ", "PID  CONNECTION TO")
        shown.type(b"2")
        shown.wait_for("CONNECTION TO")
        eventually(lambda: not any("PROCESS " in each for each in shown.lines()))
        shown.type(b"3")
        shown.wait_for(r"1 peer, 3 connections", r"^PEER +PROCESSES  OPEN ", "^FROM +POOLS ")
        shown.wait_for(rf"^127.0.0.1:{port} +1 +3 ", rf"^127.0.0.1 \({os.getpid()} .* +1 +3 ")
        shown.type(b">>>")
        shown.wait_for("  OPEN▼  ")
        shown.type(b"r")
        shown.wait_for("  OPEN▲  ")
        shown.type(b"v")
        shown.wait_for("3 accepted connections: 3 established")
        shown.type(b"?")
        shown.wait_for("^keys$", "^q, Ctrl-C")
        shown.type(b"x")
        shown.wait_for("3 accepted connections: 3 established")
        assert shown.press(b"q") == 0
    assert "Traceback" not in shown.output


def test_a_filter_acts_as_one_types() -> None:
    with (
        many_connections(3),
        many_connections(3) as port,
        terminal(100, "top", "--interval", "1000", "--view", "connections", f"{os.getpid()}") as at,
    ):
        at.wait_for("6 connections")
        at.type(b"/")
        at.wait_for("^/_$")
        at.type(f"1:{port}q".encode())
        at.wait_for(rf"filter: 1:{port}q, 0 of 6; ", rf"^/1:{port}q_$")
        at.type(b"\x7f")
        at.wait_for(rf"filter: 1:{port}, 3 of 6; ", rf"127.0.0.1:{port} +established")
        at.type(b"\r")
        at.wait_for(rf"filter: 1:{port}, 3 of 6; ", "^q quits, h shows the keys")
        at.type("/é".encode()[:2])
        at.type("/é".encode()[2:])  # a character in two pieces
        at.wait_for(rf"^/1:{port}é_$", "0 of 6")
        at.type(b"\x1b")
        at.wait_for(r"\d  1 process \(1 unmonitored\), 6 connections")
        assert at.press(b"q") == 0


def test_what_it_begins_with() -> None:
    begin = ("--view", "peers", "--sort=-processes", "--filter", "127.0.0.1:")
    with (
        many_connections(3),
        many_connections(3),
        terminal(100, "top", "--interval", "1000", *begin, f"{os.getpid()}") as shown,
    ):
        shown.wait_for("filter: 127.0.0.1:, 2 of 3; .* 2 peers", r"PROCESSES▲")
        done = run("top", "--once", *begin, f"{os.getpid()}")
        assert "PROCESSES▲" in done.stdout
        assert done.stdout.startswith("filter: 127.0.0.1:, 2 of 3; 1 process ")
        title = "2 peers, 6 connections: 6 established; 1 client, 6 accepted connections: 6 est"
        assert title in " ".join(done.stdout.split())


FAILS = """
import xoscar_idle.commands.top
found = xoscar_idle.commands.top.look
async def look(targets):
    xoscar_idle.commands.top.look = fails
    return await found(targets)
async def fails(targets):
    raise RuntimeError("all at once")
xoscar_idle.commands.top.look = look
"""


@pytest.mark.parametrize(
    ("end", "status", "prelude"),
    [
        (signal.SIGTERM, 128 + signal.SIGTERM, ""),
        (signal.SIGHUP, 128 + signal.SIGHUP, ""),
        (signal.SIGINT, 0, ""),
        (None, 1, FAILS),
    ],
)
def test_the_terminal_is_restored(end: signal.Signals | None, status: int, prelude: str) -> None:
    interval = "1000" if end else "2"
    with terminal(80, "top", "--interval", interval, f"{os.getpid()}", prelude=prelude) as shown:
        shown.wait_for("1 process ")
        assert shown.takes_single_keys()
        if end is not None:
            shown.process.send_signal(end)
        assert shown.process.wait(BOUND) == status
        assert shown.is_as_before()


def test_keys_after_a_stop() -> None:
    """A shell has had the terminal, and left it in its own mode."""
    with terminal(80, "top", "--interval", "1000", f"{os.getpid()}") as shown:
        shown.wait_for("1 process ")
        shown.process.send_signal(signal.SIGSTOP)
        shown.be_taken_by_a_shell()
        shown.process.send_signal(signal.SIGCONT)
        eventually(shown.takes_single_keys)
        assert shown.press(b"q") == 0
        assert shown.is_as_before()


def test_stdin_that_is_no_terminal_is_left_alone() -> None:
    inner = f"{sys.executable} -c {COMMAND!r} top --interval 0.1 {os.getpid()} < /dev/null"
    prelude = f"import os; os.execvp('sh', ['sh', '-c', {inner!r}]); "
    with many_connections(120), terminal(100, prelude=prelude) as shown:
        shown.wait_for("rows 1 to 32 of 121$")
        assert not shown.takes_single_keys()


def test_ctrl_c_while_nobody_answers() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        terminal(80, "top", f"127.0.0.1:{listener.getsockname()[1]}") as shown,
    ):
        connection, _ = listener.accept()
        shown.wait_for("^xoscar-idle: some have not answered yet$")
        assert shown.press(b"\x03") == 0
        connection.close()
    assert "Traceback" not in shown.output


def test_ctrl_c_that_is_swallowed_once() -> None:
    """As ``asyncio.wait_for`` does before Python 3.12, when what it waits for has just ended."""

    async def show() -> int:
        with contextlib.suppress(asyncio.CancelledError):
            signal.raise_signal(signal.SIGINT)
            await asyncio.sleep(BOUND)
        await asyncio.sleep(BOUND)
        return 1

    assert until_interrupted(show()) == 0


def test_waits_for_processes_that_offer_a_monitor() -> None:
    with terminal(80, "top", "--interval", "0.1") as shown:
        shown.wait_for("no process of this user offers a monitor")
        with pools(XOSCAR_IDLE_TIMEOUT="5") as hosted:
            shown.wait_for("1 process,", rf"^ *{hosted.pid} ")
        shown.wait_for("no process of this user offers a monitor")
        os.kill(shown.process.pid, signal.SIGTERM)
        assert shown.process.wait(BOUND) == 128 + signal.SIGTERM
        assert "\x1b[?25h" in shown.output


def test_a_process_that_ends_is_said_to_have() -> None:
    with (
        processes.started(sys.executable, "-c", "input()") as process,
        terminal(80, "top", "--interval", "0.1", f"{process.pid}") as shown,
    ):
        shown.wait_for(rf"^{process.pid}: no monitor; seen from outside: 0 established")
        process.communicate("\n")
        shown.wait_for(rf"^ *{process.pid}  -  +gone ", rf"^there is no process {process.pid}")


def test_into_a_pipe() -> None:
    command = (sys.executable, "-c", COMMAND, "top", "--interval", "0.1", f"{os.getpid()}")
    with processes.started(*command, env=os.environ) as process:
        pages = 0
        while pages < 2:
            line = processes.line(process)
            assert "\x1b" not in line
            assert len(line) <= 80
            pages += "1 process " in line
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=BOUND)
        assert process.returncode == 0


def test_a_terminal_that_can_do_nothing() -> None:
    prelude = "import os; os.environ['TERM'] = 'dumb'; "
    with terminal(80, "top", "--interval", "0.1", f"{os.getpid()}", prelude=prelude) as shown:
        eventually(lambda: shown.output.count("1 process ") > 2)
        assert shown.press(b"\x03") == 0
    assert "\x1b" not in shown.output


@pytest.mark.parametrize(
    "command",
    [
        ["top", "--interval", "0.1"],
        ["stats", "--watch", "0.1"],
        ["stats", "--watch", "0.1", "--json"],
        ["stats", "--watch", "0.1", "--by-peer"],
    ],
)
def test_into_a_pipe_that_nobody_reads_any_more(command: list[str]) -> None:
    whole = (sys.executable, "-c", COMMAND, *command, f"{os.getpid()}")
    with processes.started(*whole, env=os.environ, stderr=subprocess.PIPE) as process:
        processes.line(process)
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.wait(BOUND) == 141
        assert process.stderr.read() == ""


def test_what_the_encoding_does_not_have() -> None:
    arguments = ("--sort", "open", f"{os.getpid()}")
    done = run("top", "--once", *arguments, PYTHONIOENCODING="latin-1")
    assert "OPEN?" in done.stdout


def test_pools_by_any_of_their_names() -> None:
    """Stock pools, too; a main pool asked by a name that is not its own forwards to itself."""
    with pools(1, 2) as hosted:
        for address in hosted.addresses:
            done = run("top", "--once", address.replace("127.0.0.1", "localhost"))
            assert done.returncode == 0, done.stderr
            assert done.stdout.count("xoscar-idle is not active there") == 3
            assert all(each in done.stdout for each in hosted.addresses)


def test_stats(runtime: Path) -> None:
    async def call() -> None:
        actor = await worker(hosted.addresses[1])
        assert await actor.visit(other.addresses, 1) == [1]

    with pools() as other, pools(1, 1, XOSCAR_IDLE_TIMEOUT="60") as hosted:
        asyncio.run(call())
        done = run("stats")
        assert done.returncode == 0
        assert done.stdout.count("idle_timeout=60.0 (environment)") == 2
        told = json.loads(run("stats", "--json", hosted.addresses[0]).stdout)
        assert [each["address"] for each in told] == hosted.addresses
        _, sub = told
        (connection,) = [c for c in sub["connections"] if c["route"] == other.addresses[0]]
        assert (connection["state"], connection["references"]) == ("open", 0)
        assert connection["calls"] >= 1
        statistics = sub["statistics"]
        assert statistics["open"] == statistics["opened"] - sum(statistics["closed"].values())
        both = f"{sub['pid']}", f"{other.pid}"
        told = json.loads(run("stats", "--by-peer", "--json", *both).stdout)
        (peer,) = [each for each in told["to"] if each["address"] == other.addresses[0]]
        assert (peer["processes"], peer["open"], peer["idle"]) == (1, 1, 1)
        assert peer["calls"] == connection["calls"]
        (client,) = [each for each in told["from"] if each["host"] == "127.0.0.1"]
        assert (client["pid"], client["index"], client["actors"]) == (sub["pid"], 1, ["worker"])
        assert (client["pools"], client["open"], client["active"]) == (1, 1, None)
        table = run("stats", "--by-peer", *both).stdout
        assert re.search(rf"^{other.addresses[0]} +1 +1 +0 +1 ", table, re.MULTILINE)
        name = rf"{sub['pid']} #1: worker"
        assert re.search(rf"^127.0.0.1 \({name}\) +1 +1 +- +- ", table, re.MULTILINE), table


def test_stats_again_and_again() -> None:
    command = (sys.executable, "-c", COMMAND, "stats", "--watch", "0.1", f"{os.getpid()}", "--json")
    with processes.started(*command, env=os.environ) as process:
        for _ in range(3):
            (told,) = json.loads(processes.line(process))
            assert (told["pid"], told["status"]) == (os.getpid(), "unmonitored")
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=BOUND)
        assert process.returncode == 0


def test_stats_of_nobody_again_and_again() -> None:
    """It is said once, and looked for all the same."""
    command = (sys.executable, "-c", COMMAND, "stats", "--watch", "0.1", "--json")
    with processes.started(*command, env=os.environ, stderr=subprocess.PIPE) as process:
        for _ in range(3):
            assert processes.line(process) == "[]"
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=BOUND)
        assert errors.count("no process of this user offers a monitor") == 1


@pytest.mark.parametrize("command", [["top", "--once"], ["stats"]])
def test_the_command_is_not_active_itself(runtime: Path, command: list[str]) -> None:
    """It says nothing of its own settings, and offers no monitor."""
    with pools(1, 0, XOSCAR_IDLE_TIMEOUT="60") as hosted:
        done = run(
            *command,
            hosted.addresses[0],
            XOSCAR_IDLE_TIMEOUT="bad",
            XOSCAR_CALL_TIMEOUT="bad, too",
            XOSCAR_IDLE_LOG="debug",
            XOSCAR_IDLE_MONITOR="1",
        )
    assert (done.returncode, done.stderr) == (0, "")
    assert hosted.addresses[0] in done.stdout


def test_a_process_that_does_not_answer_is_shown_from_outside() -> None:
    with pools(XOSCAR_IDLE_TIMEOUT="60") as hosted:
        os.kill(hosted.pid, signal.SIGSTOP)
        try:
            done = run("stats", f"{hosted.pid}")
        finally:
            os.kill(hosted.pid, signal.SIGCONT)
        assert done.returncode == 3
        assert f"process {hosted.pid} did not answer in 2 s" in done.stdout
        assert "  state        blocked\n" in done.stdout


@contextlib.contextmanager
def listener(answers: bool) -> Iterator[str]:
    """Somebody who is no pool: who says something else and hangs up, or says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        accepted = []

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = sock.accept()
                    accepted.append(connection)
                    if answers:
                        connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                        connection.close()

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"127.0.0.1:{sock.getsockname()[1]}"
        sock.shutdown(socket.SHUT_RDWR)
        thread.join()
        for connection in accepted:
            connection.close()


def gone() -> str:
    with processes.started("true") as process:
        process.wait()
    return str(process.pid)


@contextlib.contextmanager
def missing() -> Iterator[dict[str, str]]:
    """Those of which there is nothing to see, and what is said of each."""
    with listener(answers=True) as server, refusing() as refused:
        yield {
            gone(): "there is no process ",
            "2147483647": "there is no process ",
            refused: f"no pool answers at {refused}: ",
            "nowhere.invalid:9": "no pool answers at nowhere.invalid:9: ",
            "unixsocket:///x": "no pool answers at unixsocket:///x: ",
            server: f"no pool answers at {server}: ",
        }


@pytest.mark.parametrize("command", [["top", "--once"], ["stats"]])
def test_what_cannot_be_looked_at_is_told(command: list[str]) -> None:
    with missing() as expected:
        done = run(*command, *expected, f"{os.getpid()}")
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout.count("gone") >= len(expected)
    assert f"{os.getpid()}" in done.stdout
    for says in expected.values():
        assert says in done.stdout


def test_what_cannot_be_looked_at_in_json() -> None:
    with missing() as expected:
        done = run("stats", "--json", *expected)
    told = json.loads(done.stdout)
    assert (done.returncode, done.stderr) == (1, "")
    assert [each["status"] for each in told] == ["gone"] * len(expected)
    assert [f"{each['pid'] or each['address']}" for each in told] == list(expected)
    for each, says in zip(told, expected.values(), strict=True):
        assert each["note"].startswith(says)


@pytest.mark.parametrize("command", [["top"], ["stats", "--by-peer"]])
def test_where_there_is_nothing_to_see_it_ends(command: list[str]) -> None:
    with missing() as expected:
        done = run(*command, *expected)
    assert done.returncode == 1
    assert done.stdout.strip() in ("", "no connections")
    for line, says in zip(done.stderr.splitlines(), expected.values(), strict=True):
        assert line.startswith(f"xoscar-idle: {says}")


def test_one_that_is_blocked_counts_more_than_one_that_is_gone() -> None:
    with listener(answers=False) as mute:
        done = run("top", "--once", mute, "2147483647")
    assert done.returncode == 3
    assert re.search(r"^ *2147483647  -  +gone ", done.stdout, re.MULTILINE)
    assert re.search(rf"  {mute}.*  blocked ", done.stdout)
    assert "did not answer in 5 s" in done.stdout


def test_top_begins_if_one_can_be_seen() -> None:
    with terminal(100, "top", f"{os.getpid()}", "2147483647") as shown:
        shown.wait_for(r"^ *2147483647  -  +gone ", rf"^ *{os.getpid()} .* unmonitored ")
        shown.wait_for("^there is no process 2147483647$", r"2 processes \(1 unmon.*, 1 gone\)")
        assert shown.press(b"q") == 0


def test_a_process_of_a_pool_that_does_not_answer() -> None:
    with pools(1, 1, XOSCAR_IDLE_TIMEOUT="60") as hosted:
        pids = [
            each["pid"] for each in json.loads(run("stats", "--json", *hosted.addresses[:1]).stdout)
        ]
        os.kill(pids[1], signal.SIGSTOP)
        try:
            done = run("top", "--once", hosted.addresses[0])
        finally:
            os.kill(pids[1], signal.SIGCONT)
    assert done.returncode == 3
    shown = hosted.addresses[0][:12]  # clipped where the limit of descriptors is a long number
    assert re.search(rf"^ *{pids[0]}  {re.escape(shown)}", done.stdout, re.MULTILINE)
    assert re.search(rf"^ *{pids[1]}  .*  blocked ", done.stdout, re.MULTILINE)
    assert "did not answer in 5 s" in done.stdout


def test_what_the_kernel_shows() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as sock,
        socket.create_connection(sock.getsockname()) as connection,
    ):
        done = run("top", "--once", f"{os.getpid()}")
        peer = f"127.0.0.1:{connection.getpeername()[1]}"
    assert done.returncode == 0
    (line,) = [each for each in done.stdout.splitlines() if peer in each]
    assert re.search(rf"{peer}  established  .*-  \d+$", line)


@pytest.mark.parametrize("command", [["top", "--once"], ["stats"]])
def test_nobody_offers_a_monitor(command: list[str]) -> None:
    done = run(*command)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "no process of this user offers a monitor" in line


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["top", "x"], "'x' is neither a process id nor an address"),
        (["stats", "1:0"], "'1:0' is neither"),
        (["stats", "1:٣٠"], "is neither"),
        (["stats", "a b:1"], "'a b:1' is neither"),
        (["stats", "٣٠"], "'٣٠' is no process id: those are 1 to 2147483647"),
        (["stats", "0"], "'0' is no process id"),
        (["stats", "2147483648"], "'2147483648' is no process id"),
        (["stats", "9" * 5000], "999...999999' is no process id"),
        (["stats", "http://10.0.0.5:9997"], "give HOST:PORT, not that of an HTTP server"),
        (["stats", "dummy://0"], "is no address of a pool that can be asked"),
        (["top", "--interval", "0"], "0.0 is not in the range"),
        (["top", "--interval", "nan"], "nan is not a number of seconds"),
        (["top", "--interval", "inf"], "inf is not a number of seconds"),
        (["top", "--sort", "calls", "--view", "accepted"], "'calls' is none of its columns: PID, "),
        (["top", "--view", "x"], "'x' is not one of 'processes', 'connections', 'peers', 'accept"),
        (["stats", "--watch", "nan"], "nan is not a number of seconds"),
        (["stats", "--watch", "0"], "0.0 is not in the range"),
    ],
)
def test_bad_usage(arguments: list[str], says: str) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert "Error: " in done.stderr
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr) < 400


@pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("setpriv") is None, reason="root gives up a capability"
)
def test_root_without_the_capability_to_look() -> None:
    """As in most containers: root, but not over processes of others."""
    without = ("setpriv", "--bounding-set", "-sys_ptrace", "--inh-caps", "-sys_ptrace")
    with processes.started("sleep", "600", user=65534) as other:
        command = (*without, sys.executable, "-c", COMMAND, "stats", f"{other.pid}")
        done = processes.run(*command, status=1, env=os.environ)
    assert re.search(rf" process {other.pid} of \S+ cannot be read: the cap", done.stdout)
    assert "CAP_SYS_PTRACE" in done.stdout


def test_a_foreign_users_process() -> None:
    """Asked as nobody, if this is root; imported before, since nobody may not read it."""
    foreign, prelude = "1", ""
    if os.geteuid() == 0:
        foreign = f"{os.getpid()}"
        prelude = (
            "import os, psutil, xoscar_idle.commands.cli, xoscar_idle.commands.stats; "
            "import xoscar_idle.startup, "
            "concurrent.futures.thread, encodings.idna, pwd; "
            "os.setgroups([]); os.setgid(65534); os.setuid(65534); "
        )
    done = run("stats", foreign, prelude=prelude)
    assert done.returncode == 1
    assert re.search(rf" process {foreign} belongs to \S+: run this as that", done.stdout)
    assert "  state        foreign\n" in done.stdout


@pytest.mark.parametrize(
    "command",
    [[], ["top"], ["stats"], ["doctor"], ["run"], ["demo"], ["pools"], ["crashes"]],
)
def test_help_and_light_start(command: list[str]) -> None:
    program = (
        "import sys, atexit; from xoscar_idle.commands.cli import main\n"
        "atexit.register(lambda: print(*sorted(sys.modules)))\n"
        f"main({[*command, '--help']!r})"
    )
    *text, modules = processes.run(sys.executable, "-c", program).stdout.splitlines()
    assert "Usage:" in text[0]
    assert max(map(len, text)) <= 80
    assert not {"xoscar", "psutil", "rich", "asyncio"} & set(modules.split())


def test_the_help_tells_of_each_column() -> None:
    help_ = main.commands["top"].help or ""
    told = "".join(re.findall(r"Columns of .*?\n(.*?)\n\n", help_, re.DOTALL))
    columns = {each for name in VIEWS for each in headers(name)}
    assert columns - {"PID", "PROCESS", "CONNECTION TO", "PEER"} <= set(
        re.findall(r"[A-Z]+(?:/s)?", told)
    )


def test_the_command_knows_each_view() -> None:
    (option,) = [each for each in main.commands["top"].params if each.name == "view"]
    assert isinstance(option.type, click.Choice)
    assert list(option.type.choices) == list(VIEWS)
