"""What is answered over HTTP. Nothing here waits for an event loop of the program."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from fastapi import Body, Depends, FastAPI, Header, HTTPException, Query, Request
from fastapi import Path as InPath
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from fastapi.security import HTTPBearer
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .. import __version__, config
from ..connection import statistics
from ..supervision import answers, supervisor
from ..supervision.instructions import LONGEST_ID, Applied, InstructionRefused, Order
from ..supervision.record import CrashRecord
from ..supervision.state import PoolInfo, State
from ..telemetry.metrics import PrometheusCollector
from . import readiness, shapes
from .access import Asked, Door, judge
from .readiness import MainInfo
from .stream import Streams

try:
    import prometheus_client
except ImportError:
    prometheus_client = None  # type: ignore[assignment]

LARGEST = 64 * 1024
"""Bytes of a request's body."""

APPLY = "/v1/fault_tolerance/apply"

AUTHORIZED = "authorized"
"""Where it stands in the state of a request whether it has the token."""


class Json(JSONResponse):
    """In ASCII: text of programs may hold half characters, which no other encoding takes."""

    def render(self, content: Any) -> bytes:
        """As JSON has it."""
        return json.dumps(content, allow_nan=False).encode()


class Gate:
    """Lets in what :func:`.access.judge` lets in, with bodies that are JSON and not too large."""

    def __init__(self, app: ASGIApp, door: Callable[[], Door]) -> None:
        self._app = app
        self._door = door

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        headers = {k.decode("latin-1"): v.decode("latin-1") for k, v in scope["headers"]}
        answer, receive = await self._let_in(scope, headers, receive)
        await answer(scope, receive, send)

    async def _let_in(
        self, scope: Scope, headers: Mapping[str, str], receive: Receive
    ) -> tuple[ASGIApp, Receive]:
        """Who answers, and what that one receives."""
        asked = Asked(
            method=scope["method"],
            path=scope["path"],
            query=scope["query_string"].decode("latin-1"),
            host=headers.get("host"),
            origin=headers.get("origin"),
            authorization=headers.get("authorization"),
        )
        verdict = judge(asked, self._door())
        if verdict.refused:
            bearer = {"www-authenticate": "Bearer"} if verdict.status == 401 else None
            return _refused(verdict.status, verdict.text, bearer), receive
        scope.setdefault("state", {})[AUTHORIZED] = verdict.authorized
        if asked.method != "POST":
            return self._app, receive  # no other body is read
        is_apply = asked.path.rstrip("\n") == APPLY  # as the routes have it
        if (
            is_apply
            and headers.get("content-type", "").partition(";")[0].strip().lower() != Json.media_type
        ):
            return _refused(415, "the body must be application/json"), receive
        if (body := await _whole(receive)) is None:
            return _refused(413, f"the body has more than {LARGEST} bytes"), receive
        return self._app, _replayed(body, receive)


async def _whole(receive: Receive) -> bytes | None:
    """The body of a request; None: it is too large. One that is broken off is what there is."""
    body, more = b"", True
    while more and len(body) <= LARGEST:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    return body if len(body) <= LARGEST else None


def _replayed(body: bytes, receive: Receive) -> Receive:
    """What gives the body at first."""
    first: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> Message:
        return first.pop() if first else await receive()

    return again


def _refused(status: int, text: str, headers: Mapping[str, str] | None = None) -> Json:
    return Json({"detail": text}, status, headers)


# -- what is told ----------------------------------------------------------------------------------


def _mains() -> list[MainInfo]:
    now = time.monotonic()
    told = []
    for each in supervisor.running():
        busy = each.pulse.is_busy(now)
        state = State.BUSY if busy else State.HEALTHY
        doing = each.pulse.doing() if busy else ""
        told.append(MainInfo(each.address(), state.value, each.pulse.lag(now), doing))
    return told


def _pools() -> list[PoolInfo]:
    return [info for each in supervisor.running() for info in each.pools()]


def _crash(record: CrashRecord, authorized: bool) -> dict[str, Any]:
    told = {
        name: value for name, value in vars(record).items() if name in shapes.Crash.model_fields
    }
    log_tail = record.log_tail if authorized else None
    return {**told, "line": record.line(), "log_tail": log_tail}


def _last_crash(lineage: int) -> CrashRecord | None:
    found = (each.last_crash(lineage) for each in supervisor.running())
    return next((each for each in found if each is not None), None)


def _engine(pool: PoolInfo, authorized: bool) -> dict[str, Any]:
    crash = _last_crash(pool.lineage)
    told = {name: getattr(pool, name) for name in shapes.Engine.model_fields if hasattr(pool, name)}
    return {
        **told,
        "id": pool.lineage,
        "status": readiness.status(pool),
        "fault_info": None if crash is None else _crash(crash, authorized),
    }


def _metrics() -> Callable[[], Response] | None:
    """What makes the answer for Prometheus; None: its library is not installed."""
    if prometheus_client is None:
        return None
    registry = prometheus_client.CollectorRegistry(auto_describe=False)
    registry.register(PrometheusCollector())
    prometheus_client.ProcessCollector(registry=registry)

    def render() -> Response:
        return Response(
            prometheus_client.generate_latest(registry),
            media_type=prometheus_client.CONTENT_TYPE_LATEST,
        )

    return render


