"""Socket options that the kernel takes, and those that it refuses."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from xoscar.backends.communication.socket import SocketChannel

from xoscar_idle.connection import keepalive, transports
from xoscar_idle.connection.keepalive import Option


@pytest.fixture(autouse=True)
def nothing_told() -> Iterator[None]:
    transports._told.clear()
    yield
    transports._told.clear()


def with_channel(act: Any) -> None:
    """Let ``act`` have a channel to a peer that is there."""

    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as sock:
            reader, writer = await asyncio.open_connection(*sock.getsockname())
            act(SocketChannel(reader, writer))
            writer.close()
            await writer.wait_closed()

    asyncio.run(main())


def set_on(channel: SocketChannel, option: int) -> int:
    value: int = channel.writer.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, option)
    return value


@pytest.mark.parametrize(
    ("interval", "idle", "between"), [(0.2, 1, 1), (9, 9, 3), (27.4, 27, 9), (32767, 32767, 10922)]
)
def test_what_an_interval_means(interval: float, idle: int, between: int) -> None:
    options = keepalive.options(interval)
    assert options == [
        Option("SO_KEEPALIVE", 1),
        Option("TCP_KEEPIDLE", idle),
        Option("TCP_KEEPINTVL", between),
        Option("TCP_KEEPCNT", 3),
    ]
    with socket.socket() as sock:
        assert keepalive.refused(sock, options) == []


@pytest.mark.parametrize(
    ("interval", "named"),
    [
        (40_000, "TCP_KEEPIDLE=40000"),
        (3e9, "TCP_KEEPIDLE=3000000000"),
        (1e300, "TCP_KEEPIDLE=1000000"),
        (float("inf"), "infinity"),
    ],
)
def test_an_interval_that_the_kernel_refuses_is_told_once(
    interval: float, named: str, caplog: pytest.LogCaptureFixture
) -> None:
    def act(channel: SocketChannel) -> None:
        for _ in range(3):
            transports.keep_alive(channel, interval)

    with_channel(act)
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    told = record.getMessage()
    assert told.startswith("XOSCAR_KEEPALIVE_INTERVAL is not in force")
    assert named in told
    assert "from 1 to 32767" in told
    assert len(told) < 500


@pytest.mark.parametrize("value", ["3000000000", "9" * 5000, "soon", "-5", "1.5"])
def test_a_user_timeout_that_the_kernel_refuses_is_told_once(
    value: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def act(channel: SocketChannel) -> None:
        before = set_on(channel, socket.TCP_USER_TIMEOUT)
        for _ in range(3):
            transports.limit_unacknowledged(channel)
        assert set_on(channel, socket.TCP_USER_TIMEOUT) == before

    monkeypatch.setenv("XOSCAR_TCP_USER_TIMEOUT", value)
    with_channel(act)
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    told = record.getMessage()
    assert told.startswith("XOSCAR_TCP_USER_TIMEOUT is not in force")
    assert "milliseconds" in told
    assert len(told) < 500


@pytest.mark.parametrize("value", ["", " ", "0", " 20000 "])
def test_a_user_timeout_as_xoscar_takes_it(
    value: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def act(channel: SocketChannel) -> None:
        transports.limit_unacknowledged(channel)
        assert set_on(channel, socket.TCP_USER_TIMEOUT) == int(value.strip() or 0)

    monkeypatch.setenv("XOSCAR_TCP_USER_TIMEOUT", value)
    with_channel(act)
    assert not caplog.records


def test_nothing_is_said_of_a_connection_that_is_gone(caplog: pytest.LogCaptureFixture) -> None:
    def act(channel: SocketChannel) -> None:
        channel.writer.transport.abort()
        channel.writer.get_extra_info("socket")._sock.close()
        transports.keep_alive(channel, 9)

    with_channel(act)
    assert not caplog.records


def test_whatever_a_socket_raises_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    class Odd:
        family = socket.AF_INET

        def setsockopt(self, *_: Any) -> None:
            raise MemoryError("odd")

        def getpeername(self) -> Any:
            return "127.0.0.1", 1

    def act(channel: SocketChannel, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(channel.writer, "get_extra_info", lambda _: Odd())
        transports.keep_alive(channel, 9)
        transports.keep_alive(channel, 9)

    with pytest.MonkeyPatch.context() as patched:
        with_channel(lambda channel: act(channel, patched))
    (record,) = caplog.records
    assert "TCP_KEEPIDLE=9 (odd)" in record.getMessage()
