"""What the pools of a process are called, by whom they know."""

from __future__ import annotations

import asyncio

import pytest
import xoscar as xo

import xoscar_idle
from xoscar_idle.connection import hosted
from xoscar_idle.connection.hosted import PoolName

from ..support.hosting import Worker

pytestmark = pytest.mark.integration


def named() -> list[PoolName]:
    return [each for each in hosted.names() if each.main == MAIN[0]]


MAIN: list[str] = []


@pytest.mark.parametrize("when", ["before", "after"])
def test_pools_and_their_siblings(active: None, when: str) -> None:
    """Whether the package is installed before the pools are made, or after it."""

    async def main() -> None:
        if when == "before":
            xoscar_idle.install(idle_timeout=30)
        pool = await xo.create_actor_pool("127.0.0.1", n_process=1, labels=["front", "gpu"])
        async with pool:
            xoscar_idle.install(idle_timeout=30)
            main_pool, sub_pool = pool._config.get_external_addresses()
            MAIN[:] = [main_pool]
            for n in range(hosted.MOST_ACTORS + 5):
                await xo.create_actor(Worker, uid=f"worker-{n}", address=main_pool)
            await xo.create_actor(Worker, uid="far", address=sub_pool)
            first, second = named()
            assert (first.address, first.index, first.label) == (main_pool, 0, "front")
            assert (first.here, second.here) == (True, False)
            assert first.n_actors == hosted.MOST_ACTORS + 5
            assert set(first.actors) == {f"worker-{n}" for n in range(hosted.MOST_ACTORS)}
            assert (second.address, second.index, second.label) == (sub_pool, 1, "gpu")
            assert (second.actors, second.n_actors) == ([], 0)
            assert {first.route, second.route} == {
                each["internal_address"] for each in pool._config.as_dict()["pools"].values()
            }
            added = await pool.append_sub_pool(label="late")
            assert [each.label for each in named()] == ["front", "gpu", "late"]
            await pool.remove_sub_pool(added)
            assert [each.label for each in named()] == ["front", "gpu"]
            await pool.append_sub_pool(label="later")
            assert [(each.index, each.label) for each in named()[2:]] == [(3, "later")]

    asyncio.run(main())


@pytest.mark.parametrize(
    ("index", "first", "number"),
    [(7 << 16, 7 << 16, 0), (7 << 19, 7 << 16, 3), (5, 3, 9), (6, 0, 9), (3 * 7, 7, 9), (2, 4, 9)],
)
def test_the_numbers_of_pools(index: int, first: int, number: int) -> None:
    assert hosted._number(index, first, 9) == number


def test_a_pool_that_cannot_be_read_hides_no_other(active: None) -> None:
    class Broken:
        pass

    broken = Broken()
    hosted.add(broken)
    assert broken in hosted.pools()
    assert [each for each in hosted.names() if each.here and each.main == "nowhere"] == []
    del broken
