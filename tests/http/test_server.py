"""The life of the server, and those who mean it no good; the pools' own calls go on."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

import xoscar_idle
from xoscar_idle.http import server
from xoscar_idle.supervision.events import journal
from xoscar_idle.supervision.lineage import Lineage

from ..support import crashing, web
from ..support.crashing import victim
from ..support.environment import environment
from ..support.processes import line, started
from ..support.waiting import BOUND, bounded, eventually_here, eventually_told
from .conftest import Served

pytestmark = pytest.mark.integration


@pytest.fixture
def directory() -> Iterator[Path]:
    """One whose path is short enough for a socket in it."""
    with tempfile.TemporaryDirectory() as made:
        yield Path(made)


def threads() -> list[str]:
    return [each.name for each in threading.enumerate() if each.name == "xoscar-idle-http"]


# -- its life --------------------------------------------------------------------------------------


async def test_it_is_there_as_long_as_main_pools_are(acting: Callable[..., None]) -> None:
    acting(health_address=f"{web.WEB}:0")
    assert server.where() is None
    async with crashing.pool(1):
        first = server.where()
        async with crashing.pool(1) as other:
            assert server.where() == first
            assert len(threads()) == 1
            told = web.request(f"{first}", "/health").json
            assert len(told["mains"]) == len(told["pools"]) == 2
            assert other.external_address in {each["address"] for each in told["mains"]}
        assert len(web.request(f"{first}", "/health").json["mains"]) == 1
    await eventually_here(lambda: server.where() is None and not threads())
    async with crashing.pool(1):
        assert web.request(f"{server.where()}", "/livez").status == 200


async def test_another_address(acting: Callable[..., None], directory: Path) -> None:
    acting(health_address=f"{web.WEB}:0")
    async with crashing.pool(1):
        before = f"{server.where()}"
        acting(health_address=f"{directory}/s")
        assert web.request(f"{directory}/s", "/livez").status == 200
        with pytest.raises(ConnectionRefusedError):
            web.request(before, "/livez")
        acting(health_address="off")
        assert not threads()
        assert not (directory / "s").exists()


async def test_uninstall_ends_it(acting: Callable[..., None]) -> None:
    acting(health_address=f"{web.WEB}:0")
    async with crashing.pool(1):
        where = f"{server.where()}"
        with web.events(where, last_event_id="0") as stream:
            stream.next()
            xoscar_idle.uninstall()
            assert not threads()
            with pytest.raises(AssertionError, match="the stream has ended"):
                stream.until(kind="none of that kind")


async def test_pools_that_were_there_before_are_told_of(acting: Callable[..., None]) -> None:
    async with crashing.pool(1) as pool:
        acting(health_address=f"{web.WEB}:0")
        (told,) = web.request(f"{server.where()}", "/health").json["mains"]
        assert told["address"] == pool.external_address


PROGRAM = """
import asyncio, sys, logging
logging.basicConfig(level="WARNING")
import xoscar as xo

