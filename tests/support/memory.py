"""A transport in memory and a loop in virtual time: below them nothing is real."""

from __future__ import annotations

import asyncio
import selectors
from types import SimpleNamespace
from typing import Any

from xoscar.backends.communication import ChannelType
from xoscar.backends.message import ControlMessage, ControlMessageType, ResultMessage


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """Never waits: where it would sleep until a timer, it moves its clock there."""

    def __init__(self) -> None:
        self.now = 1000.0
        super().__init__(_NeverWaits(self))

    def time(self) -> float:
        return self.now


class _NeverWaits(selectors.DefaultSelector):
    def __init__(self, loop: VirtualTimeLoop) -> None:
        super().__init__()
        self.loop = loop

    def select(self, timeout: float | None = None) -> list[Any]:
        events = super().select(0)
        if not events and timeout is None:
            raise RuntimeError("deadlock: nothing is ready, and no timer is set")
        if not events and timeout:
            self.loop.now += timeout
        return events


class Connection:
    """xoscar's client to a peer that the test plays."""

    def __init__(self, dest_address: str) -> None:
        self.dest_address = dest_address
        self.channel = SimpleNamespace(abort=self._abort)
        self.channel_type = ChannelType.remote
        self.closed = False
        self.sent: list[Any] = []
        self.incoming: asyncio.Queue[Any] = asyncio.Queue()
        self.send_error: BaseException | None = None
        self.sending = asyncio.Event()  # cleared: a send takes until it is set
        self.sending.set()

    async def send(self, message: Any) -> None:
        await self.sending.wait()
        if self.send_error is not None:
            raise self.send_error
        self.sent.append(message)

    async def recv(self) -> Any:
        item = await self.incoming.get()
        if isinstance(item, BaseException):
            raise item
        return item

    async def close(self) -> None:
        self.closed = True

    def _abort(self) -> None:
        self.closed = True

    def reply(self, message: Any, result: Any = None) -> None:
        """Answer ``message``."""
        self.incoming.put_nowait(ResultMessage(message.message_id, result))

    def hang_up(self) -> None:
        """Close from the other side."""
        self.incoming.put_nowait(EOFError("hung up"))


class Network:
    """A router whose connections lead to the test."""

    def __init__(self) -> None:
        self.mapping: dict[str, str] = {}
        self._mapping = self.mapping
        self._local_mapping: dict[str, str] = {}
        self._proxy_config: dict[str, str] = {}
        self._comm_config: dict[str, Any] = {}
        self.opened: list[Connection] = []
        self.dials = 0
        self.failure: BaseException | None = None
        self.dialing = asyncio.Event()  # cleared: a connect takes until it is set
        self.dialing.set()

    def _resolve_address(self, address: str, proxies: list[str] | None = None) -> str:
        return self.mapping.get(address, proxies[-1] if proxies else address)

    def _get_client_type_to_addresses(self, address: str) -> dict[Any, str]:
        return {Connection: address}

    async def _create_client(self, client_type: Any, address: str, **kw: Any) -> Connection:
        self.dials += 1
        await self.dialing.wait()
        if self.failure is not None:
            raise self.failure
        connection = Connection(address)
        self.opened.append(connection)
        return connection


_ids = iter(range(1, 1 << 60))


def message(content: Any = None) -> ControlMessage:
    """Some message, with an id of its own."""
    return ControlMessage(
        next(_ids).to_bytes(32, "big"), "a:1", ControlMessageType.get_config, content
    )


async def settle(turns: int = 20) -> None:
    """Let everything that is ready run; no time passes."""
    for _ in range(turns):
        await asyncio.sleep(0)
