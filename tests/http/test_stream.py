"""The events as they are sent, without a network."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from typing import Any

from xoscar_idle.http.stream import Streams
from xoscar_idle.supervision.events import REMEMBERED, Events
from xoscar_idle.supervision.lineage import Lineage

from ..support.waiting import bounded

LINEAGE = Lineage(1, "127.0.0.1:1")


def journal(events: int = 0) -> Events:
    made = Events(REMEMBERED)
    for number in range(events):
        made.happened("state", LINEAGE, "healthy", f"{number}")
    return made


async def frame(stream: AsyncIterator[bytes]) -> list[tuple[str, str, Any]]:
    """Id, kind and data of what comes next."""
    text = (await bounded(anext(stream))).decode()
    found = re.findall(r"id: (.*)\nevent: (.*)\ndata: (.*)\n\n", text)
    return [(id_, event, json.loads(data)) for id_, event, data in found]


async def begun(streams: Streams, last: str | None) -> AsyncIterator[bytes]:
    stream = streams.follow(last)
    assert (await bounded(anext(stream))) == b"retry: 1000\n\n"
    return stream


async def test_from_now_on() -> None:
    of = journal(3)
    stream = await begun(Streams(of), None)
    waiting = asyncio.ensure_future(frame(stream))
    await asyncio.sleep(0)
    of.happened("crash", LINEAGE, "healthy", "it died\nof this")
    ((id_, kind, data),) = await bounded(waiting)
    assert (id_, kind) == (f"{of.name}-4", "crash")
    assert data["text"] == "it died\nof this", "a line end would end the data"
    assert data["sequence"] == 4


async def test_what_has_come_meanwhile() -> None:
    of = journal(5)
    streams = Streams(of)
    assert [id_ for id_, _, _ in await frame(await begun(streams, f"{of.name}-3"))] == [
        f"{of.name}-4",
        f"{of.name}-5",
    ]
    assert len(await frame(await begun(streams, "0"))) == 5


async def test_a_gap_is_told_as_one() -> None:
    of = journal(REMEMBERED + 7)
    stream = await begun(Streams(of), f"{of.name}-2")
    assert await frame(stream) == [(f"{of.name}-7", "gap", {"missed": 5})]
    told = await frame(stream)
    assert [data["sequence"] for _, _, data in told] == list(range(8, REMEMBERED + 8))


async def test_ids_that_are_not_known() -> None:
    """Of another process, or none at all: all is told, behind a gap of which nothing is known."""
    of = journal(2)
    streams = Streams(of)
    for last in ("other-1", "", "-", "-1", f"{of.name}-3", f"{of.name}-{'9' * 50}", "ä", "1-²"):
        stream = await begun(streams, last)
        assert await frame(stream) == [(f"{of.name}-0", "gap", {"missed": None})]
        assert len(await frame(stream)) == 2
    again = await begun(streams, f"{of.name}-0")
    assert len(await frame(again)) == 2, "the id of the gap"


async def test_it_ends_with_the_server_and_with_the_client() -> None:
    of = journal()
    streams = Streams(of)
    stream = await begun(streams, None)
    waiting = asyncio.ensure_future(anext(stream, b"the end"))
    other = await begun(streams, None)
    assert len(streams._waiting) == 2
    await other.aclose()  # type: ignore[attr-defined]
    assert len(streams._waiting) == 1
    await asyncio.sleep(0)
    streams.close()
    assert await bounded(waiting) == b"the end"
    assert not streams._waiting
    assert not of._listeners


async def test_so_far() -> None:
    of = journal(3)
    streams = Streams(of)
    told = streams.so_far(None)
    assert (told["last"], told["missed"], told["journal"]) == (3, 0, of.name)
    assert streams.so_far(f"{of.name}-3")["events"] == []
    assert streams.so_far(f"{of.name}-3")["last"] == 3
    assert streams.so_far("other-3")["missed"] is None
