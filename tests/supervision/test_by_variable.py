"""Supervision that is asked for by its variable alone, in unmodified programs."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from ..support.hosting import pools, worker

pytestmark = pytest.mark.integration


@pytest.mark.parametrize("idle_timeout", ["", "off"])
def test_a_main_pool_and_its_sub_pools_are_active_without_idle_closing(idle_timeout: str) -> None:
    async def look(addresses: list[str]) -> None:
        for address in addresses:
            there = await worker(address)
            assert await there.active()
            settings = await there.settings()
            assert (settings["idle_timeout"], settings["supervise"]) == (0, "observe")
        sub = await worker(addresses[1])
        assert await sub.visit(addresses[:1], "said") == ["said"]
        opened = await sub.opened()
        assert await sub.visit(addresses[:1], "said") == ["said"]
        assert await sub.opened() == opened

    with pools(n_process=1, XOSCAR_SUPERVISE="observe", XOSCAR_IDLE_TIMEOUT=idle_timeout) as hosted:
        asyncio.run(look(hosted.addresses))


@pytest.mark.parametrize("supervise", ["off", "0", ""])
def test_none_is_active_where_it_is_off(supervise: str) -> None:
    async def active(addresses: list[str]) -> list[Any]:
        return [await (await worker(address)).active() for address in addresses]

    with pools(n_process=1, XOSCAR_SUPERVISE=supervise) as hosted:
        assert asyncio.run(active(hosted.addresses)) == [False, False]


def test_what_a_process_changes_holds_there() -> None:

    async def look(addresses: list[str]) -> None:
        main = await worker(addresses[0])
        await main.configure(supervise="off")
        assert await main.environment("XOSCAR_SUPERVISE") == "off"
        assert await main.active()
        sub = await worker(addresses[1])
        assert (await sub.settings())["supervise"] == "observe"

    with pools(n_process=1, XOSCAR_SUPERVISE="observe") as hosted:
        asyncio.run(look(hosted.addresses))
