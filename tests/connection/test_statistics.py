"""The counts add up, and agree with what the kernel sees."""

from __future__ import annotations

import asyncio
import os
import threading
from typing import Any

import psutil
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

import xoscar_idle
from xoscar_idle import config
from xoscar_idle.connection import counters, registry, statistics
from xoscar_idle.connection.caller import ActorCaller
from xoscar_idle.connection.cap import Cap
from xoscar_idle.connection.counters import REASONS
from xoscar_idle.connection.statistics import Statistics
from xoscar_idle.telemetry import pool_query

from ..support.crashing import run
from ..support.hosting import pools, worker
from ..support.memory import Connection, Network, VirtualTimeLoop, message, settle
from ..support.waiting import eventually_here

pytestmark = pytest.mark.integration


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["call", "reply", "hang up", "fail", "wait", "retire", "cancel", "stop"]),
        st.integers(0, 4),
    ),
    max_size=40,
)


@given(STEPS)
@hypothesis_settings(max_examples=60, deadline=None)
def test_opened_is_open_and_closed_at_every_moment(steps: list[tuple[str, int]]) -> None:
    async def main() -> None:
        caller, network = ActorCaller(clock=loop.time, cap=Cap(3)), Network()
        registry._threads.append(held := registry._Held(lambda: None))
        held.callers[loop] = caller
        waiting: list[tuple[Connection, Any, Any]] = []
        try:
            for step, n in steps:
                await one(step, n, caller, network, waiting)
                check(statistics.statistics(), caller, network)
        finally:
            await caller.stop()
            check(statistics.statistics(), caller, network)
            registry._threads.pop()
        assert statistics.statistics().open == start.open

    async def one(
        step: str, n: int, caller: ActorCaller, network: Network, waiting: list[Any]
    ) -> None:
        if step == "call":
            reply = await caller.call(network, f"{n}:1", sent := message(), wait=False)
            connection = next(c for c in network.opened if sent in c.sent)
            waiting.append((connection, sent, reply))
        elif step == "fail":
            network.failure = ConnectionRefusedError(111, "refused")
            with pytest.raises(ConnectionRefusedError):
                await caller.call(network, f"refused-{n}:1", message())
            network.failure = None
        elif step == "wait":
            await asyncio.sleep(10 * n)
        elif step == "stop" and n == 0:
            await caller.stop()
        elif step == "retire" and n == 0:
            caller.retire("age")
        elif waiting and step in ("reply", "hang up", "cancel"):
            connection, sent, reply = waiting.pop(n % len(waiting))
            if step == "reply":
                connection.reply(sent)
            elif step == "cancel":
                reply.cancel()
            else:
                connection.hang_up()
            await settle()

    def check(now: Statistics, caller: ActorCaller, network: Network) -> None:
        assert now.opened - start.opened == len(network.opened)
        assert now.opened == now.open + sum(now.closed.values())
        assert set(now.closed) == set(REASONS)
        assert now.open == now.active + now.idle + now.retired
        assert now.requests_in_flight == sum(c.in_flight for c in caller.connections())
        infos = statistics.connections()
        assert sorted(i.in_flight for i in infos) == sorted(
            c.in_flight for c in caller.connections()
        )
        histogram, number, seconds = counters.connect_histogram()
        assert [count for _, count in histogram] == sorted(count for _, count in histogram)
        assert number >= now.connects_failed
        assert seconds == now.connect_seconds

    start = statistics.statistics()
    before = config.current()
    config.use(config.Settings())
    loop = VirtualTimeLoop()
    loop.run_until_complete(main())
    loop.close()
    config.use(before)


def tcp() -> list[Any]:
    """This process's TCP connections, as the kernel knows them."""
    return [c for c in psutil.Process().net_connections("tcp") if c.status == "ESTABLISHED"]


def established() -> set[int]:
    """Their descriptors."""
    return {each.fd for each in tcp()}


def test_agrees_with_the_kernel(active: None) -> None:
    xoscar_idle.install(idle_timeout=600)

    async def main() -> None:
        before, start = established(), statistics.statistics()
        actor = await worker(hosted.addresses[0])
        busy = asyncio.ensure_future(actor.hold())
        for address in hosted.addresses[1:]:
            await (await worker(address)).echo(1)
        # A pool that is new is asked, in the background, for its main pool.
        await eventually_here(lambda: statistics.statistics().active == 1)
        now, records = statistics.statistics(), statistics.connections()
        assert (now.open, now.active, now.idle) == (5, 1, 4)
        assert {r.descriptor for r in records} == established() - before
        assert {r.route for r in records} == set(hosted.addresses)
        (used,) = [r for r in records if r.idle is None]
        assert (used.route, used.in_flight, used.transport) == (hosted.addresses[0], 1, "socket")
        assert used.thread == threading.get_ident()
        assert "1 in use" in repr(used)
        xoscar_idle.configure(idle_timeout=0.1)
        await eventually_here(lambda: statistics.statistics().open == 1)
        assert len(established() - before) == 1
        await actor.release()
        await busy
        await eventually_here(lambda: not statistics.connections())
        now = statistics.statistics()
        assert now.closed["idle"] - start.closed["idle"] == 5
        assert established() == before

    with pools(5) as hosted:
        asyncio.run(main())


@pytest.mark.parametrize("on_uvloop", [False, True], ids=["asyncio", "uvloop"])
def test_own_ends_are_those_that_the_other_side_sees(active: None, on_uvloop: bool) -> None:
    xoscar_idle.install(idle_timeout=600)

    async def main() -> None:
        for address in hosted.addresses:
            await (await worker(address)).echo(1)
        await (await worker(hosted.addresses[0])).visit(hosted.addresses[1:])
        records = statistics.connections()
        kernel = {each.fd: "{}:{}".format(*each.laddr) for each in tcp()}
        assert len(records) == 2
        for each in records:
            assert each.descriptor is not None
            assert each.local == kernel[each.descriptor]
        first, second = await pool_query.ask(hosted.addresses[0])
        told = [(each["peer"], each["address"]) for one in (first, second) for each in one.accepted]
        assert {(each.local, each.route) for each in records} <= set(told)
        unix = [each for each in first.connections if each["transport"] == "unixsocket"]
        assert {each["local"] for each in unix} == {None}

    with pools(1, 1, XOSCAR_IDLE_TIMEOUT="600") as hosted:
        run(main(), on_uvloop)


def test_settings_and_where_they_came_from(active: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XOSCAR_CONNECT_TIMEOUT", "8")
    monkeypatch.setenv("XOSCAR_MAX_CONNECTIONS", "many")
    xoscar_idle.install(idle_timeout=30)
    now = xoscar_idle.statistics()
    assert now.settings == config.Settings()
    assert now.origins["idle_timeout"] == "code"
    assert now.origins["connect_timeout"] == "environment"
    assert now.origins["max_connections"] == "default"
    assert "0 open" in repr(now)


def test_a_child_counts_its_parents_connections_as_closed(active: None) -> None:
    xoscar_idle.install(idle_timeout=30)

    async def main() -> None:
        for address in hosted.addresses:
            await (await worker(address)).echo(1)
        before = statistics.statistics()
        pid = os.fork()
        if pid == 0:
            now = statistics.statistics()
            right = now.open == 0 and now.closed["fork"] - before.closed["fork"] == 3
            os._exit(0 if right else 1)
        _, status = await asyncio.to_thread(os.waitpid, pid, 0)
        assert status == 0
        assert statistics.statistics().open == 3

    with pools(3) as hosted:
        asyncio.run(main())
