"""``ping()``: a time, or an error that is documented and names what is wrong."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import xoscar as xo
from xoscar.errors import ServerClosed

import xoscar_idle
from xoscar_idle.connection import authentication, deadlines, routing
from xoscar_idle.telemetry.pool_query import ask
from xoscar_idle.telemetry.snapshot import Unobservable

from ..support.endpoints import refusing
from ..support.hosting import pools, worker
from ..support.processes import run
from ..support.waiting import BOUND, bounded

pytestmark = [pytest.mark.integration, pytest.mark.filterwarnings("error")]


@pytest.fixture
def sealed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing can be opened."""

    async def connect(*_: Any, **__: Any) -> Any:
        raise AssertionError("something is opened")

    monkeypatch.setattr(routing, "connect", connect)


ODD_ADDRESSES = [
    "",
    "foo",
    "foo:",
    ":5",
    "foo:bar",
    "foo:0",
    "foo:-1",
    "foo:99999",
    "foo:1.5",
    "foo:٣٠",
    "foo:" + "9" * 5000,
    "foo: 5",
    "a..b:5",
    "a\0b:5",
    "a" * 70 + ":5",
    "http://foo:5",
    "://foo:5",
    "nonsense",
    "unixsocket://",
    "unixsocket:///x",
    None,
    5,
    b"127.0.0.1:5",
    ["127.0.0.1:5"],
    ("127.0.0.1", 5),
]


@pytest.mark.usefixtures("sealed")
@pytest.mark.parametrize("address", ODD_ADDRESSES, ids=lambda address: repr(address)[:20])
def test_a_bad_address_is_named(address: Any) -> None:
    with pytest.raises(ValueError, match=r"^address must .*, got") as caught:
        asyncio.run(xoscar_idle.ping(address))
    assert repr(address)[:25] in str(caught.value)
    assert len(str(caught.value)) < 250


ODD_TIMEOUTS = [
    0,
    0.0,
    -1,
    -0.5,
    float("nan"),
    float("inf"),
    10**400,
    10**5000,
    True,
    False,
    None,
    "",
    "soon",
    "inf",
    "-1",
    [5],
    5j,
]


@pytest.mark.usefixtures("sealed")
@pytest.mark.parametrize("timeout", ODD_TIMEOUTS, ids=lambda t: type(t).__name__)
def test_a_bad_timeout_is_named(timeout: Any) -> None:
    with pytest.raises(ValueError, match=r"^timeout .*, got") as caught:
        asyncio.run(xoscar_idle.ping("127.0.0.1:5", timeout))
    assert len(str(caught.value)) < 250


@pytest.mark.usefixtures("sealed")
@pytest.mark.parametrize("address", ["http://foo:5", "foo", "foo:99999"])
def test_so_is_one_that_statistics_are_asked_of(address: str) -> None:
    with pytest.raises(Unobservable, match="address must ") as caught:
        asyncio.run(ask(address))
    assert repr(address) in str(caught.value)


@contextlib.contextmanager
def listening(answer: bytes | None) -> Iterator[str]:
    """Somebody who answers each message with these bytes and hangs up; None: who hangs up."""

    def serve() -> None:
        while True:
            try:
                connection, _ = sock.accept()
            except OSError:
                return
            with connection:
                connection.recv(1 << 16)
                if answer is not None:
                    connection.sendall(answer)
                    connection.shutdown(socket.SHUT_WR)
                    while connection.recv(1 << 16):
                        pass

    with socket.create_server(("127.0.0.1", 0)) as sock:
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"127.0.0.1:{sock.getsockname()[1]}"
        finally:
            sock.shutdown(socket.SHUT_RDWR)
            thread.join()


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (None, "closed at the first message"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "it cannot be read"),
        (b"\x01\x00", "broke within it"),
        (b"\x01" + (5).to_bytes(8, "little") + bytes(2) + b"hello", "does not speak as a pool"),
    ],
)
def test_what_is_no_pool(answer: bytes | None, says: str) -> None:
    with listening(answer) as address, pytest.raises(ConnectionError, match=says) as caught:
        asyncio.run(bounded(xoscar_idle.ping(address)))
    assert address in str(caught.value)


