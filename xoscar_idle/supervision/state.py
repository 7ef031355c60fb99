"""The states of a lineage, and what is told of it at one moment."""

from __future__ import annotations

import enum
import json
from dataclasses import dataclass

from ..versions import known_fields


class State(str, enum.Enum):
    """Where the processes that replace each other are in their life."""

    STARTING = "starting"
    HEALTHY = "healthy"
    BUSY = "busy"
    """Its side thread answers, its event loop does not."""
    UNHEALTHY = "unhealthy"
    """Nothing of it answers, or it hangs, or an error says that it is broken."""
    RECOVERING = "recovering"
    DEGRADED = "degraded"
    """It has failed too often: it is left alone until its next try."""
    DEAD = "dead"
    """It died, and is not to be recovered."""
    PAUSED = "paused"
    """An operator wants it to be left alone, whatever it does."""
    STOPPING = "stopping"
    """It was asked to end."""


SERVING = (State.HEALTHY, State.BUSY)
"""States in which calls are answered: in a long synchronous method they will be."""


@dataclass(frozen=True)
class PoolInfo:
    """One sub-pool at one moment, in values that JSON has. Times are in seconds."""

    address: str
    """Empty while it starts for the first time."""
    pid: int
    lineage: int
    """Its number in the main pool's process, from 1; what replaces it has the same."""
    incarnation: int
    """Which of the lineage's, from 1."""
    state: str
    """One of :class:`State`."""
    since: float
    """Unix time of the last change of the state."""
    uptime: float
    restarts: int
    label: str | None = None
    in_process: int | None = None
    """Requests in process. None: unknown."""
    oldest_request: float | None = None
    """How long the oldest of them has been in process."""
    requests: tuple[dict[str, object], ...] = ()
    """The oldest of them: ``actor``, ``method``, ``seconds``."""
    loop_lag: float | None = None
    """How long its event loop took to answer last, or has not answered now."""
    rss: int | None = None
    """Resident bytes."""
    reason: str = ""
    """Why it is in this state, in a few words."""
    doing: str = ""
    """The stack of its event loop's thread, while it is busy or unhealthy."""
    last_failure: str | None = None
    """What its lineage's last crash was, on one line."""
    restart_at: float | None = None
    """Unix time of the next try to recover it, where one is planned."""
    held: int = 0
    """Calls that wait for it to be recovered, as far as its main pool knows."""
    sequence: int = 0
    """The number of its last change of state among the events of the main pool's process."""
    observed: bool = False
    """Whether its heartbeats are followed: ``XOSCAR_SUPERVISE`` is on there and here."""

    @property
    def serves(self) -> bool:
        """Whether calls to it can be answered."""
        if self.state == State.PAUSED:
            return self.uptime > 0
        return self.state in SERVING

    @property
    def is_down(self) -> bool:
        """Whether it ought to serve and does not; not yet, where it starts for the first time."""
        begins = self.state == State.STARTING and not self.incarnation
        return not (self.serves or begins or self.state == State.STOPPING)

    def to_json(self) -> str:
        """On one line."""
        return json.dumps(vars(self))

    @classmethod
    def from_dict(cls, given: dict[str, object]) -> PoolInfo:
        """Of :func:`vars` of one, from a process with another version of us, too."""
        return cls(**known_fields(cls, given))
