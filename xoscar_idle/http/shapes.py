"""What is asked and answered over HTTP, for the description in OpenAPI.

What other modules tell in values that JSON has is described by their own dataclasses.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from ..connection.statistics import ConnectionInfo
from ..supervision.events import Event
from ..supervision.instructions import LONGEST_ID, Applied
from ..supervision.state import PoolInfo

SCHEMA_VERSION = 1
"""Of the status of engines; what is added changes nothing of it."""


class Refusal(BaseModel):
    """Why a request was not answered as it was meant."""

    detail: str


class Alive(BaseModel):
    """The process lives, and this thread of it answers."""

    status: Literal["alive", "blocked"]


class Main(BaseModel):
    """A main pool of the process."""

    address: str
    state: Literal["healthy", "busy"] = Field(
        description="busy: its event loop has not answered for 2 s"
    )
    loop_lag: float = Field(
        description="seconds that its loop took to answer last, or has not answered now"
    )
    doing: str = Field(description="the stack of its loop's thread while it is busy")


class Ready(BaseModel):
    """Whether calls can come."""

    status: Literal["ready", "not ready"]
    healthy: int = Field(description="sub-pools that can take calls")
    total: int
    needed: int
    reasons: list[str] = Field(description="why it is not ready")
    mains: list[Main]


class Health(BaseModel):
    """All that is known of the process's main pools and sub-pools."""

    status: Literal["healthy", "unhealthy"]
    pid: int
    when: float = Field(description="Unix time")
    acts: bool = Field(description="whether instructions are carried out: XOSCAR_SUPERVISE=act")
    reasons: list[str]
    mains: list[Main]
    pools: list[PoolInfo]


class Crash(BaseModel):
    """How a sub-pool died."""

    line: str = Field(description="all that is short, on one line")
    address: str
    pid: int
    when: float = Field(description="Unix time")
    exit_code: int | None = Field(description="negative: the signal; null: unknown")
    signal: str | None
    uptime: float | None = Field(description="seconds")
    label: str | None
    lineage: int
    incarnation: int
    main_address: str
    main_pid: int
    in_flight: int | None = Field(description="requests in process")
    requests: list[dict[str, Any]] = Field(
        description="the oldest of them: actor, method, seconds since it came"
    )
    oom: str | None = Field(description="the evidence that it ran out of memory")
    stacks: str = Field(description="Python's, of all threads, where a fatal signal left them")
    log_tail: str | None = Field(
        description="the end of its stderr, where that is captured; null without the token"
    )
    why: str = Field(description="what else is known")
    record: str | None = Field(description="the path of the file that has this")


class Engine(BaseModel):
    """A sub-pool, in vLLM's words and in ours."""

    id: int = Field(description="its lineage: what replaces it has the same")
    status: Literal["healthy", "unhealthy", "dead"]
    fault_info: Crash | None = Field(description="its last crash")
    state: str
    reason: str
    address: str
    pid: int
    incarnation: int
    restarts: int
    restart_at: float | None = Field(description="Unix time of the next try to recover it")
    label: str | None


class Status(BaseModel):
    """The sub-pools of the process, as vLLM's controllers ask for them."""

    schema_version: Literal[1]
    total_engines: int
    engines: list[Engine]


class Events(BaseModel):
    """What has happened."""

    pid: int
    journal: str = Field(description="the name of these events: with the number of one, its id")
    missed: int | None = Field(
        description="events that are forgotten; null: those of another process, however many"
    )
    last: int = Field(description="with the name, the id after which to ask for what comes then")
    events: list[Event]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


def _whole(value: object) -> object:
    """JSON does not tell 1.0 from 1; text is none of both."""
    return int(value) if type(value) is float and value.is_integer() else value


Number = Annotated[int, Field(ge=1, le=2**31 - 1), BeforeValidator(_whole)]
Incarnation = Annotated[
    Number | None, Field(description="refuse it where another incarnation is there by now")
]
Drain = Annotated[
    float | None,
    Field(ge=0, le=1e9, allow_inf_nan=False, description="seconds for requests in process; 30"),
]


class ById(_Strict):
    """The sub-pool of a lineage."""

    id: Number
    expect_incarnation: Incarnation = None


class ByAddress(_Strict):
    """The sub-pool at an address."""

    address: str = Field(min_length=1, max_length=1000)
    expect_incarnation: Incarnation = None


class DrainById(ById):
    """The sub-pool of a lineage, whose requests in process are waited for."""

    drain: Drain = None


class DrainByAddress(ByAddress):
    """The sub-pool at an address, whose requests in process are waited for."""

    drain: Drain = None


RequestId = Annotated[
    str | None,
    Field(
        pattern=f"^[A-Za-z0-9][A-Za-z0-9._~-]{{0,{LONGEST_ID - 1}}}$",  # it is part of an address
        description="the same one again is the same request; one is made up where there is none",
    ),
]


class Replacing(_Strict):
    """An instruction that ends a process."""

    instruction: Literal["restart", "give_up"]
    params: DrainById | DrainByAddress
    request_id: RequestId = None


class Keeping(_Strict):
    """An instruction that ends none."""

    instruction: Literal["pause", "resume", "retry", "reset"]
    params: ById | ByAddress
    request_id: RequestId = None


class Accepted(BaseModel):
    """It is being carried out; what becomes of it is told at ``/v1/fault_tolerance/apply/ID``."""

    message: str
    request_id: str
    applied: Applied


class Connections(BaseModel):
    """The connections that the process has to pools, as a client."""

    open: int
    active: int
    idle: int
    retired: int
    connecting: int
    requests_in_flight: int
    opened: int
    closed: dict[str, int] = Field(description="by reason")
    connects_failed: int
    connections: list[ConnectionInfo]
