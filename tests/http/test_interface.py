"""What is answered over HTTP, of real pools that are killed, blocked and steered."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import xoscar as xo

import xoscar_idle
from xoscar_idle.http import server

from ..support import crashing, web
from ..support.crashing import error_of, victim
from ..support.waiting import BOUND, bounded, eventually, eventually_here, eventually_told
from .conftest import Served

pytestmark = pytest.mark.integration


async def pid_of(address: str) -> int:
    return int(await (await victim(address)).pid())


async def test_all_is_well(served: Served) -> None:
    assert (await served.ask("/livez")).json == {"status": "alive"}
    ready = await served.ask("/readyz")
    assert (ready.status, ready.json["status"]) == (200, "ready")
    assert (ready.json["healthy"], ready.json["total"], ready.json["needed"]) == (2, 2, 2)
    health = await served.ask("/health")
    assert (health.status, health.json["status"], health.json["reasons"]) == (200, "healthy", [])
    assert health.json["pid"] == os.getpid()
    (main,) = health.json["mains"]
    assert (main["address"], main["state"]) == (served.pool.external_address, "healthy")
    told = {each["address"]: each for each in health.json["pools"]}
    for pool in xoscar_idle.pools():
        assert told[pool.address].keys() == vars(pool).keys()
        assert told[pool.address]["pid"] == pool.pid
    for name, value in (("cache-control", "no-store"), ("x-content-type-options", "nosniff")):
        assert health.headers[name] == value


async def test_a_kill_is_told_to_whoever_asks(served: Served) -> None:
    go_on = crashing.gated(served.pool)
    first, second = served.addresses
    pid = await pid_of(first)
    call = asyncio.ensure_future(error_of((await victim(first)).hold()))
    await eventually_here(lambda: xoscar_idle.pools()[0].in_process == 1)
    os.kill(pid, signal.SIGKILL)
    await eventually_here(lambda: xoscar_idle.pools()[0].state == "recovering")
    ready = await served.ask("/readyz")
    assert (ready.status, ready.json["healthy"]) == (503, 1)
    assert f"pool {first} is recovering" in ready.json["reasons"][0]
    assert (await served.ask("/readyz?min_healthy=1")).status == 200
    assert (await served.ask("/readyz?min_healthy=3")).status == 503
    assert (await served.ask("/livez")).status == 200, "the process is what recovers it"
    assert (await served.ask("/health")).status == 503
    status = (await served.ask("/v1/fault_tolerance/status")).json
    assert (status["schema_version"], status["total_engines"]) == (1, 2)
    lost, other = status["engines"]
    assert (lost["id"], lost["status"], lost["state"]) == (lost["id"], "unhealthy", "recovering")
    assert (other["status"], other["fault_info"], other["address"]) == ("healthy", None, second)
    crash = (await served.ask(f"/v1/fault_tolerance/crashes/{lost['id']}")).json
    assert crash == lost["fault_info"]
    assert (crash["pid"], crash["signal"], crash["in_flight"]) == (pid, "SIGKILL", 1)
    assert f"pool {first} (pid {pid}) was killed by SIGKILL" in crash["line"]
    assert str(await bounded(call)).startswith(crash["line"])
    assert (await served.ask(f"/v1/fault_tolerance/crashes/{other['id']}")).status == 404
    go_on.set()
    await eventually_told(lambda: _is_ready(served))


async def _is_ready(served: Served) -> bool:
    return (await served.ask("/readyz")).status == 200


async def test_log_tails_are_for_who_has_the_token(acting: Callable[..., None]) -> None:
    acting(health_address=f"{web.WEB}:0", health_token=web.TOKEN, capture_stderr=1)
    async with crashing.pool(1) as pool:
        served = Served(pool, f"{server.where()}")
        await error_of((await victim(served.addresses[0])).die("abort"))
        path = f"/v1/fault_tolerance/crashes/{xoscar_idle.pools()[0].lineage}"
        without, with_ = await served.ask(path), await served.ask(path, **web.BEARER)
        assert without.json["log_tail"] is None
        assert "the last words" in with_.json["log_tail"]
        assert "in die" in without.json["stacks"]
        for answer, is_told in ((await served.ask("/v1/fault_tolerance/status"), False),):
            assert ("the last words" in answer.text) == is_told
        status = await served.ask("/v1/fault_tolerance/status", **web.BEARER)
        assert "the last words" in status.text


async def test_while_the_loop_of_the_main_pool_is_blocked(served: Served) -> None:
    """By a thread that asks; this test's own loop is the main pool's."""
    seen: dict[str, web.Answer] = {}

    def look() -> None:
        def is_busy() -> bool:
            seen["ready"] = web.request(served.where, "/readyz")
            return bool(seen["ready"].status == 503)

        eventually(is_busy)
        seen["alive"] = web.request(served.where, "/livez")
        seen["patient"] = web.request(served.where, "/livez?max_lag=3600")
        seen["blocked"] = web.request(served.where, "/livez?max_lag=1")
        with web.events(served.where, last_event_id="0") as stream:
            assert stream.next().event == "state"
        body = {"instruction": "pause", "params": {"address": served.addresses[0]}}
        path = "/v1/fault_tolerance/apply"
        seen["accepted"] = web.request(served.where, path, "POST", body, **web.BEARER)
        seen["page"] = web.request(served.where, "/")
        seen["metrics"] = web.request(served.where, "/metrics")

    looking = threading.Thread(target=look)
    looking.start()
    looking.join(BOUND)  # here the loop is blocked
    assert not looking.is_alive()
    ready = seen["ready"].json
    assert "is busy: its event loop has not answered for" in ready["reasons"][0]
    (main,) = ready["mains"]
    assert main["state"] == "busy"
    assert "in test_while_the_loop_of_the_main_pool_is_blocked" in main["doing"]
    assert main["loop_lag"] >= 2
    statuses = {name: each.status for name, each in seen.items()}
    assert statuses == {
        "ready": 503,
        "alive": 200,
        "patient": 200,
        "blocked": 503,
        "accepted": 202,
        "page": 200,
        "metrics": 200,
    }
    await eventually_here(lambda: xoscar_idle.pools()[0].state == "paused")
    await eventually_told(lambda: _is_ready(served))


# -- instructions ----------------------------------------------------------------------------------


async def test_a_restart(served: Served) -> None:
    address = served.addresses[0]
    pid = await pid_of(address)
    lineage = xoscar_idle.pools()[0].lineage
    accepted = await served.steer(
        "restart", id=lineage, expect_incarnation=1, drain=5, request_id="r-1"
    )
    assert (accepted.status, accepted.json["request_id"]) == (202, "r-1")
    path = "/v1/fault_tolerance/apply/r-1"

    async def ended() -> Any:
        told = (await served.ask(path)).json
        return told if told["ended"] else None

    told = await eventually_told(ended)
    assert (told["status"], told["reason"]) == ("succeeded", "it has been replaced")
    assert (told["lineage"], told["incarnation"]) == (lineage, 2)
    assert await pid_of(address) != pid
    again = await served.steer(
        "restart", id=lineage, expect_incarnation=1, drain=5, request_id="r-1"
    )
    assert again.json["applied"] == told, "it is not carried out twice"
    other = await served.steer("pause", id=lineage, request_id="r-1")
    assert (other.status, "use another one" in other.json["detail"]) == (409, True)
    stale = await served.steer("restart", id=lineage, expect_incarnation=1)
    assert (stale.status, "in its incarnation 2, not 1" in stale.json["detail"]) == (409, True)


async def test_the_same_request_for_one_that_has_moved(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program's own recovery has given its successor another address."""

    async def elsewhere(address: str) -> None:
        await served.pool.remove_sub_pool(address)
        await served.pool.append_sub_pool()

    served.pool.recover_sub_pool = elsewhere
    lineage = xoscar_idle.pools()[0].lineage
    first = await served.steer("restart", id=lineage, request_id="moves")

    async def ended() -> Any:
        told = (await served.ask("/v1/fault_tolerance/apply/moves")).json
        return told if told["ended"] else None

    told = await eventually_told(ended)
    assert told["status"] == "succeeded", told
    assert told["address"] != served.addresses[0]
    again = await served.steer("restart", id=lineage, request_id="moves")
    assert (again.status, again.json["applied"]) == (202, told)
    assert first.status == 202


