"""How long calls took: each is counted once, and what is told stays bounded."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from xoscar.backends.message import ForwardMessage, SendMessage, new_message_id
from xoscar.core import create_actor_ref
from xoscar.errors import ServerClosed

from xoscar_idle import config
from xoscar_idle.connection import counters, deadlines, tally
from xoscar_idle.connection.caller import ActorCaller
from xoscar_idle.connection.tally import ALL, BUCKETS, MOST_METHODS, OTHERS

from ..support.memory import Network, VirtualTimeLoop, message

ACTOR = create_actor_ref("far:1", b"model")


@pytest.fixture(autouse=True)
def nothing_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tally, "_tallies", [])
    monkeypatch.setattr(tally, "_gone", {})
    monkeypatch.setattr(tally, "_methods", set())
    monkeypatch.setattr(counters, "_counters", counters._Counters())


@pytest.fixture(autouse=True)
def settings() -> Iterator[None]:
    before = config.current()
    yield
    config.use(before)


def calling(method: str) -> Any:
    return SendMessage(new_message_id(), ACTOR, (method, 0, (), {}))


def counted() -> dict[str, tuple[int, float]]:
    found = {method: (each.count, each.seconds) for method, each in tally.so_far().items()}
    return {method: told for method, told in found.items() if told[0]}


def run(main: Any) -> None:
    """With a caller whose loop's time is virtual."""
    loop = VirtualTimeLoop()

    async def within() -> None:
        caller, network = ActorCaller(clock=loop.time), Network()
        try:
            await main(caller, network)
        finally:
            await caller.stop()

    loop.run_until_complete(within())
    loop.close()


async def call(caller: Any, network: Network, sent: Any, seconds: float) -> None:
    reply = await caller.call(network, "far:1", sent, wait=False)
    await asyncio.sleep(seconds)
    network.opened[-1].reply(sent)
    await reply


@pytest.mark.parametrize("mode", ["off", "total", "method"])
def test_each_call_is_counted_as_is_asked_for(mode: str) -> None:
    config.use(config.Settings(idle_timeout=0, call_metrics=mode))

    async def main(caller: Any, network: Network) -> None:
        for seconds, method in [(0.5, "load"), (4, "generate"), (2, "generate")]:
            await call(caller, network, calling(method), seconds)
        await call(caller, network, message(), 1)

    run(main)
    assert (
        counted()
        == {
            "off": {},
            "total": {ALL: (4, 7.5)},
            "method": {"load": (1, 0.5), "generate": (2, 6), "(control)": (1, 1)},
        }[mode]
    )


def test_a_call_through_a_proxy_is_one_of_its_method() -> None:
    config.use(config.Settings(idle_timeout=0, call_metrics="method"))
    within = calling("generate")
    forwarded = ForwardMessage(new_message_id(), "far:1", within)

    async def main(caller: Any, network: Network) -> None:
        await call(caller, network, forwarded, 1)

    run(main)
    assert counted() == {"generate": (1, 1)}
    assert deadlines.describe(forwarded) == deadlines.describe(within)


def test_the_classes_are_those_of_their_bounds() -> None:
    config.use(config.Settings(idle_timeout=0))

    async def main(caller: Any, network: Network) -> None:
        for bound in BUCKETS:
            await call(caller, network, message(), 0.9 * bound)
        await call(caller, network, message(), 1000)

    run(main)
    found = tally.so_far()[ALL]
    assert found.cumulative() == [(bound, n) for n, bound in enumerate(BUCKETS, 1)]
    assert found.count == len(BUCKETS) + 1


def test_a_change_holds_from_the_next_reply_on() -> None:
    config.use(config.Settings(idle_timeout=0, call_metrics="total"))

    async def main(caller: Any, network: Network) -> None:
        await call(caller, network, calling("load"), 1)
        for mode in ("method", "off", "total"):
            config.use(config.Settings(idle_timeout=0, call_metrics=mode))
            caller.apply_settings()
            await call(caller, network, calling("load"), 1)

    run(main)
    assert counted() == {ALL: (2, 2), "load": (1, 1)}


def test_what_gets_no_reply_is_none_of_them() -> None:
    """Nor is what we ask ourselves; what is lost, or late, is counted apart."""
    config.use(config.Settings(idle_timeout=0))

    async def main(caller: Any, network: Network) -> None:
        cancelled = await caller.call(network, "far:1", message(), wait=False)
        cancelled.cancel()
        lost = await caller.call(network, "far:1", message(), wait=False)
        (client,) = caller.connections()
        probe = await client.request(message(), ours=True)
        connection = network.opened[-1]
        connection.reply(connection.sent[-1])
        await probe
        connection.hang_up()
        with pytest.raises(ServerClosed):
            await lost

    run(main)
    assert counted() == {}
    assert counters.events()["lost"] == 1


@pytest.mark.parametrize("methods", [MOST_METHODS, MOST_METHODS + 1, 200])
def test_labels_are_bounded_whatever_is_called_and_by_however_many(methods: int) -> None:
    config.use(config.Settings(idle_timeout=0, call_metrics="method"))

    async def main(caller: Any, network: Network) -> None:
        for n in range(methods):
            await call(caller, network, calling(f"method_{n}"), 1)

    for _ in range(3):
        run(main)
    gc.collect()
    found = counted()
    assert sum(count for count, _ in found.values()) == 3 * methods
    named = {f"method_{n}" for n in range(min(methods, MOST_METHODS))}
    assert set(found) == named | ({OTHERS} if methods > MOST_METHODS else set())
    if methods > MOST_METHODS:
        assert found[OTHERS][0] == 3 * (methods - MOST_METHODS)


def test_threads_that_have_gone_leave_their_counts_and_nothing_else() -> None:
    config.use(config.Settings(idle_timeout=0))

    async def main(caller: Any, network: Network) -> None:
        await call(caller, network, message(), 1)

    for _ in range(20):
        thread = threading.Thread(target=run, args=(main,))
        thread.start()
        thread.join()
    gc.collect()
    run(main)
    assert counted() == {ALL: (21, 21)}
    assert len(tally._tallies) <= 2


def test_several_callers_are_one_process() -> None:
    config.use(config.Settings(idle_timeout=0))

    async def main(caller: Any, network: Network) -> None:
        await call(caller, network, message(), 1)
        second = ActorCaller(clock=asyncio.get_running_loop().time)
        await call(second, Network(), message(), 1)
        await call(caller, network, message(), 1)
        await second.stop()

    run(main)
    assert counted() == {ALL: (3, 3)}


def test_it_is_read_while_calls_are_made() -> None:
    """From another thread; nothing is lost, and nothing fails."""
    config.use(config.Settings(idle_timeout=0, call_metrics="method"))
    ended = threading.Event()
    read: list[int] = []

    async def main(caller: Any, network: Network) -> None:
        for n in range(2000):
            await call(caller, network, calling(f"method_{n % 70}"), 0.001)

    def reading() -> None:
        while not ended.is_set():
            read.append(sum(each.count for each in tally.so_far().values()))

    thread = threading.Thread(target=reading)
    thread.start()
    try:
        run(main)
    finally:
        ended.set()
        thread.join()
    assert read == sorted(read)
    assert sum(count for count, _ in counted().values()) == 2000
