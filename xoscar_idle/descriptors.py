"""The file descriptors of processes, as the kernel has them."""

from __future__ import annotations

import contextlib
import os
import stat
from typing import Any

import psutil


def inet_connections(process: psutil.Process) -> list[Any]:
    """The TCP and UDP sockets of a process, as psutil tells of them."""
    if hasattr(process, "net_connections"):
        return list(process.net_connections("inet"))
    return list(process.connections("inet"))  # psutil before 6.0


def sockets() -> list[int]:
    """The descriptors of this process that are sockets."""
    found = []
    for fd in [int(name) for name in os.listdir("/dev/fd") if name.isdecimal()]:
        with contextlib.suppress(OSError):  # the one that listdir has used
            if stat.S_ISSOCK(os.fstat(fd).st_mode):
                found.append(fd)
    return found


def void(fd: int) -> None:
    """Let a descriptor of this process lead nowhere.

    Its number is kept, on the null device: somebody still holds it, and would otherwise one day
    close one that was opened later.
    """
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    try:
        os.dup2(null, fd, inheritable=False)
    finally:
        os.close(null)