@pytest.mark.parametrize(
    ("body", "status", "detail"),
    [
        ("{", 400, "JSON decode error"),
        ("[]", 400, "body"),
        (" " * 100_000, 413, "more than 65536 bytes"),
        ("[" * 60_000, 400, ""),
        (b"\xff\xfe", 400, ""),
        ('{"instruction": 1e9999}', 400, ""),
        (
            {"instruction": "scale_down", "params": {"id": 1}},
            400,
            "unknown instruction 'scale_down'; there are pause, resume, restart, retry, give_up",
        ),
        ({"instruction": "restart"}, 400, "body.params: Field required"),
        ({"instruction": "restart", "params": {}}, 400, "id: Field required"),
        ({"instruction": "restart", "params": {"id": 1}, "force": True}, 400, "force: Extra"),
        (
            {"instruction": "restart", "params": {"id": 1, "drain": -1}},
            400,
            "body.params.drain: Input should be greater than or equal to 0",
        ),
        ({"instruction": "restart", "params": {"id": "1"}}, 400, "valid integer"),
        (
            {"instruction": "pause", "params": {"id": 1, "drain": 1}},
            400,
            "body.params.drain: Extra inputs are not permitted",
        ),
        ({"instruction": "pause", "params": {"id": 1, "address": "a:1"}}, 400, "Extra"),
        ({"instruction": "pause", "params": {"id": 1}, "request_id": ""}, 400, "request_id"),
        ({"instruction": "pause", "params": {"id": 1}, "request_id": "a/b"}, 400, "request_id"),
        ({"instruction": "pause", "params": {"id": 2**31 - 1}}, 404, "no sub-pool 2147483647"),
        ({"instruction": "pause", "params": {"address": "127.0.0.1:1"}}, 404, "127.0.0.1:1"),
        ({"instruction": "pause", "params": {"address": "\ud800"}}, 400, "address"),
    ],
)
async def test_what_is_no_instruction(
    served: Served, body: object, status: int, detail: str
) -> None:
    path = "/v1/fault_tolerance/apply"
    answer = await served.ask(path, "POST", body=body, **web.BEARER)
    assert answer.status == status, answer.text
    assert detail in answer.json["detail"]
    assert "By" not in answer.json["detail"], "names of shapes tell nobody anything"
    assert all(each.state == "healthy" for each in xoscar_idle.pools())


