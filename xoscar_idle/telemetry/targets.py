"""What an operator can name, local processes and addresses of pools, and looking at it."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from .. import side_channel, values
from ..gate import IDLE_TIMEOUT, SUPERVISE
from . import fleet, kernel, snapshot, web
from .snapshot import (
    ACTIVE,
    BLOCKED,
    GONE,
    INACTIVE,
    MISSING,
    NOT_ACTIVE,
    Snapshot,
    Unobservable,
)

SCHEMES = ("unixsocket", "ucx", "nixl")
"""Those of xoscar's transports that lead out of a process; TCP has none."""

PROCESSES_AT_ONCE = 64
"""How many are asked over the side channel: each takes a thread."""

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


def named(arguments: Sequence[str], urls: bool = False) -> list[Target]:
    """What arguments name, in their order, each once; ``urls``: also where HTTP is spoken.

    Raises
    ------
    ValueError
        One of them names nothing, or something else; says where, if it is in a file.
    """
    found: dict[Target, None] = {}
    for each in fleet.named(arguments):
        try:
            is_url = urls and web.is_address(each.text)
            found[each.text if is_url else parse(each.text)] = None
        except ValueError as error:
            raise each.error(error) from None
    return list(found)


async def look(targets: Sequence[Target]) -> list[Snapshot]:
    """All processes of ``targets``, or else all that offer a monitor; each once.

    What cannot be looked at is there, too, with why in its note.
    """
    if targets:
        return [seen for _, seen in await look_at(targets)]
    offered = await asyncio.to_thread(side_channel.offered)
    # Those that have gone have ended just now.
    return [seen for _, seen in await look_at(offered) if seen.status != GONE]


async def look_at(targets: Sequence[Target]) -> list[tuple[Target, Snapshot]]:
    """The processes of each of ``targets``; one of several is there for the first of them."""
    named = list(dict.fromkeys(targets))
    addresses = [each for each in named if isinstance(each, str)]
    of_processes, of_pools = await asyncio.gather(
        _processes([each for each in named if isinstance(each, int)]), _pools(addresses)
    )
    told = {**of_processes, **of_pools}
    seen: set[object] = set()
    found = []
    for target in named:
        for each in told[target]:
            key = each.process or (each.pid, each.address)
            if key not in seen:
                seen.add(key)
                found.append((target, each))
    return found


def exit_status(snapshots: Iterable[Snapshot]) -> int:
    """3 if one of them is blocked, else 1 if there is nothing to see of one, else 0."""
    found = {each.status for each in snapshots}
    return 3 if BLOCKED in found else 1 if found.intersection(MISSING) else 0


async def _processes(pids: Sequence[int]) -> dict[Target, list[Snapshot]]:
    """In threads of their own: one that is stopped takes its time, and those of asyncio are few."""
    if not pids:
        return {}
    loop = asyncio.get_running_loop()
    threads = ThreadPoolExecutor(min(PROCESSES_AT_ONCE, len(pids)), "xoscar-idle-look")
    try:
        asked = [loop.run_in_executor(threads, _process, each) for each in pids]
        seen = await asyncio.gather(*asked)
    finally:
        threads.shutdown(wait=False, cancel_futures=True)  # who has been interrupted goes at once
    return {pid: [each] for pid, each in zip(pids, seen, strict=True)}


async def _pools(addresses: Sequence[str]) -> dict[Target, list[Snapshot]]:
    if not addresses:
        return {}
    from . import pool_query  # imports xoscar, which takes a while

    at_once = asyncio.Semaphore(pool_query.AT_ONCE)

    async def ask(address: str) -> list[Snapshot]:
        try:
            return list(map(_with_status, await pool_query.ask(address, at_once)))
        except Unobservable as error:
            return [Snapshot(None, address=address, status=GONE, note=str(error))]

    seen = await asyncio.gather(*map(ask, addresses))
    return dict(zip(addresses, seen, strict=True))


def _process(pid: int) -> Snapshot:
    try:
        told = snapshot.ask(pid)
    except TimeoutError as error:
        seen = kernel.look(pid, str(error), BLOCKED)
        if seen.status != GONE:
            return seen
        # It is there, since it let itself be connected to.
        note = f"{error}, and is none of this container"
        return Snapshot(pid, status=BLOCKED, note=note)
    except (AttributeError, TypeError, ValueError) as error:
        return kernel.look(pid, f"it tells of itself in another way than expected: {error!r}")
    return kernel.look(pid, "no monitor") if told is None else _with_status(told)


def _with_status(seen: Snapshot) -> Snapshot:
    """Versions before this one do not tell it."""
    if seen.status == ACTIVE and seen.note.startswith(NOT_ACTIVE):
        return replace(seen, status=INACTIVE)
    return seen
