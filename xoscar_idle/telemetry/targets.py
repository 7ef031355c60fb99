"""What an operator can name, local processes and addresses of pools, and looking at it."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence

from .. import side_channel, values
from ..gate import IDLE_TIMEOUT, SUPERVISE
from . import kernel, snapshot
from .snapshot import Snapshot, Unobservable

SCHEMES = ("unixsocket", "ucx", "nixl")
"""Those of xoscar's transports that lead out of a process; TCP has none."""

Target = int | str
"""A process id, or the address of a pool."""


def nobody() -> str:
    """What to say where no process offers a side channel."""
    try:
        side_channel.wanted()
    except ValueError as error:
        return str(error)
    place = side_channel.own_directory()
    if place is not None and place.exists() and not side_channel.is_private(place):
        return (
            f"{side_channel.MONITOR}={place} is not a directory that belongs to this user alone, "
            "with mode 700"
        )
    where, value = ("", "1") if place is None else (f" in {place}", place)
    return (
        f"no process of this user offers a monitor{where}: start it with "
        f"{side_channel.MONITOR}={value} beside {IDLE_TIMEOUT} or {SUPERVISE}, or name a PID or a "
        "POOL_ADDRESS"
    )


def parse(text: str) -> Target:
    """What ``text`` names.

    Raises
    ------
    ValueError
        It is neither a process id nor an address.
    """
    if text.isdecimal():
        pid = values.whole(text)
        if not pid:
            raise ValueError(f"{values.shown(text)} is no process id: those are 1 to {2**31 - 1}")
        return pid
    scheme = re.match(r"([^:/]*)://", text)
    if scheme and scheme[1] not in SCHEMES:
        raise ValueError(
            f"{values.shown(text)} is no address of a pool that can be asked: give HOST:PORT, "
            f"not that of an HTTP server, or one that begins with {'://, '.join(SCHEMES)}://"
        )
    host, _, port = text.rpartition(":")
    if re.search(r"\s", text) is None and (scheme or (host and values.whole(port, 65535))):
        return text
    raise ValueError(
        f"{values.shown(text)} is neither a process id nor an address like 10.0.0.5:9999"
    )


async def look(targets: Sequence[Target]) -> tuple[list[Snapshot], list[str]]:
    """All processes of ``targets``, or else all that offer a monitor; and what is wrong."""
    if not targets:
        snapshots, _ = await _look(await asyncio.to_thread(side_channel.offered))
        return snapshots, [] if snapshots else [nobody()]
    return await _look(targets)


async def _look(targets: Sequence[Target]) -> tuple[list[Snapshot], list[str]]:
    seen = await asyncio.gather(*map(_look_at, targets), return_exceptions=True)
    snapshots: list[Snapshot] = []
    complaints: list[str] = []
    for each in seen:
        if isinstance(each, Unobservable):
            complaints.append(str(each))
        elif isinstance(each, BaseException):
            raise each
        else:
            snapshots += each
    return snapshots, complaints


async def _look_at(target: Target) -> list[Snapshot]:
    if isinstance(target, int):
        return [await asyncio.to_thread(_process, target)]
    from . import pool_query  # imports xoscar, which takes a while

    return await pool_query.ask(target)


def _process(pid: int) -> Snapshot:
    try:
        told = snapshot.ask(pid)
    except TimeoutError as error:
        return kernel.look(pid, str(error))
    return told or kernel.look(pid, "no monitor")
