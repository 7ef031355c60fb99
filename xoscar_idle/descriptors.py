"""The file descriptors of processes, and how many they may have, as the kernel has them."""

from __future__ import annotations

import contextlib
import os
import stat
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import socket

    import psutil


def count(process: psutil.Process) -> int:
    """How many a process has open; on Windows its handles."""
    if sys.platform == "win32":
        return process.num_handles()
    return process.num_fds()


def limits() -> tuple[int | None, int | None]:
    """How many this process may have, and how far it may raise that; None: there is no limit."""
    if sys.platform == "win32":
        return None, None
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return (
        None if soft == resource.RLIM_INFINITY else soft,
        None if hard == resource.RLIM_INFINITY else hard,
    )


def allow(number: int) -> None:
    """Raise the limit of this process, if need be, so that it can have so many."""
    soft, hard = limits()
    if sys.platform == "win32" or soft is None or soft >= number:
        return
    import resource

    most = resource.RLIM_INFINITY if hard is None else hard
    resource.setrlimit(resource.RLIMIT_NOFILE, (number, most))


def limit_of(process: psutil.Process) -> int | None:
    """How many a process may have; None: there is no limit, or the system does not tell."""
    if sys.platform != "linux":
        return None
    import psutil  # whoever has a process has imported it; settings need none

    limit, _ = process.rlimit(psutil.RLIMIT_NOFILE)
    return None if limit == psutil.RLIM_INFINITY else limit


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


def unacknowledged(fd: int) -> int:
    """How many bytes written to a TCP socket its peer's kernel does not have yet; 0: untold."""
    if sys.platform == "win32":
        return 0
    import fcntl
    import struct
    import termios

    with contextlib.suppress(OSError):
        told = fcntl.ioctl(fd, termios.TIOCOUTQ, struct.pack("i", 0))
        return int(struct.unpack("i", told)[0])
    return 0


def acknowledged(fd: int) -> int | None:
    """How many of the bytes written to a TCP socket its peer's kernel has; None: untold."""
    if sys.platform != "linux":
        return None
    import socket
    import struct

    with contextlib.suppress(OSError, struct.error):
        # Of its own descriptor: an event loop's socket may not let itself be asked.
        with socket.socket(fileno=os.dup(fd)) as sock:
            info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _ACKNOWLEDGED_AT + 8)
        return int(struct.unpack_from("Q", info, _ACKNOWLEDGED_AT)[0])
    return None


_ACKNOWLEDGED_AT = 120
"""Where ``tcpi_bytes_acked`` is in ``struct tcp_info`` of Linux's ``include/uapi/linux/tcp.h``."""


def peer_credentials(sock: socket.socket) -> tuple[int, int] | None:
    """The process and the user at the other end of a unix socket, as it connected.

    None: the kernel does not tell. The process is 0 if it is in another container.

    Raises
    ------
    OSError
        It cannot be asked.
    """
    import socket
    import struct

    if not hasattr(socket, "SO_PEERCRED"):
        return None
    credentials = struct.Struct("3i")
    told = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, credentials.size)
    pid, uid, _ = credentials.unpack(told)
    return pid, uid


def peer_process(fd: int) -> int | None:
    """The process at the other end of a unix socket, as it connected; None: untold."""
    import socket

    with contextlib.suppress(OSError):
        # Of its own descriptor: an event loop's socket may not let itself be asked.
        with socket.socket(fileno=os.dup(fd)) as sock:
            peer = peer_credentials(sock)
        return (peer[0] or None) if peer is not None else None
    return None


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
