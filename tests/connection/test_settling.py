"""Whether answers are with those who asked, on connections that are never quiet."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from xoscar_idle import descriptors
from xoscar_idle.connection import accepted
from xoscar_idle.connection.settling import Settling

from ..support.waiting import bounded, eventually_here

pytestmark = pytest.mark.integration

SIZE = 1 << 20


class Channel:
    """A connection that was accepted."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self.writer = writer


@contextlib.asynccontextmanager
async def connection(path: Path | None) -> AsyncIterator[tuple[Channel, asyncio.StreamReader]]:
    """One of which the kernel takes little; over TCP, or at a path."""
    met: asyncio.Future[asyncio.StreamWriter] = asyncio.get_running_loop().create_future()

    def connected(reader: Any, writer: asyncio.StreamWriter) -> None:
        met.set_result(writer)

    if path is not None:
        server = await asyncio.start_unix_server(connected, path)
        reader, client = await asyncio.open_unix_connection(path)
    else:
        server = await asyncio.start_server(connected, "127.0.0.1", 0)
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 15)
        sock.connect(server.sockets[0].getsockname())
        reader, client = await asyncio.open_connection(sock=sock)
    writer = await bounded(met)
    try:
        yield Channel(writer), reader
    finally:
        for each in (client, writer):
            each.transport.abort()
            with contextlib.suppress(ConnectionError):
                await each.wait_closed()
        server.close()
        await server.wait_closed()


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> dict[Any, int]:
    """Those in process, by connection."""
    there: dict[Any, int] = {}
    monkeypatch.setattr(accepted, "in_process", lambda: dict(there))
    return there


@pytest.mark.parametrize("kind", ["tcp", "unix"])
async def test_what_is_written_later_is_of_no_concern(
    kind: str, requests: dict[Any, int], tmp_path: Path
) -> None:
    path = tmp_path / "socket" if kind == "unix" else None
    async with connection(path) as (channel, reader):
        requests[channel] = 1
        settling = Settling()
        assert not settling.look()
        channel.writer.write(b"x" * SIZE)
        requests[channel] = 0
        assert not settling.look()
        if kind == "tcp":
            channel.writer.write(b"y" * 8 * SIZE)
        requests[channel] = 1  # another one, which is turned away
        await bounded(reader.readexactly(SIZE))
        await eventually_here(settling.look)
        assert not settling.lost
        if kind == "tcp":
            number = channel.writer.get_extra_info("socket").fileno()
            assert descriptors.unacknowledged(number), "it is not quiet"


@pytest.mark.parametrize("before", ["answered", "written"])
async def test_a_connection_that_is_lost(before: str, requests: dict[Any, int]) -> None:
    async with connection(None) as (channel, _):
        requests[channel] = before == "answered"
        channel.writer.write(b"x" * SIZE)
        settling = Settling()
        assert not settling.look()
        del requests[channel]
        assert settling.look()
        assert settling.lost


async def test_one_that_comes_later(requests: dict[Any, int]) -> None:
    """It had no request when this began."""
    async with connection(None) as (channel, _):
        settling = Settling()
        requests[channel] = 1
        assert settling.look()
        assert not settling.lost


async def test_a_kernel_that_does_not_count(
    requests: dict[Any, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then it has to be quiet once."""
    monkeypatch.setattr(descriptors, "acknowledged", lambda _: None)
    async with connection(None) as (channel, reader):
        requests[channel] = 0
        channel.writer.write(b"x" * SIZE)
        settling = Settling()
        assert not settling.look()
        await bounded(reader.readexactly(SIZE))
        await eventually_here(settling.look)
        assert not settling.lost
