"""Copies over UCX and NIXL, which bring much: ``make test-transports``, and no other target."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from typing import Any

import pytest
import xoscar as xo
from xoscar.backends.communication.errors import ChannelClosed
from xoscar.errors import ServerClosed

from ..support.waiting import eventually_told
from .actors import siblings, strangers

pytestmark = [
    pytest.mark.integration,
    pytest.mark.timeout(300),
    pytest.mark.parametrize("transport", ["ucx", "nixl"]),
]

ARRANGEMENTS = pytest.mark.parametrize("arrangement", [siblings, strangers])

SHORT = 0.2
"""Seconds. An idle timeout that a test can wait for."""


def short(transport: str) -> dict[str, float]:
    return {f"idle_timeout_{transport}": SHORT}


def long(transport: str) -> dict[str, float]:
    return {f"idle_timeout_{transport}": 600}


async def none_left(sender: Any, transport: str) -> None:
    """Wait until its connections over ``transport`` are closed."""

    async def none() -> bool:
        return not await sender.connections(transport)

    await eventually_told(none)


async def copy(sender: Any, receiver: Any, size: int) -> None:
    target = await receiver.target(size)
    assert await sender.copy(target, size) == await receiver.total()


@ARRANGEMENTS
def test_copies_across_an_idle_close(arrangement: Any, transport: str) -> None:
    """First copy, next copy over the open connection, and a copy after it has been closed."""

    async def main() -> None:
        async with arrangement(transport) as (sender, receiver):
            seen = []
            for size in (1 << 10, 1 << 22):
                await copy(sender, receiver, size)
                opened = await sender.connections(transport)
                assert len(opened) == 1
                await copy(sender, receiver, size)
                assert await sender.connections(transport) == opened
                seen += opened
                await sender.configure(short(transport))
                await none_left(sender, transport)
                await sender.configure(long(transport))
            assert len(set(seen)) == 2, "opened anew"

    asyncio.run(main())


@ARRANGEMENTS
def test_long_copy_keeps_its_connection(arrangement: Any, transport: str) -> None:
    """Between two of its blocks more time passes than a connection may be idle."""

    async def main() -> None:
        async with arrangement(transport) as (sender, receiver):
            await sender.configure(short(transport))
            seen = await sender.copy_slowly(await receiver.file(), 4, 3 * SHORT, transport)
            assert await receiver.written() == 4
            assert len(seen) == 4
            assert len({tuple(each) for each in seen}) == 1
            await none_left(sender, transport)

    asyncio.run(main())


def test_peer_is_killed(transport: str) -> None:
    """Whoever waits for it learns of it, and so does whoever copies to it from then on."""

    async def main() -> None:
        async with strangers(transport) as (sender, receiver):
            await copy(sender, receiver, 1 << 10)
            target = await receiver.target(1 << 10)
            waiting = asyncio.ensure_future(sender.call(receiver, "forever"))
            await eventually_told(receiver.is_called)
            os.kill(await receiver.pid(), signal.SIGKILL)
            with pytest.raises(ServerClosed):
                await waiting
            await none_left(sender, transport)
            for _ in range(2):
                # UCX may take its limit for a connect to find out.
                with pytest.raises((OSError, ChannelClosed, ServerClosed)):
                    await sender.copy(target, 1 << 10)
            await none_left(sender, transport)

    asyncio.run(main())


def test_peer_is_killed_and_comes_back(transport: str) -> None:
    async def main() -> None:
        async with siblings(transport) as (sender, receiver):
            await copy(sender, receiver, 1 << 10)
            killed = await receiver.pid()
            os.kill(killed, signal.SIGKILL)
            await none_left(sender, transport)

            async def is_back() -> bool:
                with contextlib.suppress(OSError, ServerClosed, xo.ActorNotExist):
                    return bool(await receiver.pid() != killed)
                return False

            await eventually_told(is_back)
            await copy(sender, receiver, 1 << 10)
            assert len(await sender.connections(transport)) == 1

    asyncio.run(main())
