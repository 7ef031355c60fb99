"""Connections in memory that cost next to nothing, so that only the caller's own work is left."""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from types import SimpleNamespace
from typing import Any

from xoscar.backends.communication import ChannelType
from xoscar.backends.core import ActorCaller
from xoscar.backends.message import ControlMessage, ControlMessageType
from xoscar.backends.router import Router

ADDRESS = "127.0.0.1:1"


class Connection:
    """Answers each message with that message itself."""

    def __init__(self, dest_address: str) -> None:
        self.dest_address = dest_address
        self.channel = SimpleNamespace()
        self.channel_type = ChannelType.remote
        self.closed = False
        self.mute = False
        self.loop = asyncio.get_running_loop()
        self._incoming: deque[Any] = deque()
        self._listener: asyncio.Future[None] | None = None

    async def send(self, message: Any) -> None:
        # The reply comes in a turn of the loop of its own, as from a transport. If it were there
        # at once, a listener that polls would find it a turn earlier than one that waits.
        if not self.mute:
            self.loop.call_soon(self._deliver, message)

    def _deliver(self, message: Any) -> None:
        self._incoming.append(message)
        listener = self._listener
        if listener is not None:
            self._listener = None
            listener.set_result(None)

    async def recv(self) -> Any:
        if not self._incoming:
            self._listener = self.loop.create_future()
            await self._listener
        return self._incoming.popleft()

    async def close(self) -> None:
        self.closed = True


class MemoryRouter(Router):  # type: ignore[misc]  # xoscar is untyped
    """xoscar's router; what it opens is in memory."""

    def __init__(self) -> None:
        super().__init__([], None)
        self.opened: list[Connection] = []

    async def _create_client(self, client_type: Any, address: str, **kw: Any) -> Connection:
        self.opened.append(Connection(address))
        return self.opened[-1]


_numbers = itertools.count()


def messages(n: int) -> list[Any]:
    """Messages to send, made beforehand: making them is the same work for everybody."""
    return [
        ControlMessage(
            next(_numbers).to_bytes(32, "big"), ADDRESS, ControlMessageType.get_config, None
        )
        for _ in range(n)
    ]


class Caller:
    """xoscar's caller, as a context has it, over connections in memory."""

    def __init__(self) -> None:
        self.router = MemoryRouter()
        self.owner = ActorCaller()

    async def call(self, message: Any, address: str = ADDRESS) -> None:
        reply = await self.owner.call(self.router, address, message, wait=False)
        await reply

    async def send(self, message: Any) -> None:
        """As ``context.send`` does it."""
        reply = await self.owner.call(self.router, ADDRESS, message, wait=False)
        await asyncio.shield(reply)
        await reply


class BareCaller:
    """What no caller can do without: a future, a table of them, and a task that listens.

    The rest of what a call takes with it is the event loop's and the connection's.
    """

    def __init__(self) -> None:
        self._connection = Connection(ADDRESS)
        self._replies: dict[bytes, asyncio.Future[Any]] = {}
        self._task = asyncio.get_running_loop().create_task(self._listen())

    async def _listen(self) -> None:
        while True:
            message = await self._connection.recv()
            self._replies.pop(message.message_id).set_result(message)

    async def _send(self, message: Any) -> asyncio.Future[Any]:
        reply = self._replies[message.message_id] = self._connection.loop.create_future()
        await self._connection.send(message)
        return reply

    async def call(self, message: Any) -> None:
        reply = await self._send(message)
        await reply

    async def send(self, message: Any) -> None:
        reply = await self._send(message)
        await asyncio.shield(reply)
        await reply
