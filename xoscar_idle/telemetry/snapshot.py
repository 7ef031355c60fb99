"""What can be seen of one process: what it tells of itself, or what the kernel shows of it."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from dataclasses import dataclass, field
from typing import Any

import psutil

from .. import activation
from ..connections import statistics
from ..descriptors import inet_connections

NOT_ACTIVE = "xoscar-idle is not active"
"""How the note of a process begins that was asked and is not."""


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

    def to_json(self) -> str:
        """On one line."""
        return json.dumps(vars(self))

    @classmethod
    def from_json(cls, text: str | bytes) -> Snapshot:
        """What :meth:`to_json` made, here or in a process with another version of us."""
        known = {each.name for each in dataclasses.fields(cls)}
        return cls(**{name: value for name, value in json.loads(text).items() if name in known})


def take() -> Snapshot:
    """This process."""
    told: dict[str, Any] = {}
    if activation.is_active():
        from xoscar.backends.router import Router

        told["address"] = getattr(Router.get_instance(), "external_address", None)
        told["statistics"] = dataclasses.asdict(statistics.statistics())
        told["connections"] = [dict(vars(each)) for each in statistics.connections()]
    else:
        told["note"] = f"{NOT_ACTIVE} in it: {activation.why_inactive()}"
    try:
        descriptors = _descriptors(psutil.Process())
    except (OSError, psutil.Error):  # counting takes one, and there may be none left
        descriptors = None
    return Snapshot(
        pid=os.getpid(),
        command=" ".join(sys.orig_argv),
        descriptors=descriptors,
        descriptor_limit=_own_limit(),
        **told,
    )


def of_kernel(pid: int, note: str) -> Snapshot:
    """A process that cannot be asked itself.

    Raises
    ------
    Unobservable
        It has gone, or belongs to somebody else.
    """
    try:
        process = psutil.Process(pid)
        with process.oneshot():
            established = [
                {
                    "route": f"{each.raddr.ip}:{each.raddr.port}",
                    "transport": "socket",
                    "state": "established",
                    "descriptor": each.fd if each.fd >= 0 else None,
                }
                for each in inet_connections(process)
                if each.status == psutil.CONN_ESTABLISHED and each.raddr
            ]
            return Snapshot(
                pid=pid,
                command=" ".join(process.cmdline()),
                descriptors=_descriptors(process),
                descriptor_limit=_limit(process),
                connections=established,
                note=f"{note}; seen from outside: {len(established)} established TCP connections",
            )
    except (psutil.NoSuchProcess, OverflowError):
        raise Unobservable(f"there is no process {pid}") from None
    except (psutil.AccessDenied, PermissionError):
        raise Unobservable(_denied(pid)) from None


def _denied(pid: int) -> str:
    try:
        owner, uid = psutil.Process(pid).username(), _uid(pid)
    except psutil.Error:
        owner, uid = "another user", None
    if sys.platform == "linux" and os.geteuid() in (0, uid):
        return (
            f"process {pid} of {owner} cannot be read: the capability CAP_SYS_PTRACE is missing, "
            "as in most containers; add it, or name the address of the process's pool instead"
        )
    return f"process {pid} belongs to {owner}: run this as that user, or as root"


def _uid(pid: int) -> int | None:
    return None if sys.platform == "win32" else psutil.Process(pid).uids().effective


def _descriptors(process: psutil.Process) -> int:
    if sys.platform == "win32":
        return process.num_handles()
    return process.num_fds()


def _own_limit() -> int | None:
    if sys.platform == "win32":
        return None
    import resource

    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return None if limit == resource.RLIM_INFINITY else limit


def _limit(process: psutil.Process) -> int | None:
    if sys.platform != "linux":
        return None
    limit, _ = process.rlimit(psutil.RLIMIT_NOFILE)
    return None if limit == psutil.RLIM_INFINITY else limit