def _page() -> tuple[str, str]:
    """The page, and what it may do: what is in it, and to ask where it came from."""
    text = Path(__file__).with_name("page.html").read_text(encoding="utf-8")

    def allowed(element: str) -> str:
        found = re.findall(rf"<{element}>(.*?)</{element}>", text, re.DOTALL)
        hashes = [base64.b64encode(hashlib.sha256(each.encode()).digest()) for each in found]
        return " ".join(f"'sha256-{each.decode()}'" for each in hashes)

    policy = (
        f"default-src 'none'; style-src {allowed('style')}; script-src {allowed('script')}; "
        "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    )
    return text, policy


# -- how it is asked for ---------------------------------------------------------------------------

BEARER = HTTPBearer(auto_error=False, description="XOSCAR_HEALTH_TOKEN")
"""For the description: the gate has looked at it."""

REFUSED: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": shapes.Refusal, "description": "It is refused, or there is no such thing"}
}

REFUSED_IN_JSON: dict[int | str, dict[str, Any]] = {
    "4XX": {
        "description": REFUSED["4XX"]["description"],
        "content": {Json.media_type: {"schema": {"$ref": "#/components/schemas/Refusal"}}},
    }
}
"""For those that answer something else than JSON."""

SHAPES = [
    each.__name__
    for each in (
        *(shapes.Replacing, shapes.Keeping),
        *(shapes.ById, shapes.ByAddress, shapes.DrainById, shapes.DrainByAddress),
    )
]
"""Of bodies: names that only the description knows."""

Lineage = Annotated[int, InPath(ge=1, le=2**31 - 1)]
RequestId = Annotated[str, InPath(min_length=1, max_length=LONGEST_ID)]
MinHealthy = Annotated[
    int | None, Query(ge=0, le=2**31 - 1, description="so many sub-pools have to serve; all")
]
MaxLag = Annotated[
    float | None,
    Query(gt=0, le=1e9, description="seconds for which a main pool's loop may be blocked"),
]
Accept = Annotated[str | None, Header(include_in_schema=False)]
LastEventId = Annotated[str | None, Header(description="of the last event that was received")]