@pytest.mark.parametrize("address", ["nowhere.invalid:5", "unixsocket:///77777", "dummy://77777"])
def test_where_nobody_is(address: str) -> None:
    with pytest.raises(ConnectionError, match=address.rpartition(":")[0]):
        asyncio.run(bounded(xoscar_idle.ping(address)))


def test_a_time_in_words_is_one_too() -> None:
    with refusing() as address, pytest.raises(ConnectionError):
        asyncio.run(bounded(xoscar_idle.ping(address, "60")))  # type: ignore[arg-type]


def test_the_deadline_of_the_caller_stays_its_own() -> None:
    async def main() -> None:
        with xoscar_idle.deadline(BOUND):
            before = deadlines._scope.get()
            with refusing() as address, pytest.raises(ConnectionError):
                await bounded(xoscar_idle.ping(address, BOUND))
            assert before is not None
            assert deadlines._scope.get() is before

    xoscar_idle.install()
    try:
        asyncio.run(main())
    finally:
        xoscar_idle.uninstall()


def test_it_works_where_the_package_is_not_active() -> None:
    program = (
        "import asyncio, sys, xoscar_idle\n"
        "print(asyncio.run(xoscar_idle.ping(sys.argv[1])) < 20, xoscar_idle.is_active())"
    )
    with pools() as hosted:
        done = run(sys.executable, "-W", "error", "-c", program, hosted.addresses[0])
    assert (done.stdout, done.stderr) == ("True False\n", "")


# -- keys ----------------------------------------------------------------------------------------

keys = pytest.mark.skipif(
    "knows none" in authentication._here(), reason="this xoscar has no authentication"
)


@keys
@pytest.mark.parametrize(
    ("ours", "theirs", "says"),
    [("", "a", "none is set here"), ("a", "", "one is set here"), ("a", "b", "one is set here")],
)
@pytest.mark.usefixtures("active")
def test_a_key_that_does_not_fit_is_named(
    ours: str, theirs: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        address = hosted.addresses[0]
        with pytest.raises(ConnectionError, match=says) as pinged:
            await bounded(xoscar_idle.ping(address))
        with pytest.raises(Unobservable, match=says) as asked:
            await bounded(ask(address))
        calls = [asyncio.ensure_future(xo.actor_ref(address=address, uid=f"{n}")) for n in range(3)]
        for error in await bounded(asyncio.gather(*calls, return_exceptions=True)):
            assert isinstance(error, ServerClosed)
            assert "the connection was closed" in str(error)
        with pytest.raises(ServerClosed, match=says) as called:
            await bounded(xo.actor_ref(address=address, uid="worker"))
        for caught in (pinged, asked, called):
            assert "XOSCAR_AUTH_KEY" in str(caught.value)
            assert address in str(caught.value)
            assert "bytes read" not in str(caught.value)

    with pools(XOSCAR_AUTH_KEY=theirs) as hosted:
        if ours:
            monkeypatch.setenv("XOSCAR_AUTH_KEY", ours)
        xoscar_idle.install(idle_timeout=30)
        asyncio.run(main())


@keys
@pytest.mark.usefixtures("active")
def test_a_pool_that_is_killed_at_the_first_message_is_not_blamed_on_a_key(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def main() -> None:
        actor = await worker(hosted.addresses[0])
        xoscar_idle.install(idle_timeout=30)  # the next call is the first on its connection
        call = asyncio.ensure_future(actor.sleep(60))
        while not xoscar_idle.statistics().requests_in_flight:  # noqa: ASYNC110
            await asyncio.sleep(0)
        os.kill(hosted.pid, signal.SIGKILL)
        with pytest.raises(ServerClosed) as caught:
            await bounded(call)
        assert "XOSCAR_AUTH_KEY" not in str(caught.value)

    monkeypatch.setenv("XOSCAR_AUTH_KEY", "a")
    with pools() as hosted:
        asyncio.run(main())


@keys
def test_a_key_that_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        assert await bounded(xoscar_idle.ping(hosted.addresses[0])) < BOUND
        (asked,) = await bounded(ask(hosted.addresses[0]))
        assert asked.address == hosted.addresses[0]

    monkeypatch.setenv("XOSCAR_AUTH_KEY", "a")
    with pools() as hosted:
        asyncio.run(main())
