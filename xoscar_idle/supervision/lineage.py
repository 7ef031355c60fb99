"""The processes that replace each other, and how they ended."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from .budget import STABLE, Budget
from .record import CrashRecord
from .state import State
from .subpool import Subpool

LIVING = (State.HEALTHY, State.BUSY, State.UNHEALTHY)
"""States in which its health is judged."""

COMING = (State.RECOVERING, State.STARTING)
"""States in which there is something to wait for."""


@dataclass(eq=False)
class Lineage:
    """The processes that replace each other. Times are monotonic unless they say otherwise."""

    number: int
    address: str
    label: str | None = None
    state: State = State.STARTING
    since: float = 0.0
    """Unix time of the last change of the state."""
    reason: str = ""
    sequence: int = 0
    incarnation: int = 0
    accepts: float = 0.0
    """Since when connections to its address are to this incarnation."""
    last: CrashRecord | None = None
    subpool: Subpool | None = None
    ill_since: float | None = None
    """Since when it has been unhealthy; None: it is not."""

    # What is done about its failures, which is its recovery's to know.
    budget: Budget = field(default_factory=Budget)
    paused: bool = False
    """Whether an operator wants it to be left alone."""
    given_up: bool = False
    """Whether an operator wants it not to come back."""
    told: Subpool | None = None
    """Of whose death the program has been told, and which has been counted, last."""
    restarting: bool = False
    """Whether it is to be replaced while it still lives."""
    by_hand: bool = False
    """Whether somebody has asked for what is under way: it does not count if it fails."""
    incomplete: str = ""
    """Why not all of its actors are there; empty: they are, as far as is known."""
    missing: tuple[Any, ...] = ()
    """xoscar's messages that create those which are not there."""
    began: float = 0.0
    """When its last recovery began."""
    ready: float = 0.0
    """Since when it can be used."""
    try_at: float | None = None
    """When it is to be tried again; None: nothing is planned."""
    held: int = 0
    """Calls that wait for it."""

    def is_ready_since(self, created: float) -> None:
        """An actor was created last at that time: it may be the one that it is for."""
        # Where a program creates actors again and again, that says nothing of its start.
        if self.ready < created < self.ready + STABLE:
            self.ready = created

    @property
    def is_left_alone(self) -> bool:
        """Whether nothing is to be done about it, unless somebody asks for it."""
        return self.given_up or (self.paused and not self.by_hand)

    @property
    def has_ended(self) -> bool:
        """Whether there is no process of it that lives."""
        return self.subpool is None or self.subpool.death.told


@dataclass(frozen=True)
class End:
    """How a process ended, and of which lineage it was."""

    record: CrashRecord
    requested: str
    """Who asked for it; empty: it was a crash."""
    lineage: Lineage
    accepted: float
    """Since when connections to its address were to this process, in monotonic time."""
    drained: bool = False
    """Whether calls that were lost with it have not been executed."""
    at: float = field(default_factory=time.monotonic)
