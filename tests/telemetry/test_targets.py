"""Looking at what an operator names: real processes, well and not well, and those that are not."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
from click.testing import CliRunner

from xoscar_idle import side_channel
from xoscar_idle.commands.cli import main
from xoscar_idle.connection import exchange
from xoscar_idle.telemetry import kernel, pool_query, snapshot, targets
from xoscar_idle.telemetry.snapshot import (
    ACTIVE,
    BLOCKED,
    FOREIGN,
    GONE,
    INACTIVE,
    UNMONITORED,
    Snapshot,
)
from xoscar_idle.telemetry.targets import exit_status, look, look_at, named

from ..support import processes, programs
from ..support.endpoints import refusing
from ..support.environment import environment
from ..support.hosting import pools
from ..support.namespaces import namespaces, unavailable
from ..support.patients import blocked, stopped
from ..support.waiting import BOUND, eventually

pytestmark = pytest.mark.integration


@pytest.fixture(autouse=True)
def sockets(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where monitors are, for these tests alone."""
    with tempfile.TemporaryDirectory() as directory:
        monkeypatch.setenv("XOSCAR_IDLE_MONITOR", directory)
        yield Path(directory)


@contextlib.contextmanager
def program(text: str = "", **variables: str) -> Iterator[subprocess.Popen[str]]:
    """A process that has run ``text``."""
    text = f"import sys\n{text}\nprint('ready', flush=True); sys.stdin.read()"
    env = environment(XOSCAR_IDLE_MONITOR=os.environ["XOSCAR_IDLE_MONITOR"], **variables)
    with processes.started(sys.executable, "-c", text, env=env) as process:
        assert processes.line(process) == "ready"
        yield process


def gone() -> int:
    with processes.started("true") as process:
        process.wait()
    return process.pid


def seen(*targets: int | str) -> list[Snapshot]:
    return asyncio.run(look(targets))


# -- processes -------------------------------------------------------------------------------------


def test_those_that_answer_and_those_that_do_not() -> None:
    offering = "from xoscar_idle.telemetry import snapshot; snapshot.offer()"
    with (
        program("import xoscar", XOSCAR_IDLE_TIMEOUT="9") as active,
        program(offering) as inactive,
        program() as unmonitored,
    ):
        ended = gone()
        first, second, third, fourth = seen(active.pid, inactive.pid, unmonitored.pid, ended)
        assert (first.pid, first.status) == (active.pid, ACTIVE)
        assert first.statistics is not None
        assert (second.pid, second.status) == (inactive.pid, INACTIVE)
        assert second.note.startswith("xoscar-idle is not active in it")
        assert (third.pid, third.status) == (unmonitored.pid, UNMONITORED)
        assert third.note == "no monitor; seen from outside: 0 established TCP connections"
        assert "sys.stdin.read()" in third.command
        assert fourth == Snapshot(ended, status=GONE, note=f"there is no process {ended}")
        assert [each.pid for each in seen()] == sorted([active.pid, inactive.pid])


def test_one_that_is_stopped() -> None:
    with program("import xoscar", XOSCAR_IDLE_TIMEOUT="9") as active, program() as unmonitored:
        with stopped(active.pid), stopped(unmonitored.pid):
            first, second = seen(active.pid, unmonitored.pid)
            (offered,) = seen()
        assert [each.status for each in (first, second, offered)] == [BLOCKED] * 3
        assert first.note == (
            f"process {active.pid} did not answer in 2 s; it is stopped: SIGCONT lets it go on; "
            "seen from outside: 0 established TCP connections"
        )
        assert second.note.startswith("no monitor; it is stopped: SIGCONT lets it go on; seen from")
        assert first.descriptors
        assert exit_status([first, second]) == 3


def test_one_that_has_ended_and_is_not_waited_for() -> None:
    with program() as process:
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        (one,) = seen(process.pid)
    assert (one.status, one.pid) == (GONE, process.pid)
    assert "it has ended, and its parent has not noticed" in one.note


FOREIGN_LOOK = """
import asyncio, os, sys
from xoscar_idle.telemetry.targets import look
import concurrent.futures.thread, encodings.idna, pwd
if os.geteuid() == 0:
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
(one,) = asyncio.run(look([int(sys.argv[1])]))
print(one.pid, one.status, one.note)
print(one.command)
"""