async def test_a_body_that_is_no_json(served: Served) -> None:
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""):
        answer = await served.ask(
            "/v1/fault_tolerance/apply", "POST", body="a=b", content_type=kind, **web.BEARER
        )
        assert answer.status == 415


async def test_where_nothing_is_acted_on(served: Served, acting: Callable[..., None]) -> None:
    acting(supervise="observe")
    answer = await served.steer("restart", address=served.addresses[0])
    assert (answer.status, "XOSCAR_SUPERVISE=act is not set" in answer.text) == (409, True)
    assert (await served.ask("/health")).json["acts"] is False


# -- who may ---------------------------------------------------------------------------------------


async def test_nothing_is_steered_without_the_token(served: Served) -> None:
    path, lineage = "/v1/fault_tolerance/apply", xoscar_idle.pools()[0].lineage
    body = {"instruction": "give_up", "params": {"id": lineage}}
    assert (await served.ask(path, "POST", body=body)).status == 401
    wrong = await served.ask(path, "POST", body=body, authorization="Bearer wrong")
    assert (wrong.status, wrong.headers["www-authenticate"]) == (401, "Bearer")
    assert (await served.ask(f"{path}?token={web.TOKEN}", "POST", body=body)).status == 400
    foreign = {"origin": "http://evil.com", **web.BEARER}
    assert (await served.ask(path, "POST", body=body, **foreign)).status == 403
    rebound = await served.ask("/health", host="evil.com")
    assert (rebound.status, "pools" in rebound.text) == (403, False)
    assert (await served.ask("/health", authorization="Bearer wrong")).status == 401
    assert all(each.state == "healthy" for each in xoscar_idle.pools())


