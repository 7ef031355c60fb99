"""The sub-pools of the main pools that an operator names, told by those themselves."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass

import psutil

from .. import side_channel
from ..supervision.state import PoolInfo
from . import snapshot, targets
from .snapshot import Unobservable
from .targets import Target

QUESTION = "xoscar_idle pools"
"""What a process with main pools is asked for them, be it over the side channel or over xoscar."""


@dataclass(frozen=True)
class Supervised:
    """A process, and the sub-pools of the main pools in it."""

    name: Target
    """The process that was asked, or the address of the main pool."""
    pid: int
    pools: list[PoolInfo]


async def look(named: Sequence[Target]) -> tuple[list[Supervised], list[str]]:
    """What is named, or else all processes with sub-pools that offer a monitor; and what is wrong.

    A main pool that is named by several addresses is there once.
    """
    offered = [] if named else await asyncio.to_thread(side_channel.offered)
    if not (named or offered):
        return [], [targets.nobody()]
    seen = await asyncio.gather(*map(_look_at, named or offered), return_exceptions=True)
    found: dict[Target, Supervised] = {}
    complaints: list[str] = []
    for each in seen:
        if isinstance(each, _Silent) and not named:
            continue  # it has just begun, or ended
        if isinstance(each, Unobservable):
            complaints.append(str(each))
        elif isinstance(each, BaseException):
            raise each
        elif each.pools or named:  # sub-pools and clients offer a monitor, too
            found[each.name] = each
    return list(found.values()), list(dict.fromkeys(complaints))


class _Silent(Unobservable):
    """A process offers no monitor."""


async def _look_at(target: Target) -> Supervised:
    if isinstance(target, int):
        return _read(target, await asyncio.to_thread(_ask, target))
    from . import pool_query  # imports xoscar, which takes a while

    return _read(*await pool_query.ask_main_pool(target, QUESTION))


def _ask(pid: int) -> bytes:
    try:
        if told := side_channel.ask(pid, QUESTION):
            return told
        seen = snapshot.ask(pid)
    except TimeoutError as error:
        raise Unobservable(str(error)) from None
    if seen is not None:
        why = seen.note or "the xoscar-idle in it is older"
        raise Unobservable(f"process {pid} cannot tell of its pools: {why}")
    if not psutil.pid_exists(pid):
        raise _Silent(f"there is no process {pid}")
    raise _Silent(
        f"process {pid} offers this user no monitor: start it with {side_channel.MONITOR}=1, or "
        "name the address of its pool instead of its PID"
    )


def _read(name: Target, told: str | bytes) -> Supervised:
    try:
        given = json.loads(told)
        pools = [PoolInfo.from_dict(each) for each in given["pools"]]
        return Supervised(name, int(given["pid"]), pools)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise Unobservable(f"{name} does not tell of its pools as expected: {error!r}") from None
