"""What the processes of the crash do: host a model in each of two sub-pools, or call one."""

from __future__ import annotations

import asyncio
import logging
import time

import xoscar as xo

from ... import pools
from .orders import Orders, report
from .process import PATIENCE

# Times are in seconds.
PAUSE = 0.05  # between tries, and between looks at the states
A_MOMENT = 0.01
AN_HOUR = 3600.0


class Model(xo.StatelessActor):  # type: ignore[misc]
    """Answers after a while, and tells when it has begun to."""

    def __init__(self) -> None:
        super().__init__()
        self._begun = asyncio.Event()

    async def chat(self, seconds: float) -> str:
        self._begun.set()
        await asyncio.sleep(seconds)
        return "an answer"

    async def begun(self) -> None:
        await self._begun.wait()


async def host(orders: Orders) -> None:
    """Host the models, and tell what states the first one's sub-pool gets into."""
    logging.disable()  # what is logged of the crash, callers are shown to read
    # Internal addresses would be unix sockets, whose files outlive a process that is ended.
    pool = await xo.create_actor_pool(
        "127.0.0.1", n_process=2, enable_internal_addresses=[False] * 3
    )
    for number, address in enumerate(pool.sub_processes, 1):
        await xo.create_actor(Model, uid=f"model-{number}", address=address)
    address, process = next(iter(pool.sub_processes.items()))
    report("ready", {"address": address, "uid": "model-1", "pid": process.pid})
    await orders.next()
    states: list[tuple[str, float]] = []
    while True:
        for info in pools():
            if info.address == address and (info.state, info.since) not in states:
                states.append((info.state, info.since))
                report("states", states)
                if info.restarts and info.state == "healthy":
                    report("recovered", info.restarts)
        await asyncio.sleep(PAUSE)


async def call(orders: Orders) -> None:
    """Have a call in flight, and when that has failed, call until there is an answer."""
    report("ready", True)
    target = await orders.next()
    model = await xo.actor_ref(address=target["address"], uid=target["uid"])
    chat = asyncio.create_task(model.chat(AN_HOUR))
    await model.begun()
    report("in flight", True)
    outcome: object = (await asyncio.gather(chat, return_exceptions=True))[0]
    crashed = time.time()
    report("crashed", {"at": crashed, "error": f"{type(outcome).__name__}: {outcome}"})
    errors = []
    while time.time() < crashed + PATIENCE:
        try:
            await xo.wait_for(model.chat(A_MOMENT), crashed + PATIENCE - time.time())
        except Exception as error:
            errors.append(f"{type(error).__name__}: {error}")
            report("failed", {"first": errors[0], "calls": len(errors)})
            await asyncio.sleep(PAUSE)
        else:
            report("answered", time.time())
            break
    report("done", True)
    await asyncio.Event().wait()