async def test_nobody_steers_where_there_is_no_token(acting: Callable[..., None]) -> None:
    acting(health_address=f"{web.WEB}:0")
    async with crashing.pool(1) as pool:
        served = Served(pool, f"{server.where()}")
        answer = await served.steer("restart", address=served.addresses[0])
        assert (answer.status, "XOSCAR_HEALTH_TOKEN is not set" in answer.text) == (403, True)


async def test_a_token_that_changes(served: Served, acting: Callable[..., None]) -> None:
    acting(health_token="another-0123456789")
    assert (await served.steer("pause", address=served.addresses[0])).status == 401


# -- events ----------------------------------------------------------------------------------------


async def test_events_come_as_they_happen(served: Served) -> None:
    address = served.addresses[0]
    pid = await pid_of(address)
    with await asyncio.to_thread(web.events, served.where) as stream:
        await eventually_told(lambda: _follows(served))
        os.kill(pid, signal.SIGKILL)
        told = await bounded(
            asyncio.to_thread(stream.until, kind="state", address=address, incarnation=2)
        )
        assert [(each.event, each.data["state"]) for each in told[:3]] == [
            ("crash", "healthy"),
            ("state", "recovering"),
            ("state", "starting"),
        ]
        numbers = [each.data["sequence"] for each in told]
        assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    with await asyncio.to_thread(web.events, served.where, last_event_id=told[0].id) as again:
        assert await bounded(asyncio.to_thread(again.next)) == told[1]
    polled = await served.ask("/v1/events", accept="application/json", last_event_id=told[0].id)
    assert polled.json["events"][0] == told[1].data


async def _follows(served: Served) -> bool:
    """Whether somebody follows the events: the server has got to it."""
    from xoscar_idle.supervision.events import journal

    await served.ask("/livez")
    return bool(journal._listeners)


# -- the rest --------------------------------------------------------------------------------------


async def test_connections_and_metrics(served: Served) -> None:
    await pid_of(served.addresses[0])
    told = (await served.ask("/v1/connections")).json
    assert told["open"] == len(told["connections"]) == xoscar_idle.statistics().open
    metrics = await served.ask("/metrics")
    assert "xoscar_pool_state{" in metrics.text
    assert "process_open_fds" in metrics.text


async def test_there_is_nothing_else(served: Served) -> None:
    for path in ("/docs", "/redoc", "/livez/", "/v1", "/page.html", "/../etc/passwd", "//livez"):
        answer = await served.ask(path)
        assert (answer.status, answer.json) == (404, {"detail": "there is nothing at that address"})
    assert (await served.ask("/livez", "DELETE", **web.BEARER)).status == 405
    assert (await served.ask("/v1/fault_tolerance/crashes/x")).status == 400
    assert (await served.ask("/readyz?min_healthy=-1")).status == 400
    assert (await served.ask("/v1/fault_tolerance/apply/unknown")).status == 404


async def test_the_page_may_load_nothing_from_elsewhere(served: Served) -> None:
    page = await served.ask("/")
    assert page.headers["content-type"].startswith("text/html")
    policy = page.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert "unsafe" not in policy
    assert "//" not in page.text.replace("http://www.w3.org/2000/svg", "").split("<script>")[0]


async def test_calls_go_on_meanwhile(served: Served) -> None:
    """The calls of the program are answered while it is asked all the time."""
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            assert web.request(served.where, "/health").status == 200

    asking = [asyncio.ensure_future(asyncio.to_thread(ask)) for _ in range(2)]
    ref: Any = await xo.actor_ref(address=served.addresses[0], uid=served.addresses[0])
    begun = time.monotonic()
    for _ in range(50):
        assert await bounded(ref.pid())
    assert time.monotonic() - begun < BOUND
    stop.set()
    await bounded(asyncio.gather(*asking))
