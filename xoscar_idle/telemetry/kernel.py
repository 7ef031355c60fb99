"""One process at one moment, seen from outside."""

from __future__ import annotations

import os
import sys

import psutil

from .. import descriptors
from .snapshot import Snapshot, Unobservable


def look(pid: int, note: str) -> Snapshot:
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
                for each in descriptors.inet_connections(process)
                if each.status == psutil.CONN_ESTABLISHED and each.raddr
            ]
            return Snapshot(
                pid=pid,
                command=" ".join(process.cmdline()),
                descriptors=descriptors.count(process),
                descriptor_limit=descriptors.limit_of(process),
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
