"""Many endpoints in one process, each at an address of its own, and a client of them.

They speak xoscar's protocol and answer each message with its content. On Linux all addresses in
127.0.0.0/8 lead to this machine, so that one listening socket serves thousands of endpoints, and
each descriptor of a server beyond that one is a connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import time
from typing import Any

from xoscar.backends.communication.socket import SocketServer, UnixSocketServer
from xoscar.backends.core import ActorCaller
from xoscar.backends.message import (
    ControlMessage,
    ControlMessageType,
    ResultMessage,
    new_message_id,
)
from xoscar.backends.router import Router

BACKLOG = 4096  # bursts are to be accepted, not to be resent


class Endpoints:
    """The endpoints of a process; a child (see :mod:`benchmarks.processes`)."""

    def __init__(self) -> None:
        self._accepted = 0
        self._ended: dict[str, float] = {}

    async def open(self, n: int) -> list[str]:
        """Open ``n`` endpoints; their addresses."""
        server = await SocketServer.create(
            {
                "address": "0.0.0.0:0",
                "handle_channel": self._answer,
                "start_serving": True,
                "backlog": BACKLOG,
            }
        )
        return [f"127.1.{i >> 8}.{i & 255}:{server.port}" for i in range(1, n + 1)]

    async def open_unix(self) -> str:
        """Open an endpoint on a unix socket; its address."""
        self._unix = await UnixSocketServer.create(
            {"process_index": os.getpid(), "handle_channel": self._answer, "start_serving": True}
        )
        return str(self._unix.address)

    async def close_unix(self) -> None:
        """Its socket is a file."""
        await self._unix.stop()

    async def _answer(self, channel: Any) -> None:
        self._accepted += 1
        with contextlib.suppress(EOFError, ConnectionError):
            while True:
                asked = await channel.recv()
                await channel.send(ResultMessage(asked.message_id, asked.content))
        name = channel.writer.get_extra_info("sockname")
        if isinstance(name, tuple):
            self._ended[f"{name[0]}:{name[1]}"] = time.monotonic()

    async def collect_no_garbage(self) -> None:
        """Run without the collector's pauses, as what is measured is another process."""
        gc.disable()

    async def accepted(self) -> int:
        """How many connections there have been."""
        return self._accepted

    async def ended(self) -> dict[str, float]:
        """When the latest connection to each endpoint was seen to end."""
        return self._ended


class Client:
    """Calls endpoints as xoscar's contexts do."""

    def __init__(self) -> None:
        self.renew()

    def renew(self) -> None:
        """Begin anew, without any connection."""
        self.owner = ActorCaller()
        self.router = Router([], None)

    async def call(self, address: str, content: Any = None) -> Any:
        message = ControlMessage(new_message_id(), address, ControlMessageType.get_config, content)
        reply = await self.owner.call(self.router, address, message, wait=False)
        return (await reply).result

    async def call_all(self, addresses: list[str], at_once: int = 100) -> None:
        for i in range(0, len(addresses), at_once):
            await asyncio.gather(*map(self.call, addresses[i : i + at_once]))
