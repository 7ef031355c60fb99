"""What a main pool's process answers to whoever asks for its sub-pools.

Over xoscar the question is an ordinary control message, for the pool's configuration, with ours in
its content. A pool without us passes over that and answers with its configuration: so it is told
apart. Over the side channel the same line is the question.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
from functools import partial
from typing import Any

from .. import side_channel
from . import supervisor
from .events import journal
from .instructions import Applied, InstructionRefused, Order

PREFIX = "xoscar_idle "

PATIENCE = 0.9
"""Seconds for which the end of a process is waited for; who asks has a second."""

LONGEST_WAIT = 2.0
"""Seconds for which a question is kept without an answer: who asks may have gone meanwhile."""

NO_POOL = "-"
"""Who asks, if that is no sub-pool."""


def end_of(address: str, open_for: float) -> str:
    """The question how the process at ``address`` ended, for who was connected to it so long."""
    return f"{PREFIX}end {open_for:.3f} {address}"


def why_down(address: str) -> str:
    """The question why the pool at ``address`` refuses connections."""
    return f"{PREFIX}down {address}"


def info_of(address: str) -> str:
    """The question how the pool at ``address`` is."""
    return f"{PREFIX}info {address}"


def until_recovered(address: str, seconds: float, held: int, asker: str = NO_POOL) -> str:
    """The question where a pool can be reached, asked for so many calls that wait for it."""
    return f"{PREFIX}recovered {seconds:.3f} {held} {asker} {address}"


def apply(order: Order) -> str:
    """The request to carry out an instruction."""
    return f"{PREFIX}apply {json.dumps(dataclasses.asdict(order))}"


def applied(request_id: str) -> str:
    """The question what became of it."""
    return f"{PREFIX}applied {request_id}"


EVENTS = f"{PREFIX}events "
"""How the question begins for what has happened; behind it are a number and the journal's name."""

ALL = f"{PREFIX}pools"
"""The question for all sub-pools."""


VERBS = ("pools", "events", "down", "info", "end", "recovered", "apply", "applied")
"""With what the questions begin, behind the prefix."""


def is_question(content: object) -> bool:
    """Whether it is one of ours, and not telemetry's."""
    if not (isinstance(content, str) and content.startswith(PREFIX)):
        return False
    return content.removeprefix(PREFIX).partition(" ")[0] in VERBS


async def answer(question: str) -> Any:
    """The answer, in values that JSON has; None: there is nothing to say."""
    verb, _, rest = question.removeprefix(PREFIX).partition(" ")
    if verb == "pools":
        return pools()
    if verb == "events":
        return events(rest)
    if verb in ("down", "info"):
        found = supervisor.of(rest)
        if found is None:
            return None
        return found.down(rest) if verb == "down" else found.info(rest)
    if verb == "end":
        seconds, _, address = rest.partition(" ")
        return await end(address, float(seconds), PATIENCE)
    if verb == "recovered":
        seconds, held, asker, address = rest.split(" ", 3)
        return await recovered(address, min(float(seconds), LONGEST_WAIT), int(held), asker)
    return steered(question)


def pools() -> dict[str, Any]:
    """All sub-pools of this process."""
    told = [vars(info) for each in supervisor.everywhere() for info in each.pools()]
    return {"pid": os.getpid(), "pools": told}


def events(since: str) -> dict[str, Any]:
    """What has happened after ``NUMBER JOURNAL``; see :meth:`.journal.Journal.told`."""
    number, _, name = since.partition(" ")
    return journal.told(name, int(number))


async def end(address: str, open_for: float, patience: float) -> dict[str, Any] | None:
    """How the process at ``address`` ended, to which a connection was open for so many seconds."""
    found = supervisor.of(address)
    if found is None:
        return None
    ended = await found.explain(address, open_for, patience)
    if ended is None:
        return None
    record = {**vars(ended.record), "state": ended.lineage.state.value}
    return {"requested": ended.requested, "record": record, "unexecuted": ended.drained}


async def recovered(
    address: str, seconds: float, held: int, asker: str = NO_POOL
) -> dict[str, Any] | None:
    """Where a pool can be reached: ``address``, or ``waiting`` where it is still to be waited for.

    None: nowhere.
    """
    if (found := supervisor.of(address)) is None:
        return None
    waiting = found.on_its_loop(partial(found.recovered, address, seconds, held, asker))
    try:
        there = await waiting
    except asyncio.TimeoutError:
        return {"waiting": True}
    return None if there is None else {"address": there}


def accept(order: Order) -> Applied:
    """Have an instruction carried out by the main pool of this process that it is for.

    Raises
    ------
    InstructionRefused
        There is none, or it does not; see :meth:`.operating.Operator.accept`.
    """
    if (found := supervisor.of(order.address)) is None:
        raise InstructionRefused(f"there is no sub-pool {order.address}", 404)
    return found.operator.accept(order)


def applied_as(request_id: str) -> Applied | None:
    """What became of the request of that id; None: it is not known, or not any more."""
    found = (each.operator.of(request_id) for each in supervisor.everywhere())
    return next((each for each in found if each is not None), None)


def steered(question: str) -> dict[str, Any] | None:
    """The answer to an instruction, or to what became of one; in any thread.

    ``status`` is as in HTTP: 202, and ``applied`` is what became of it; else there is ``error``.
    """
    verb, _, rest = question.removeprefix(PREFIX).partition(" ")
    if verb == "apply":
        try:
            accepted = accept(Order.parse(json.loads(rest)))
            return {"status": 202, "applied": dataclasses.asdict(accepted)}
        except InstructionRefused as refused:
            return {"status": refused.status, "error": str(refused)}
        except (TypeError, ValueError) as error:
            return {"status": 400, "error": f"it cannot be read: {error}"}
    if verb == "applied":
        if (known := applied_as(rest)) is not None:
            return {"status": 202, "applied": dataclasses.asdict(known)}
        return {"status": 404, "error": f"there is no request {rest}, or not any more"}
    return None


def offer() -> None:
    """Answer who asks over the side channel, where there is one."""
    side_channel.answer(ALL, lambda _: json.dumps(pools()))
    side_channel.answer(EVENTS, lambda asked: json.dumps(events(asked.removeprefix(EVENTS))))
    for verb in ("apply", "applied"):
        side_channel.answer(f"{PREFIX}{verb} ", lambda question: json.dumps(steered(question)))
