"""A few questions on a connection of their own, to real pools."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest
from xoscar.backends.router import Router

from xoscar_idle.connection import authentication
from xoscar_idle.connection.exchange import Exchange

from ..support.hosting import pools
from ..support.waiting import BOUND, bounded

pytestmark = pytest.mark.integration


def test_a_pool_tells_its_own_name_and_answers_under_it() -> None:
    async def main(address: str, pid: int) -> None:
        by_name = address.replace("127.0.0.1", "localhost")
        async with Exchange(Router.get_instance_or_empty(), by_name, BOUND) as exchange:
            await exchange.sign_of_life()
            await exchange.introduce()
            assert exchange.pid == pid
            config = await exchange.config(None)
            assert address in config.get_external_addresses()

    with pools() as hosted:
        asyncio.run(bounded(main(hosted.addresses[0], hosted.pid)))


def test_a_pool_that_dies_between_two_questions_is_not_blamed_on_a_key() -> None:
    async def main(address: str) -> None:
        async with Exchange(Router.get_instance_or_empty(), address, BOUND) as exchange:
            await exchange.introduce()
            os.kill(exchange.pid, signal.SIGKILL)
            with pytest.raises(authentication.HUNG_UP) as lost:
                await exchange.config(None)
            assert "XOSCAR_AUTH_KEY" not in str(lost.value)

    with pools() as hosted:
        asyncio.run(bounded(main(hosted.addresses[0])))
