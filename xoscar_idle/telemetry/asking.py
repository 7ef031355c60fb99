"""Putting one question to processes with main pools, over each of the ways that there are."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import psutil

from .. import side_channel
from . import snapshot, targets, web
from .snapshot import Unobservable
from .targets import Target


@dataclass(frozen=True)
class Question:
    """What is asked for, and what it is called in complaints."""

    text: str
    """Over the side channel, and over xoscar."""
    path: str
    """Over HTTP."""
    of: str
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Told:
    """An answer, and who has given it."""

    asked: Target
    name: Target
    """The process that was asked, or the address of the main pool."""
    text: str | bytes


async def everybody(
    named: Sequence[Target], question: Callable[[Target], Question]
) -> tuple[list[Told], list[str]]:
    """What those answer that are named, or else all that offer a monitor; and what is wrong."""
    offered = [] if named else await asyncio.to_thread(side_channel.offered)
    if not (named or offered):
        return [], [targets.nobody()]
    seen = await asyncio.gather(
        *(ask(each, question(each)) for each in named or offered), return_exceptions=True
    )
    told: list[Told] = []
    complaints: list[str] = []
    for each in seen:
        if isinstance(each, Silent) and not named:
            continue  # it has just begun, or ended
        if isinstance(each, Unobservable):
            complaints.append(str(each))
        elif isinstance(each, BaseException):
            raise each
        else:
            told.append(each)
    return told, list(dict.fromkeys(complaints))


class Silent(Unobservable):
    """A process offers no monitor."""


class Unanswered(Unobservable):
    """A process has been asked, and does not answer in time."""


async def ask(target: Target, question: Question) -> Told:
    """The answer of a process.

    Raises
    ------
    Unobservable
        There is none.
    """
    if isinstance(target, int):
        return Told(target, target, await asyncio.to_thread(ask_process, target, question))
    if web.is_address(target):
        text = await asyncio.to_thread(web.ask, target, question.path, question.headers)
        return Told(target, target, text)
    from . import pool_query  # imports xoscar, which takes a while

    name, told = await pool_query.ask_main_pool(target, question.text)
    return Told(target, name, told)


def ask_process(pid: int, question: Question) -> bytes:
    """The answer of a process over its side channel, which is waited for.

    Raises
    ------
    Unobservable
        There is none: it is :class:`Silent`, :class:`Unanswered`, or does not know the question.
    """
    try:
        if told := side_channel.ask(pid, question.text):
            return told
        seen = snapshot.ask(pid)
    except TimeoutError as error:
        raise Unanswered(str(error)) from None
    if seen is not None:
        why = seen.note or "the xoscar-idle in it is older"
        raise Unobservable(f"process {pid} cannot tell of its {question.of}: {why}")
    if not psutil.pid_exists(pid):
        raise Silent(f"there is no process {pid}")
    raise Silent(
        f"process {pid} offers this user no monitor: start it with {side_channel.MONITOR}=1, or "
        "name the address of its pool instead of its PID"
    )