def make(door: Callable[[], Door], streams: Streams) -> FastAPI:
    """The application behind a door."""
    app = FastAPI(
        title="xoscar-idle",
        version=__version__,
        description="The sub-pools of a main pool's process: how they are, and what can be done.",
        docs_url=None,  # their scripts come from elsewhere
        redoc_url=None,
        default_response_class=Json,
        redirect_slashes=False,
        responses=REFUSED,
    )
    app.add_middleware(Gate, door=door)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(404, _not_found)
    app.add_exception_handler(Exception, _failed)
    text, policy = _page()
    metrics = _metrics()

    @app.get("/livez", response_model=shapes.Alive, responses={503: {"model": shapes.Alive}})
    async def livez(max_lag: MaxLag = None) -> Response:
        """The process lives, whatever its sub-pools do: it is what recovers them."""
        blocked = max_lag is not None and any(each.loop_lag > max_lag for each in _mains())
        return Json({"status": "blocked" if blocked else "alive"}, 503 if blocked else 200)

    @app.get("/readyz", response_model=shapes.Ready, responses={503: {"model": shapes.Ready}})
    async def readyz(min_healthy: MinHealthy = None) -> Response:
        """Whether calls can come: the event loops answer, and so many sub-pools serve."""
        mains, pools = _mains(), _pools()
        why = readiness.reasons(mains, pools, min_healthy)
        told = {
            "status": "not ready" if why else "ready",
            "healthy": sum(each.serves for each in pools),
            "total": len(pools),
            "needed": len(pools) if min_healthy is None else min_healthy,
            "reasons": why,
            "mains": [vars(each) for each in mains],
        }
        return Json(told, 503 if why else 200)

    @app.get("/health", response_model=shapes.Health, responses={503: {"model": shapes.Health}})
    async def health() -> Response:
        """All main pools and sub-pools, and what is not well."""
        mains, pools = _mains(), _pools()
        why = readiness.reasons(mains, pools)
        told = {
            "status": "unhealthy" if why else "healthy",
            "pid": os.getpid(),
            "when": time.time(),
            "acts": config.current().supervise == "act",
            "reasons": why,
            "mains": [vars(each) for each in mains],
            "pools": [vars(each) for each in pools],
        }
        return Json(told, 503 if why else 200)

    @app.get("/v1/fault_tolerance/status", response_model=shapes.Status)
    async def status(request: Request) -> Response:
        """The sub-pools in the words of vLLM's controllers."""
        authorized = getattr(request.state, AUTHORIZED)
        engines = [_engine(each, authorized) for each in _pools()]
        told = {"schema_version": 1, "total_engines": len(engines), "engines": engines}
        return Json(told)

    @app.get("/v1/fault_tolerance/crashes/{lineage}", response_model=shapes.Crash)
    async def crash(lineage: Lineage, request: Request) -> Response:
        """The last crash of a sub-pool."""
        if (found := _last_crash(lineage)) is None:
            raise HTTPException(404, f"sub-pool {lineage} has not crashed, or there is none")
        return Json(_crash(found, getattr(request.state, AUTHORIZED)))

    @app.post(
        APPLY,
        status_code=202,
        response_model=shapes.Accepted,
        dependencies=[Depends(BEARER)],
    )
    async def apply(asked: Annotated[shapes.Replacing | shapes.Keeping, Body()]) -> Response:
        """Accept an instruction; what becomes of it is to be asked for."""
        given = {k: v for k, v in asked.params.model_dump().items() if v is not None}
        try:
            if (lineage := given.pop("id", None)) is not None:
                given["address"] = _address(lineage, asked)
            order = Order.parse(
                {"instruction": asked.instruction, "request_id": asked.request_id or "", **given}
            )
            accepted = answers.accept(order)
        except InstructionRefused as refused:
            raise HTTPException(refused.status, str(refused)) from None
        told = {
            "message": f"accepted: GET /v1/fault_tolerance/apply/{accepted.request_id}",
            "request_id": accepted.request_id,
            "applied": vars(accepted),
        }
        return Json(told, 202)

    @app.get("/v1/fault_tolerance/apply/{request_id}", response_model=Applied)
    async def applied(request_id: RequestId) -> Response:
        """What became of an instruction."""
        if (found := answers.applied_as(request_id)) is None:
            raise HTTPException(404, "there is no request of that id, or not any more")
        return Json(vars(found))

    @app.get("/v1/connections", response_model=shapes.Connections)
    async def connections() -> Response:
        """The connections of the process to pools."""
        counts = vars(statistics.statistics())
        listed = [vars(each) for each in statistics.connections()]
        told = {**counts, "connections": listed}
        return Json({name: told[name] for name in shapes.Connections.model_fields})

    @app.get(
        "/v1/events",
        response_model=shapes.Events,
        responses={200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}},
    )
    async def events(accept: Accept = None, last_event_id: LastEventId = None) -> Response:
        """What happens to the sub-pools, as it happens; after ``Last-Event-ID``, what has.

        Whoever accepts JSON alone gets what has happened, and no more.
        """
        if accept is not None and accept.strip() == Json.media_type:
            return Json(streams.so_far(last_event_id))
        return StreamingResponse(streams.follow(last_event_id), media_type="text/event-stream")

    @app.get(
        "/metrics",
        response_class=Response,
        responses={
            200: {"content": {"text/plain": {"schema": {"type": "string"}}}},
            **REFUSED_IN_JSON,
        },
    )
    async def prometheus() -> Response:
        """For Prometheus."""
        if metrics is None:
            raise HTTPException(404, "prometheus-client is not installed")
        return metrics()

    @app.get("/", response_class=HTMLResponse, responses=REFUSED_IN_JSON)
    async def page() -> Response:
        """The page, for people."""
        return HTMLResponse(text, headers={"content-security-policy": policy})

    return app


def _address(lineage: int, asked: shapes.Replacing | shapes.Keeping) -> str:
    """Of a sub-pool; for a request from before, that which it had then."""
    before = answers.applied_as(asked.request_id) if asked.request_id else None
    if before is not None and before.lineage == lineage:
        return before.asked
    for each in _pools():
        if each.lineage == lineage:
            return each.address
    raise InstructionRefused(f"there is no sub-pool {lineage}", 404)


async def _invalid(request: Request, error: Exception) -> Response:
    """A request whose values are not those of the description."""
    assert isinstance(error, RequestValidationError)
    if isinstance(error.body, Mapping):
        try:
            Order.parse({"instruction": error.body.get("instruction"), "address": "any"})
        except InstructionRefused as refused:
            return _refused(400, str(refused))
    told = [f"{_place(each['loc'])}: {each['msg']}" for each in _meant(error)]
    return _refused(400, "; ".join(told)[:1000])


def _meant(error: RequestValidationError) -> list[Mapping[str, Any]]:
    """What is wrong, of those of the shapes that a body can have which are meant."""
    found = list(error.errors())
    others = {each["loc"][1] for each in found if each["loc"][-1] == "instruction"}
    found = [each for each in found if others.isdisjoint(each["loc"])] or found
    of_params: dict[Any, list[Mapping[str, Any]]] = {}
    for each in found:
        if len(each["loc"]) > 3 and each["loc"][3] in SHAPES:
            of_params.setdefault(each["loc"][3], []).append(each)
    nearest = min(of_params.values(), key=len, default=[])
    return [each for each in found if not any(each in of for of in of_params.values())] + nearest


def _place(loc: Sequence[Any]) -> str:
    return ".".join(f"{each}" for each in loc if each not in SHAPES)


async def _failed(request: Request, error: Exception) -> Response:
    """An error of ours, which uvicorn writes to the log."""
    return _refused(500, "xoscar-idle has failed to answer; its log says why")


async def _not_found(request: Request, error: Exception) -> Response:
    detail = getattr(error, "detail", "Not Found")
    told = "there is nothing at that address" if detail == "Not Found" else detail
    return _refused(404, told)
