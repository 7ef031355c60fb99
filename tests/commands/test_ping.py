"""``xoscar-idle ping``: pools that answer, those that do not, and what is none."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from xoscar_idle.commands.ping import Answer, explained

from ..support import processes
from ..support.endpoints import refusing
from ..support.hosting import pools
from ..support.waiting import BOUND

pytestmark = pytest.mark.integration

COMMAND = "from xoscar_idle.commands.cli import main; main(prog_name='xoscar-idle')"


def ping(
    *arguments: str, prelude: str = "", input: str = "", **variables: str
) -> subprocess.CompletedProcess[str]:
    command = (sys.executable, "-c", f"{prelude}\n{COMMAND}", "ping", *arguments)
    done = processes.run(*command, status=None, input=input, env=os.environ | variables)
    assert "Traceback" not in done.stderr, done.stderr
    return done


@contextlib.contextmanager
def listening(says: bytes | None) -> Iterator[str]:
    """Somebody who is no pool, and says that and hangs up; None: who says nothing."""
    held: list[socket.socket] = []

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                held.append(server.accept()[0])
                if says is not None:
                    held[-1].recv(1)
                    held[-1].sendall(says)
                    held[-1].close()

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)
        thread.join(BOUND)
    for each in held:
        each.close()


def test_pools_that_answer() -> None:
    """Each process of a pool for itself, and where the command would activate by environment."""
    with pools(1, 2) as hosted:
        one = ping(hosted.addresses[0], XOSCAR_IDLE_TIMEOUT="bad", XOSCAR_IDLE_LOG="debug")
        both = ping("--count", "2", *hosted.addresses[1:], hosted.addresses[1])
        named = ping("@-", input="\n".join(hosted.addresses))
        quiet = ping("--quiet", *hosted.addresses)
        told = json.loads(ping("--json", *hosted.addresses).stdout)
    for done in (one, both, named, quiet):
        assert (done.returncode, done.stderr) == (0, "")
    assert re.fullmatch(rf"{hosted.addresses[0]} answered in \d+\.\d ms\n", one.stdout)
    assert [both.stdout.count(each) for each in hosted.addresses] == [0, 2, 2]
    assert [named.stdout.count(each) for each in hosted.addresses] == [1, 1, 1]
    assert quiet.stdout == ""
    assert [each["address"] for each in told] == hosted.addresses
    for each in told:
        assert (each["answered"], each["reason"]) == (True, None)
        assert 0 < each["seconds"] < BOUND


def test_those_that_do_not_answer() -> None:
    with (
        pools() as hosted,
        refusing() as refused,
        listening(None) as mute,
        listening(b"HTTP/1.1 400 Bad Request\r\n\r\n") as other,
    ):
        asked = (refused, mute, *hosted.addresses, other, "nowhere.invalid:9", "unixsocket:///9")
        done = ping("--timeout", "2", *asked)
        quiet = ping("--quiet", "--timeout", "2", refused)
        told = json.loads(ping("--json", "--timeout", "2", *asked).stdout)
    assert (done.returncode, quiet.returncode) == (1, 1)
    assert done.stdout.startswith(f"{hosted.addresses[0]} answered in ")
    says = {
        refused: "refused it: nobody listens there",
        mute: "timed out: it gave no sign of life in 2 s",
        other: "is no pool: ",
        "nowhere.invalid:9": "cannot be reached: ",
        "unixsocket:///9": "cannot be reached: ",
    }
    lines = done.stderr.splitlines()
    assert len(lines) == len(says)
    for address, text in says.items():
        assert any(each.startswith(f"xoscar-idle: {address} {text}") for each in lines), lines
    assert quiet.stderr == f"xoscar-idle: {refused} {says[refused]}\n"
    assert quiet.stdout == ""
    reasons = ["refused", "timed_out", None, "no_pool", "unreachable", "unreachable"]
    assert [each["reason"] for each in told] == reasons
    assert [each["address"] for each in told] == [*asked]
    assert [each["answered"] for each in told] == [each is None for each in reasons]


def test_a_pool_that_is_stopped() -> None:
    with pools() as hosted:
        os.kill(hosted.pid, signal.SIGSTOP)
        try:
            done = ping("--timeout", "0.5", "--count", "2", *hosted.addresses)
        finally:
            os.kill(hosted.pid, signal.SIGCONT)
    assert done.returncode == 1
    assert done.stderr.count("timed out: it gave no sign of life in 0.5 s\n") == 2


NEVER = """
import socket, threading
socket.getaddrinfo = lambda *_, **__: threading.Event().wait()
"""


def test_a_lookup_that_does_not_end_is_not_waited_for() -> None:
    """Its thread goes on; the bound of the test is what would end it."""
    done = ping("--timeout", "0.5", "somewhere:9", prelude=NEVER)
    assert done.returncode == 1
    assert done.stderr == "xoscar-idle: somewhere:9 timed out: it gave no sign of life in 0.5 s\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_at_once(number: signal.Signals) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        command = (sys.executable, "-c", COMMAND, "ping", "--timeout", "1000", address)
        with processes.started(*command, stderr=subprocess.PIPE) as process:
            connection, _ = server.accept()
            process.send_signal(number)
            _, errors = process.communicate(timeout=BOUND)
            connection.close()
    assert (process.returncode, errors) == (-number, "")


def test_more_than_there_are_descriptors_for() -> None:
    prelude = "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (80, 80))"
    with listening(b"x") as other, refusing() as refused:
        port = int(refused.rpartition(":")[2])
        done = ping("--json", f"127.0.0.[1-200]:{port}", other, prelude=prelude)
    told = json.loads(done.stdout)
    assert len(told) == 201
    assert {each["reason"] for each in told[:-1]} == {"refused"}
    assert told[-1]["reason"] == "no_pool"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "Missing argument"),
        (["4711"], "4711 is a process id: give the HOST:PORT of its pool"),
        (["x"], "'x' is neither a process id nor an address"),
        (["http://a:1"], "give HOST:PORT, not that of an HTTP server"),
        (["a[3-1]:1"], "3-1 counts down"),
        (["a*:1"], "'a*:1' picks from a file, and none is given"),
        (["@/nowhere"], "'/nowhere' cannot be read"),
        (["unixsocket:///x"], "address must be unixsocket:///number"),
        (["ucx://x"], "address must end with :port"),
        (["--timeout", "0", "a:1"], "0.0 is not in the range"),
        (["--timeout", "nan", "a:1"], "nan is not a number of seconds"),
        (["--count", "0", "a:1"], "0 is not in the range"),
    ],
)
def test_asked_wrongly(arguments: list[str], says: str) -> None:
    done = ping(*arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert says in done.stderr


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ConnectionRefusedError(errno.ECONNREFUSED, "x"), "refused"),
        (ConnectionError("cannot connect to a: m: [Errno 111] x, [Errno 111] y"), "refused"),
        (ConnectionError("cannot connect to a: [Errno 111] x, [Errno 113] y"), "unreachable"),
        (TimeoutError(errno.ETIMEDOUT, "x"), "timed_out"),
        (TimeoutError("no sign"), "timed_out"),
        (ConnectionError("cannot connect to a"), "unreachable"),
        (ConnectionResetError(errno.ECONNRESET, "x"), "no_pool"),
    ],
)
def test_reasons(error: OSError, reason: str) -> None:
    found, text = explained(error, 5)
    assert found == reason
    assert text


def test_an_answer_has_what_json_has() -> None:
    assert json.dumps(vars(Answer("a:1", True, 0.1)))


def test_help_is_light() -> None:
    program = (
        "import sys, atexit; from xoscar_idle.commands.cli import main\n"
        "atexit.register(lambda: print(*sorted(sys.modules)))\n"
        "main(['ping', '--help'])"
    )
    *text, modules = processes.run(sys.executable, "-c", program).stdout.splitlines()
    assert max(map(len, text)) <= 80
    assert "Kubernetes" in " ".join(text)
    assert "a long synchronous method" in " ".join(" ".join(text).split())
    assert not {"xoscar", "psutil", "asyncio"} & set(modules.split())