def test_a_foreign_one() -> None:
    """Asked as nobody, if this is root."""
    foreign = os.getpid() if os.geteuid() == 0 else 1
    done = processes.run(sys.executable, "-c", FOREIGN_LOOK, f"{foreign}")
    told = f"{foreign} {FOREIGN} process {foreign} belongs to "
    assert done.stdout.startswith(told)
    assert "run this as that user, or as root" in done.stdout
    command = " ".join(psutil.Process(foreign).cmdline())
    assert command
    assert done.stdout.endswith(f"\n{command}\n"), "that is told of all"


BOTH_SIDES = """
import socket, sys, threading
host, other = sys.argv[1:]
family = socket.AF_INET6 if ':' in host else socket.AF_INET
server = socket.create_server((host, 0), family=family, dualstack_ipv6=host == '::')
opened = socket.create_connection(other.rsplit(':', 1)) if other else None
held = []
threading.Thread(target=lambda: held.append(server.accept()), daemon=True).start()
print(server.getsockname()[1], flush=True)
sys.stdin.read()
"""
"""Listens on a host, of which it accepts one connection, and is connected to somebody else."""


@pytest.mark.parametrize(
    ("host", "asked"), [("127.0.0.1", "127.0.0.1"), ("::1", "::1"), ("::", "127.0.0.1")]
)
def test_the_kernel_tells_who_has_opened_a_connection(host: str, asked: str) -> None:
    try:
        socket.create_server((host, 0), family=socket.getaddrinfo(host, 0)[0][0]).close()
    except OSError as error:
        pytest.skip(f"this machine has no {host}: {error}")
    with socket.create_server(("127.0.0.1", 0)) as ours:
        other = text_of(ours.getsockname())
        with processes.started(sys.executable, "-c", BOTH_SIDES, host, other) as process:
            own = asked, int(processes.line(process))
            with ours.accept()[0] as accepted, socket.create_connection(own) as connection:
                (one,) = eventually(lambda: [e for e in seen(process.pid) if e.accepted])
                local, peer = text_of(accepted.getpeername()), text_of(connection.getsockname())
    assert (one.process, one.status) == (f"here {process.pid}", UNMONITORED)
    known = {"state": "established", "transport": "socket"}
    for (told,), ends in (
        (one.connections, {"route": other, "local": local}),
        (one.accepted, {"peer": peer, "address": text_of(own)}),
    ):
        assert told.pop("descriptor") > 2
        assert told == known | ends
    assert one.note == (
        "no monitor; seen from outside: 2 established TCP connections, 1 of them accepted"
    )


