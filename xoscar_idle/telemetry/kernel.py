"""One process at one moment, seen from outside."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import os
import re
import socket
import sys
from collections.abc import Iterable, Iterator
from typing import Any

import psutil

from .. import descriptors, side_channel
from ..logs import one_line
from .snapshot import BLOCKED, FOREIGN, GONE, UNMONITORED, Snapshot

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def look(pid: int, note: str, status: str = UNMONITORED) -> Snapshot:
    """A process that cannot be asked itself, or does not answer.

    What there is to see is beside ``status``: one that is stopped is blocked, whatever else, and
    there is nothing of one that has gone or belongs to somebody else, but why in its note.
    """
    try:
        process = psutil.Process(pid)
        with process.oneshot():
            state = process.status()
            if state == psutil.STATUS_ZOMBIE:
                return Snapshot(pid, status=GONE, note=_ended(pid))
            if state in (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP):
                status, note = BLOCKED, f"{note}; {_stopped(state)}"
            opened, accepted = _established(process)
            return Snapshot(
                pid=pid,
                command=" ".join(process.cmdline()),
                process=f"here {pid}",
                descriptors=descriptors.count(process),
                descriptor_limit=descriptors.limit_of(process),
                connections=opened,
                accepted=accepted,
                note=f"{note}; seen from outside: {_counted(pid, len(opened), len(accepted))}",
                status=status,
            )
    except psutil.ZombieProcess:
        return Snapshot(pid, status=GONE, note=_ended(pid))
    except (psutil.NoSuchProcess, OverflowError):
        return Snapshot(pid, status=GONE, note=f"there is no process {pid}")
    except (psutil.AccessDenied, PermissionError):
        return Snapshot(pid, _command(pid), status=FOREIGN, note=_denied(pid))
    except OSError:  # of /proc, in which it ends just now
        return Snapshot(pid, status=GONE, note=f"there is no process {pid}")


def _established(process: psutil.Process) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The TCP connections that it has opened, and those that it has accepted, by their ports."""
    sockets = descriptors.inet_connections(process)
    listening = {each.laddr.port for each in sockets if each.status == psutil.CONN_LISTEN}
    opened: list[dict[str, Any]] = []
    accepted: list[dict[str, Any]] = []
    for each in sockets:
        if each.status != psutil.CONN_ESTABLISHED or not each.raddr:
            continue
        here, there = (_joined(*end) for end in (each.laddr, each.raddr))
        known = {"transport": "socket", "descriptor": each.fd if each.fd >= 0 else None}
        if each.laddr.port in listening:
            accepted.append({"peer": there, "address": here, "state": "established", **known})
        else:
            opened.append({"route": there, "local": here, "state": "established", **known})
    return opened, accepted


def _joined(host: str, port: int) -> str:
    number = _number(host)
    return f"[{number}]:{port}" if isinstance(number, ipaddress.IPv6Address) else f"{number}:{port}"


def _counted(pid: int, opened: int, accepted: int) -> str:
    if _is_elsewhere(pid):
        return "its TCP connections are in another network namespace, where nobody has looked"
    told = f"{opened + accepted} established TCP connections"
    return f"{told}, {accepted} of them accepted" if accepted else told


def _is_elsewhere(pid: int) -> bool:
    """Whether it has a network of its own, as in a container: what psutil reads is ours."""
    try:
        own, its = (os.readlink(f"/proc/{each}/ns/net") for each in ("self", pid))
    except OSError:  # none of Linux, or not to be known
        return False
    return own != its


def _stopped(state: str) -> str:
    if state == psutil.STATUS_TRACING_STOP:
        return "it is stopped, by a debugger"
    return "it is stopped: SIGCONT lets it go on"


def _command(pid: int) -> str:
    """Its command line, as far as it is told, which it is of other users' processes, too."""
    with contextlib.suppress(psutil.Error, OSError):
        return " ".join(psutil.Process(pid).cmdline())
    return ""


