"""The sub-pools of the main pools that an operator names, told by those themselves."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from ..supervision.state import PoolInfo
from . import asking
from .asking import Question
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
    question = Question(QUESTION, "/health", "pools")
    seen, complaints = await asking.everybody(named, lambda _: question)
    found: dict[Target, Supervised] = {}
    for each in seen:
        try:
            read = _read(each.name, each.text)
        except Unobservable as error:
            complaints.append(str(error))
            continue
        if read.pools or named:  # sub-pools and clients offer a monitor, too
            found[each.name] = read
    return list(found.values()), complaints


def _read(name: Target, told: str | bytes) -> Supervised:
    try:
        given = json.loads(told)
        pools = [PoolInfo.from_dict(each) for each in given["pools"]]
        return Supervised(name, int(given["pid"]), pools)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise Unobservable(f"{name} does not tell of its pools as expected: {error!r}") from None