def text_of(name: Sequence[Any]) -> str:
    host, port = name[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def test_one_in_another_network_namespace() -> None:
    """The kernel tells of the own one alone: nothing is said of how many there are."""
    if reason := unavailable():
        programs.missing(reason)
    with contextlib.ExitStack() as stack:
        try:
            where = stack.enter_context(namespaces("own"))
        except RuntimeError as error:
            programs.missing(f"no namespaces can be made: {error}")
        process = where.run("own", [sys.executable, "-c", BOTH_SIDES, "127.0.0.1", ""])
        processes.line(process)
        (one,) = seen(process.pid)
    assert (one.connections, one.accepted) == ([], [])
    assert one.note == (
        "no monitor; seen from outside: its TCP connections are in another network namespace, "
        "where nobody has looked"
    )


def test_nobody_offers_a_monitor(monkeypatch: pytest.MonkeyPatch) -> None:
    assert seen() == []
    ended = gone()
    monkeypatch.setattr(side_channel, "offered", lambda: [ended])
    assert seen() == [], "it has ended just now"
    assert [each.status for each in seen(ended)] == [GONE], "it is named"


def test_one_of_another_container_that_does_not_answer(
    sockets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its number is none here, but somebody is there."""
    monkeypatch.setattr(side_channel, "TIMEOUT", 0.1)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(f"{sockets}/2147483647.sock")
        sock.listen()
        (one,) = seen()
    assert (one.pid, one.status) == (2147483647, BLOCKED)
    assert one.note == "process 2147483647 did not answer in 0.1 s, and is none of this container"


@pytest.mark.parametrize("told", ["no JSON", "7", '{"command": "x"}', "[]"])
def test_one_that_tells_something_else(monkeypatch: pytest.MonkeyPatch, told: str) -> None:
    monkeypatch.setattr(side_channel, "_answers", {snapshot.QUESTION: lambda _: told})
    side_channel.start()
    try:
        (one,) = seen(os.getpid())
    finally:
        side_channel.stop()
    assert (one.pid, one.status) == (os.getpid(), UNMONITORED)
    assert "it tells of itself in another way than expected" in one.note


def test_one_of_a_version_before_does_not_tell_its_status(monkeypatch: pytest.MonkeyPatch) -> None:
    told = '{"pid": 7, "note": "xoscar-idle is not active in it: it is not asked for"}'
    monkeypatch.setattr(side_channel, "_answers", {snapshot.QUESTION: lambda _: told})
    side_channel.start()
    try:
        (one,) = seen(os.getpid())
    finally:
        side_channel.stop()
    assert (one.pid, one.status) == (7, INACTIVE)


def test_many_that_do_not_answer_take_as_long_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """All are being asked at the same time, in threads of which there are enough."""
    together = threading.Barrier(targets.PROCESSES_AT_ONCE)

    def ask(pid: int) -> Snapshot:
        together.wait(BOUND)
        return Snapshot(pid)

    monkeypatch.setattr(snapshot, "ask", ask)
    pids = range(1, 2 * targets.PROCESSES_AT_ONCE + 1)
    assert [each.pid for each in seen(*pids)] == [*pids]


# -- pools -----------------------------------------------------------------------------------------


def test_the_same_process_by_several_names() -> None:
    with pools(1, 1, XOSCAR_IDLE_TIMEOUT="60") as hosted:
        main_pool, sub_pool = hosted.addresses
        found = asyncio.run(look_at([sub_pool, main_pool, sub_pool]))
    assert [each.address for _, each in found] == [main_pool, sub_pool]
    assert {target for target, _ in found} == {sub_pool}, "the first that names it"


def test_each_is_there_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the name of its process, and where it is not told by what else is."""
    told = {
        "a:1": [Snapshot(1, address="a:1", process="x"), Snapshot(2, address="a:2")],
        "a:2": [Snapshot(1, address="a:1", process="y"), Snapshot(2, address="a:2", command="z")],
        "a:3": [Snapshot(3, address="a:3", process="x"), Snapshot(1, address="a:1")],
    }

    async def ask(address: str, _: asyncio.Semaphore) -> list[Snapshot]:
        return told[address]

    monkeypatch.setattr(pool_query, "ask", ask)
    assert asyncio.run(look_at(["a:1", "a:2", "a:3", "a:1"])) == [
        ("a:1", told["a:1"][0]),
        ("a:1", told["a:1"][1]),
        ("a:2", told["a:2"][0]),
        ("a:3", told["a:3"][1]),
    ]


def test_addresses_at_which_there_is_nobody() -> None:
    with refusing() as refused:
        nobody, nowhere = seen(refused, "nowhere.invalid:9")
    assert (nobody.pid, nobody.address, nobody.status) == (None, refused, GONE)
    assert nobody.note.startswith(f"no pool answers at {refused}: ")
    assert nowhere.status == GONE
    assert exit_status([nobody]) == 1


def test_a_pool_in_which_it_is_not_active() -> None:
    with pools() as hosted:
        (one,) = seen(*hosted.addresses)
    assert (one.pid, one.status, one.note) == (
        hosted.pid,
        INACTIVE,
        "xoscar-idle is not active there",
    )


def test_so_many_are_asked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    most, asked, full = pool_query.AT_ONCE, 0, asyncio.Event()

    async def ask(router: Any, address: str, *_: object) -> Any:
        nonlocal asked
        asked += 1
        assert asked <= most
        if asked == most:
            full.set()
        await asyncio.wait_for(full.wait(), BOUND)
        await asyncio.sleep(0)
        asked -= 1
        raise ConnectionError("nobody")

    monkeypatch.setattr(exchange, "ask", ask)
    assert [each.status for each in seen(*(f"a:{port}" for port in range(1, 301)))] == [GONE] * 300


def test_a_blocked_sub_pool_tells_over_its_local_socket(tmp_path: Path) -> None:
    with pools(1, 1, XOSCAR_IDLE_TIMEOUT="60") as hosted:
        main_pool, sub_pool = hosted.addresses
        with blocked(sub_pool, tmp_path):
            first, second = seen(main_pool)
            named, beside = seen(sub_pool)
    for each in (first, beside):
        assert (each.address, each.status) == (main_pool, ACTIVE)
    for each in (second, named):
        assert (each.address, each.status) == (sub_pool, BLOCKED)
        assert each.pid not in (None, hosted.pid)
        assert each.statistics is not None
        assert each.note == (
            "did not answer in 5 s: its event loop is blocked; it told this over the local socket"
        )
    assert exit_status([first, second]) == 3


def test_a_stopped_main_pool_is_seen_from_outside() -> None:
    with pools(XOSCAR_IDLE_TIMEOUT="60") as hosted, stopped(hosted.pid):
        (one,) = seen(*hosted.addresses)
    assert (one.pid, one.address, one.status) == (hosted.pid, *hosted.addresses, BLOCKED)
    assert one.note.startswith(
        "did not answer in 5 s, nor over its local socket; it is stopped: SIGCONT lets it go on"
    )


def test_a_blocked_sub_pool_without_a_monitor(tmp_path: Path) -> None:
    with (
        pools(1, 1, XOSCAR_IDLE_TIMEOUT="60", XOSCAR_IDLE_MONITOR="0") as hosted,
        blocked(hosted.addresses[1], tmp_path),
    ):
        _, one = seen(hosted.addresses[0])
    assert (one.address, one.status, one.statistics) == (hosted.addresses[1], BLOCKED, None)
    assert one.note.startswith("did not answer in 5 s; no monitor; seen from outside")


def test_what_fails_while_it_is_looked_for_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is told as it is known without."""
    silent = pool_query._silent("a:1")

    def fail(_: object) -> dict[str, int]:
        raise RuntimeError("all at once")

    monkeypatch.setattr(kernel, "listeners", fail)
    assert asyncio.run(pool_query._told_here([silent])) == [silent]
    go_on = threading.Event()
    monkeypatch.setattr(kernel, "listeners", lambda _: go_on.wait(BOUND) and {})
    monkeypatch.setattr(pool_query, "HERE", 0.1)
    try:
        assert asyncio.run(pool_query._told_here([silent])) == [silent], "it takes too long"
    finally:
        go_on.set()


def test_those_beside_a_blocked_one_are_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it has told of them over its local socket."""
    beside: list[dict[str, Any]] = [{"address": "a:1"}, {"address": "a:2"}, {"other": 7}]

    async def told(_: str) -> list[str]:
        raise asyncio.TimeoutError

    async def told_here(seen: list[Snapshot]) -> list[Snapshot]:
        told = {"a:1": Snapshot(1, address="a:1", status=BLOCKED, pools=beside)}
        return [told.get(f"{each.address}", each) for each in seen]

    async def ask(address: str) -> Snapshot:
        return Snapshot(2, address=address)

    monkeypatch.setattr(pool_query, "_addresses", told)
    monkeypatch.setattr(pool_query, "_told_here", told_here)
    monkeypatch.setattr(pool_query, "_ask_process", ask)
    found = asyncio.run(pool_query.ask("a:1"))
    assert [(each.pid, each.address) for each in found] == [(1, "a:1"), (2, "a:2")]


REFUSED = f"[Errno {errno.ECONNREFUSED}] Connect call failed"


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (ConnectionRefusedError(errno.ECONNREFUSED, "Connect call failed ('a', 9)"), None),
        (ConnectionRefusedError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED)), None),
        (OSError(f"Multiple exceptions: {REFUSED} ('::1', 9, 0, 0), {REFUSED} ('a', 9)"), None),
        (ConnectionRefusedError(errno.ECONNREFUSED, "pool a:1 is down"), "pool a:1 is down"),
        (TimeoutError(errno.ETIMEDOUT, "Connect call failed ()"), "nothing answers at that host"),
        (OSError(errno.EHOSTUNREACH, "Connect call failed ()"), os.strerror(errno.EHOSTUNREACH)),
        (socket.gaierror(-2, "Name or service not known"), "Name or service not known"),
        (ConnectionError("it\nhung up"), "it hung up"),
        (asyncio.TimeoutError(), "TimeoutError"),
    ],
)
def test_why_nobody_is_there(error: BaseException, says: str | None) -> None:
    assert kernel.why(error) == (says or "nobody listens there")