def _ended(pid: int) -> str:
    return f"there is no process {pid} any more: it has ended, and its parent has not noticed"


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


# Why nobody is there

REASONS = {
    errno.ECONNREFUSED: "nobody listens there",
    errno.ETIMEDOUT: "nothing answers at that host",
}
"""Of the errors of a connect those that say too little to who does not know them."""


def why(error: BaseException) -> str:
    """What the error of a connect says, on one line, without numbers and names of calls."""
    told = one_line(error)
    # asyncio leaves out what the kernel calls it, and has one error for all addresses of a name.
    failed = re.findall(r"\[Errno (\d+)\] Connect call failed", told)
    if failed:
        return "; ".join(dict.fromkeys(_reason(int(each)) for each in failed))
    if not isinstance(error, OSError) or error.errno is None:
        return told
    text = " ".join(f"{error.strerror}".split())
    return _reason(error.errno) if text == os.strerror(error.errno) else text


def _reason(number: int) -> str:
    return REASONS.get(number) or os.strerror(number)


# Who listens


def listeners(addresses: Iterable[str]) -> dict[str, int]:
    """For each address of this machine, ``host:port``, the process that listens there, if told.

    Looking at all sockets takes as long for one address as for many.
    """
    wanted = {each: place for each in addresses if (place := _place(each)) is not None}
    if not wanted:
        return {}
    own, heard = _own_addresses(), list(_heard({port for _, port in wanted.values()}))
    found = {}
    for address, (hosts, port) in wanted.items():
        here = any(each.is_loopback or each in own for each in hosts)
        for host, at, pid in heard:
            if at == port and (host in hosts or (here and host.is_unspecified)):
                found[address] = _maker(pid, host, port)
                break
    return found


def _place(address: str) -> tuple[set[Address], int] | None:
    """The numbers of its host, and its port; None if it is none of TCP, or nobody knows it."""
    host, _, port = address.rpartition(":")
    if "://" in address or not port.isdecimal():
        return None
    with contextlib.suppress(OSError, UnicodeError):
        told = socket.getaddrinfo(host.strip("[]"), None, type=socket.SOCK_STREAM)
        return {_number(str(each[4][0])) for each in told}, int(port)
    return None


def _number(text: str) -> Address:
    number = ipaddress.ip_address(text.partition("%")[0])
    mapped = number.ipv4_mapped if isinstance(number, ipaddress.IPv6Address) else None
    return mapped or number


def _own_addresses() -> set[Address]:
    families = (socket.AF_INET, socket.AF_INET6)
    interfaces = psutil.net_if_addrs().values()
    return {_number(one.address) for all_ in interfaces for one in all_ if one.family in families}


def _heard(ports: set[int]) -> Iterator[tuple[Address, int, int]]:
    """The host, the port and the process of each socket that listens on one of these ports."""
    for each, pid in _sockets():
        if pid and each.status == psutil.CONN_LISTEN and each.laddr.port in ports:
            yield _number(each.laddr.ip), each.laddr.port, pid


def _sockets() -> Iterator[tuple[Any, int | None]]:
    try:
        everybodys = psutil.net_connections("tcp")
    except (psutil.AccessDenied, PermissionError):  # macOS shows those of all to root alone
        for pid in side_channel.offered():
            with contextlib.suppress(psutil.Error, OSError):
                for each in descriptors.inet_connections(psutil.Process(pid)):
                    yield each, pid
        return
    for each in everybodys:
        yield each, each.pid


def _maker(pid: int, host: Address, port: int) -> int:
    """The process that made a socket, of which others have copies from a fork."""
    with contextlib.suppress(psutil.Error, OSError):
        for parent in psutil.Process(pid).parents():
            sockets = descriptors.inet_connections(parent)
            if (host, port) not in (
                (_number(each.laddr.ip), each.laddr.port)
                for each in sockets
                if each.status == psutil.CONN_LISTEN
            ):
                break
            pid = parent.pid
    return pid
