"""The accepting side's own work per request, from the message to its reply: instructions.

``python -m benchmarks.request_work SIDE CALLS`` takes that many requests under callgrind. The
bytes, on their way in and out, are left out: they are the same for everybody.
"""

from __future__ import annotations

import asyncio
import gc
import sys
from types import SimpleNamespace
from typing import Any

import xoscar as xo
from xoscar.backends.indigen.pool import SubActorPool
from xoscar.backends.message import SendMessage, new_message_id

import xoscar_idle
from xoscar_idle.supervision import beat
from xoscar_idle.supervision.page import Page

from . import callgrind
from .harness import OURS, STOCK
from .pools import UID, Echo

TOLD = "ours, told to a page"
SIDES = (STOCK, OURS, TOLD)


def measure(calls: int) -> dict[str, dict[str, float]]:
    """What callgrind counts per request: stock's, ours, and ours with a page, as sub-pools have."""
    return callgrind.counted(__spec__.name, SIDES, calls)


async def _take(side: str, calls: int) -> None:
    pool = await xo.create_actor_pool("127.0.0.1", n_process=0)
    actor = await xo.create_actor(Echo, uid=UID, address=pool.external_address)
    pool._message_handler = SubActorPool._message_handler

    async def send(_: Any) -> None:
        pass

    channel: Any = SimpleNamespace(send=send, closed=False)
    if side == TOLD:
        beat._page = Page.create()

    def messages(n: int) -> list[Any]:
        content: Any = ("size", 0, (b"",), {})
        return [SendMessage(new_message_id(), actor, content) for _ in range(n)]

    for message in messages(100):
        await pool.process_message(message, channel)
    asked = messages(calls)
    gc.collect()
    gc.freeze()  # whether all that was imported is looked at once more is chance
    callgrind.count("on")
    for message in asked:
        await pool.process_message(message, channel)
    callgrind.count("off")
    await pool.stop()


if __name__ == "__main__":
    if sys.argv[1] != STOCK:
        xoscar_idle.install(idle_timeout=30)
    asyncio.run(_take(sys.argv[1], int(sys.argv[2])))