# -- who listens -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "host", "asked"),
    [
        (socket.AF_INET, "127.0.0.1", "127.0.0.1"),
        (socket.AF_INET, "127.0.0.1", "localhost"),
        (socket.AF_INET, "0.0.0.0", "127.0.0.3"),
        (socket.AF_INET6, "::1", "[::1]"),
        (socket.AF_INET6, "::", "127.0.0.1"),
    ],
)
def test_who_listens(family: socket.AddressFamily, host: str, asked: str) -> None:
    try:
        server = socket.create_server((host, 0), family=family, dualstack_ipv6=host == "::")
    except OSError as error:
        pytest.skip(f"this machine has no {host}: {error}")
    with server:
        port = server.getsockname()[1]
        with processes.started("sleep", "600", pass_fds=(server.fileno(),)):
            assert kernel.listeners([f"{asked}:{port}"]) == {f"{asked}:{port}": os.getpid()}
        for other in ("198.51.100.7", "nowhere.invalid", "a..b"):
            assert kernel.listeners([f"{other}:{port}"]) == {}
    assert kernel.listeners([f"{asked}:{port}", "unixsocket:///7", "x", ""]) == {}


def test_who_listens_where_all_sockets_are_shown_to_root_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As on macOS: those that offer a monitor are asked for theirs."""

    def denied(_: str) -> None:
        raise PermissionError

    monkeypatch.setattr(psutil, "net_connections", denied)
    monkeypatch.setattr(side_channel, "offered", lambda: [gone(), os.getpid()])
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        assert kernel.listeners([address]) == {address: os.getpid()}


# -- names -----------------------------------------------------------------------------------------


def test_the_exit_status() -> None:
    def status(*told: str) -> int:
        return exit_status(Snapshot(1, status=each) for each in told)

    assert status() == status(ACTIVE, INACTIVE, UNMONITORED) == 0
    assert status(ACTIVE, GONE) == status(FOREIGN) == 1
    assert status(GONE, BLOCKED, ACTIVE) == 3


def test_what_is_named(tmp_path: Path) -> None:
    path = tmp_path / "hosts"
    path.write_text("a:1\n007\nhttp://a:1/?x\n")
    assert named(["7", "a[1-2]:1", "007", "a2:1"]) == [7, "a1:1", "a2:1"]
    assert named([f"@{path}", "7"], urls=True) == ["a:1", 7, "http://a:1/?x"]
    with pytest.raises(ValueError, match=rf"^{path}, line 3: 'http://a:1/\?x' is no address of a"):
        named([f"@{path}"])
    with pytest.raises(ValueError, match=r"^'x' is neither a process id nor an address"):
        named(["x"])


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["top", "a[3-1]:9"], "'a[3-1]:9' is no pattern: 3-1 counts down"),
        (["stats", "gpu*:9000"], "'gpu*:9000' picks from a file, and none is given"),
        (["doctor", "@/nowhere/hosts"], "'/nowhere/hosts' cannot be read: No such file"),
        (["pools", "@-"], "@- names nothing"),
        (["events", "http://a:1/?x", "b?:1"], "'b?:1' picks from a file"),
        (["crashes", "@"], "@ names no file"),
        (["apply", "pause", "a:1", "--main", "b[1-2]:1"], "'b[1-2]:1' names 2, and it takes one"),
    ],
)
def test_bad_usage(arguments: list[str], says: str) -> None:
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 2
    assert says in " ".join(done.output.replace("\n", " ").split())


def test_lines_of_the_standard_input_are_targets() -> None:
    with refusing() as first, refusing() as second:
        hosts = f"# all\n{first}\n{second}\n"
        command = (sys.executable, "-m", "xoscar_idle", "doctor", "--json")
        both = processes.run(*command, "@-", status=None, input=hosts)
        host, _, port = second.rpartition(":")
        one = processes.run(*command, "@-", f"{host[:-1]}?:{port}", status=None, input=hosts)
    assert both.stdout.count("no pool answers at") == 2
    assert one.stdout.count("no pool answers at") == 1
    assert second in one.stdout
