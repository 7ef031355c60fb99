"""One process at one moment, told by itself."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from dataclasses import dataclass, field
from typing import Any

import psutil

from .. import descriptors, patching, side_channel
from ..connection import history, statistics
from ..versions import known_fields

QUESTION = "snapshot"
"""What the side channel is asked for one."""

NOT_ACTIVE = "xoscar-idle is not active"
"""How the note of a process begins that was asked and is not."""

ACTIVE = "active"
INACTIVE = "inactive"
"""It was asked, and xoscar-idle is not active in it."""
BLOCKED = "blocked"
"""It does not answer: its event loop is blocked, or it is stopped."""
UNMONITORED = "unmonitored"
"""It offers no monitor, and was seen from outside."""
FOREIGN = "foreign"
"""It is another user's."""
GONE = "gone"
"""There is no such process, or nobody answers at that address."""

PATIENCE = 1.0
"""Seconds without a sign after which an event loop is blocked. Who asks waits for two."""

MISSING = (FOREIGN, GONE)
"""Of these there is nothing to see."""


class Unobservable(Exception):
    """There is nothing to see; the message is one line for the user."""


@dataclass(frozen=True)
class Snapshot:
    """One process at one moment, in values that JSON has."""

    pid: int | None
    command: str = ""
    """Its command line."""
    address: str | None = None
    """That of its pool, the first if there are several."""
    descriptors: int | None = None
    """How many it has open."""
    descriptor_limit: int | None = None
    statistics: dict[str, Any] | None = None
    """The fields of :class:`~xoscar_idle.Statistics`; None where it could not be asked."""
    connections: list[dict[str, Any]] = field(default_factory=list)
    """The fields of :class:`~xoscar_idle.ConnectionInfo`; fewer where the kernel was asked."""
    note: str = ""
    """What there is to say of it, above all why something is missing."""
    process: str = ""
    """The name of the process, which no other one has, whatever their PIDs; empty: not told. Of one
    that was seen from outside it begins with ``here``."""
    status: str = ACTIVE
    """``active``, ``inactive``, ``blocked``, ``unmonitored``, ``foreign`` or ``gone``."""
    pools: list[dict[str, Any]] = field(default_factory=list)
    """The fields of :class:`~.connection.hosted.PoolName`, of each pool that it knows by its
    configuration: those in the process, and those beside them."""
    accepted: list[dict[str, Any]] = field(default_factory=list)
    """The fields of :class:`~xoscar_idle.AcceptedInfo`."""

    @property
    def name(self) -> str:
        """Its address, or else its PID."""
        return str(self.pid if self.address is None else self.address)

    @property
    def complaint(self) -> str:
        """What there is to say of it, with its name; one line for the user."""
        return self.note if self.name in self.note else f"{self.name}: {self.note}"

    def to_json(self) -> str:
        """On one line."""
        return json.dumps(vars(self))

    @classmethod
    def from_json(cls, text: str | bytes) -> Snapshot:
        """What :meth:`to_json` made, here or in a process with another version of us."""
        return cls(**known_fields(cls, json.loads(text)))


def take() -> Snapshot:
    """This process."""
    told: dict[str, Any] = {}
    if patching.is_active():
        from xoscar.backends.router import Router

        from ..connection import hosted

        told["address"] = getattr(Router.get_instance(), "external_address", None)
        told["statistics"] = dataclasses.asdict(statistics.statistics())
        told["connections"] = [dict(vars(each)) for each in statistics.connections()]
        told["accepted"] = [dict(vars(each)) for each in statistics.accepted()]
        told["pools"] = [dict(vars(each)) for each in hosted.names()]
    else:
        told["note"] = f"{NOT_ACTIVE} in it: {patching.why_inactive()}"
        told["status"] = INACTIVE
    try:
        count = descriptors.count(psutil.Process())
    except (OSError, psutil.Error):  # counting takes one, and there may be none left
        count = None
    return Snapshot(
        pid=os.getpid(),
        command=" ".join(sys.orig_argv),
        descriptors=count,
        descriptor_limit=descriptors.limits()[0],
        process=history.journal.name,
        **told,
    )


def take_beside() -> Snapshot:
    """This process, from a thread that runs none of its loops: whether these run is told, too."""
    seen = take()
    if seen.statistics is None:
        return seen
    from ..connection import loops

    silent = loops.blocked(PATIENCE)
    if not silent:
        return seen
    who = "its event loop is" if len(silent) == 1 else f"{len(silent)} of its event loops are"
    note = f"{who} blocked; it told this over the local socket"
    return dataclasses.replace(seen, status=BLOCKED, note=note)


def offer() -> None:
    """Answer who asks over the side channel, if the environment asks for one."""
    side_channel.answer(QUESTION, lambda _: take_beside().to_json())
    side_channel.start()


def ask(pid: int) -> Snapshot | None:
    """What process ``pid`` tells of itself; None if it offers no side channel.

    Raises
    ------
    TimeoutError
        It does not answer.
    """
    told = side_channel.ask(pid, QUESTION)
    return None if told is None else Snapshot.from_json(told)