async def main():
    pool = await xo.create_actor_pool("127.0.0.3", n_process=1)
    print(pool.external_address, flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    await pool.stop()

asyncio.run(main())
"""


@contextlib.contextmanager
def program(**settings: str) -> Iterator[subprocess.Popen[str]]:
    given = {"XOSCAR_SUPERVISE": "observe", **settings}
    with started(
        *(sys.executable, "-c", PROGRAM),
        env=environment(**given),
        stderr=subprocess.PIPE,
        orderly=False,
    ) as process:
        line(process)
        yield process


def warnings(process: subprocess.Popen[str]) -> str:
    _, errors = process.communicate(timeout=BOUND)
    assert process.returncode == 0, errors
    return "".join(each for each in errors.splitlines(True) if "nothing is told" in each)


@pytest.mark.parametrize("kind", ["tcp", "socket", "file"])
def test_an_address_that_another_one_has(directory: Path, kind: str) -> None:
    """One warning names the address and the remedy; the pool goes on."""
    with contextlib.ExitStack() as stack:
        address, held = f"{directory}/s", socket.socket(socket.AF_UNIX)
        if kind == "tcp":
            held.close()
            held = socket.create_server((web.WEB, 0))
            address = f"{web.WEB}:{held.getsockname()[1]}"
        elif kind == "socket":
            held.bind(address)
            held.listen()
        else:
            Path(address).write_text("something of the user's")
        stack.enter_context(held)
        with program(XOSCAR_HEALTH_ADDRESS=address) as process:
            told = warnings(process)
        assert told.count("\n") == 1, told
        assert f"XOSCAR_HEALTH_ADDRESS={address}" in told
        assert "each process with main pools needs one of its own" in told
        assert kind != "file" or Path(address).read_text() == "something of the user's"


def test_an_address_of_others_without_a_token() -> None:
    with program(XOSCAR_HEALTH_ADDRESS="0.0.0.0:0") as process:
        told = warnings(process)
    assert "XOSCAR_HEALTH_TOKEN must be set" in told
    assert told.count("\n") == 1


def test_a_host_that_is_not_known() -> None:
    with program(XOSCAR_HEALTH_ADDRESS="no-such-host.invalid:1") as process:
        assert "no-such-host.invalid:1" in warnings(process)


def test_without_the_extra(tmp_path: Path) -> None:
    (tmp_path / "fastapi.py").write_text("raise ImportError('no fastapi')")
    with program(XOSCAR_HEALTH_ADDRESS=f"{web.WEB}:0", PYTHONPATH=f"{tmp_path}") as process:
        assert "pip install 'xoscar-idle[http]'" in warnings(process)


def test_a_socket_is_its_users_own_and_goes_with_it(directory: Path) -> None:
    path = f"{directory}/s"
    with program(XOSCAR_HEALTH_ADDRESS=path) as process:
        assert os.stat(path).st_mode & 0o777 == 0o600
        assert web.request(path, "/readyz").status == 200
        process.kill()
        process.wait()
    assert os.path.exists(path), "what is killed leaves it"
    with program(XOSCAR_HEALTH_ADDRESS=path) as process:
        assert web.request(path, "/readyz").status == 200
        assert warnings(process) == ""
    assert not os.path.exists(path)


@pytest.mark.skipif(os.geteuid() != 0, reason="it takes root to be another user")
def test_another_user(directory: Path) -> None:
    """Nothing is told to it at a socket, nor steered anywhere."""
    path = f"{directory}/s"
    os.chmod(directory, 0o755)
    with program(XOSCAR_HEALTH_ADDRESS=path):
        if not (child := os.fork()):
            os.setuid(65534)
            try:
                web.connected(path)
            except PermissionError:
                os._exit(7)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


def test_sub_pools_do_not_serve() -> None:
    """They inherit the variable; the address is their main pool's."""
    with program(XOSCAR_HEALTH_ADDRESS=f"{web.WEB}:0") as process:
        children = psutil.Process(process.pid).children(recursive=True)
        listening = [
            each.laddr.ip
            for child in children
            for each in child.net_connections("tcp")
            if each.status == psutil.CONN_LISTEN
        ]
        assert web.WEB not in listening
        assert warnings(process) == ""


async def test_a_forked_child_does_not_hold_it(acting: Callable[..., None]) -> None:
    acting(health_address=f"{web.WEB}:0")
    async with crashing.pool(1):
        where = f"{server.where()}"
        read, write = os.pipe()
        if not (child := os.fork()):
            os.close(write)
            os.read(read, 1)  # until the parent has looked
            os._exit(0 if server.where() is None else 1)
        os.close(read)
        try:
            acting(health_address="off")
            with pytest.raises(ConnectionRefusedError):
                web.request(where, "/livez")
        finally:
            os.close(write)
        assert os.waitpid(child, 0)[1] == 0  # noqa: ASYNC222


# -- those who mean no good ------------------------------------------------------------------------


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What would take seconds takes tenths."""
    monkeypatch.setattr(server, "PATIENCE", 0.3)


async def is_fine(served: Served) -> bool:
    """Whether who asks properly is answered, and calls are."""
    answer = await served.ask("/readyz")
    pid = await bounded((await victim(served.addresses[0])).pid())
    return answer.status == 200 and bool(pid)


def connections() -> int:
    found = server._running
    assert found is not None
    assert found._uvicorn is not None
    return len(found._uvicorn.server_state.connections)


def _hung_up_on() -> contextlib.suppress:
    return contextlib.suppress(BrokenPipeError, ConnectionResetError)


def hung_up(sock: socket.socket) -> bytes:
    """What comes until the other side hangs up."""
    sock.settimeout(BOUND)
    found = b""
    with contextlib.suppress(ConnectionResetError):
        while data := sock.recv(65536):
            found += data
    return found


GARBAGE = (
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(256)),  # TLS
    b"\0" * 100 + b"\r\n\r\n",
    b"GET\r\n\r\n",
    b"GET / HTTP/9.9\r\n\r\n",
    b"GET / HTTP/1.1\r\n\r\n",  # without a host
    b"GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n",
    b"GET / HTTP/1.1\r\nhost: a\r\ncontent-length: -1\r\n\r\n",
    b"GET / HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n",
    b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
    b"GET http://[ HTTP/1.1\r\nhost: a\r\n\r\n",
    b"GET /%ff%00?%ff=%00&=& HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n",
    b"GET /health HTTP/1.1\r\nhost: 127.0.0.1\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"OPTIONS * HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n",
    b"CONNECT evil.com:443 HTTP/1.1\r\nhost: evil.com\r\n\r\n",
    b"GET /health HTTP/1.1\r\nhost: 127.0.0.1\r\norigin: \xff\xfe\r\n\r\n",
    b"GET /health HTTP/1.1\r\nhost: 127.0.0.1\r\nauthorization: \xff\r\n\r\n",
    b"GET /v1/events HTTP/1.1\r\nhost: 127.0.0.1\r\nlast-event-id: \xff\r\n\r\ngarbage" * 3,
)


async def test_garbage(served: Served, impatient: None, caplog: pytest.LogCaptureFixture) -> None:
    """Each is answered or hung up on, the log is not filled, and nobody else notices."""
    rng = random.Random(15)
    noise = [rng.randbytes(rng.randrange(1, 500)) for _ in range(100)]

    def send(data: bytes) -> None:
        with contextlib.closing(web.connected(served.where)) as sock, _hung_up_on():
            sock.sendall(data)
            if b"/v1/events" not in data:
                answer = hung_up(sock)
                assert b" 500 " not in answer
                assert b'"in_process"' not in answer or b"host: 127.0.0.1" in data

    for data in (*GARBAGE, *noise):
        await bounded(asyncio.to_thread(send, data))
    assert await is_fine(served)
    assert not [each for each in caplog.records if each.levelname in ("ERROR", "WARNING")]
    await eventually_here(lambda: connections() == 0)


async def test_a_request_line_without_an_end(served: Served) -> None:
    def send() -> int:
        with contextlib.closing(web.connected(served.where)) as sock:
            sock.settimeout(BOUND)
            sent = 0
            with contextlib.suppress(OSError):  # it is hung up on
                for _ in range(10 * 1024):
                    sent += sock.send(b"x" * 1024)
            return sent

    before = psutil.Process().memory_info().rss
    await bounded(asyncio.to_thread(send))
    assert psutil.Process().memory_info().rss - before < 8 << 20
    assert await is_fine(served)


async def test_requests_that_never_come_whole(served: Served, impatient: None) -> None:
    """Also such that go on coming, a byte at a time, and bodies."""
    parts = (b"", b"GET / HT", b"GET / HTTP/1.1\r\nhost: a\r\n")
    body = (
        b"POST /v1/fault_tolerance/apply HTTP/1.1\r\nhost: a\r\ncontent-length: 10\r\n"
        b"content-type: application/json\r\nauthorization: Bearer "
        + web.TOKEN.encode()
        + b"\r\n\r\n{"
    )
    with contextlib.ExitStack() as stack:
        held = []
        for each in (*parts, body):
            for _ in range(5):
                sock = stack.enter_context(contextlib.closing(web.connected(served.where)))
                sock.sendall(each)
                held.append(sock)
        stop = threading.Event()

        def drip() -> None:
            while not stop.wait(0.05):
                for sock in held:
                    with contextlib.suppress(OSError):
                        sock.send(b"x")

        dripping = threading.Thread(target=drip)
        dripping.start()
        try:
            assert await is_fine(served)
            await eventually_here(lambda: connections() == 0)
        finally:
            stop.set()
            dripping.join()


async def test_streams_that_nobody_reads(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """They lose the stream; those who read do not, on a busy machine either."""
    monkeypatch.setattr(server, "PATIENCE", 3.0)
    lineage = Lineage(1000, "127.0.0.1:1")
    with contextlib.ExitStack() as stack:
        for _ in range(5):
            sock = stack.enter_context(contextlib.closing(web.connected(served.where)))
            sock.sendall(b"GET /v1/events HTTP/1.1\r\nhost: localhost\r\nlast-event-id: 0\r\n\r\n")
        reader = await asyncio.to_thread(stack.enter_context, web.events(served.where))
        await eventually_here(lambda: connections() == 6)
        read: list[web.Sent] = []

        def read_all() -> None:
            read.extend(reader.until(text="the last"))

        reading = asyncio.ensure_future(asyncio.to_thread(read_all))

        async def are_lost() -> bool:
            for _ in range(20):
                journal.happened("state", lineage, "healthy", "x" * 10_000)
            await asyncio.sleep(0)
            return connections() == 1

        await eventually_told(are_lost)
        journal.happened("state", lineage, "healthy", "the last")
        await bounded(reading)
        at = None
        for each in read:
            if each.event == "gap":
                at = None if at is None else at + each.data["missed"]
            else:
                assert at in (None, each.data["sequence"] - 1), "a gap is told as one"
                at = each.data["sequence"]
        assert await is_fine(served)


async def test_only_so_many_at_once(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "MOST", 3)
    with contextlib.ExitStack() as stack:
        for _ in range(2):
            stack.enter_context(await asyncio.to_thread(web.events, served.where))
        first = stack.enter_context(contextlib.closing(web.connected(served.where)))
        await eventually_here(lambda: connections() == 3)
        assert await is_fine(served), "whoever says nothing makes room"
        assert await bounded(asyncio.to_thread(hung_up, first)) == b""
        stack.enter_context(await asyncio.to_thread(web.events, served.where))
        extra = stack.enter_context(contextlib.closing(web.connected(served.where)))
        assert await bounded(asyncio.to_thread(hung_up, extra)) == b"", "those who listen stay"
        assert connections() == 3
    await eventually_told(lambda: is_fine(served))


@pytest.mark.parametrize(("limit", "most"), [(None, 512), (100_000, 512), (1024, 256)])
def test_it_leaves_descriptors_to_the_program(
    monkeypatch: pytest.MonkeyPatch, limit: int | None, most: int
) -> None:
    monkeypatch.setattr("xoscar_idle.descriptors.limits", lambda: (limit, limit))
    assert server.most() == most


async def test_an_error_of_ours_is_an_answer(
    served: Served, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("a fault of ours")

    monkeypatch.setattr("xoscar_idle.http.readiness.reasons", broken)
    answer = await served.ask("/readyz")
    assert answer.status == 500
    assert answer.json == {"detail": "xoscar-idle has failed to answer; its log says why"}
    assert (await served.ask("/livez")).status == 200
    assert "a fault of ours" in caplog.text, "it is not silent"
