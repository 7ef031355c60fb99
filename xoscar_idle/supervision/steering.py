"""Asking a main pool to carry out an instruction, and for what became of it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

from xoscar.backends.router import Router
from xoscar.utils import fix_all_zero_ip

from ..connection import addresses, exchange
from ..logs import one_line
from . import answers, supervisor
from .instructions import Applied, InstructionFailed, InstructionRefused, Order

TIMEOUT = 5.0
"""Seconds that a main pool may take for each answer."""

ASK_EVERY = 0.1
"""Seconds between two questions for what became of an instruction."""

Ask = Callable[[str], Awaitable[Any]]
"""Puts a question to a main pool."""


async def apply(
    instruction: str,
    address: str,
    *,
    main: str | None = None,
    request_id: str | None = None,
    expect_incarnation: int | None = None,
    drain: float | None = None,
) -> Applied:
    """Have the main pool of a sub-pool carry out an instruction; wait until it has succeeded.

    Parameters
    ----------
    instruction
        ``pause``, ``resume``, ``restart``, ``retry``, ``give_up`` or ``reset``.
    address
        That of the sub-pool, of this process or another one.
    main
        The address of its main pool, where that is another process and the sub-pool is down, so
        that it cannot tell.
    request_id
        The same instruction with the same id is one request, however often it is made.
    expect_incarnation
        Refuse it where another one is there by now.
    drain
        Seconds that requests in process have to end, of ``restart`` and ``give_up``; 30.

    Raises
    ------
    InstructionRefused
        It was not carried out; the text and ``status`` say why.
    InstructionFailed
        It did not come to what it was for.
    ConnectionError
        Its main pool does not answer.
    """
    given = {
        "request_id": request_id,
        "expect_incarnation": expect_incarnation,
        "drain": drain,
    }
    order = Order.parse(
        {"instruction": instruction, "address": address}
        | {name: value for name, value in given.items() if value is not None}
    )
    if supervisor.of(order.address) is not None:
        return await carried_out(order, _here)
    main = main or await main_of(order.address)
    return await carried_out(order, lambda question: _asked(main, question))


async def carried_out(order: Order, ask: Ask) -> Applied:
    """What became of an instruction, when it has succeeded; see :func:`apply`."""
    told = _read(await ask(answers.apply(order)))
    while told.ended is None:
        await asyncio.sleep(ASK_EVERY)
        told = _read(await ask(answers.applied(told.request_id)))
    if told.status != "succeeded":
        raise InstructionFailed(f"{told.instruction} of pool {told.address}: {told.reason}")
    return told


async def main_of(address: str) -> str:
    """The main pool of the pool at ``address``, which it tells itself.

    Raises
    ------
    ConnectionError
        It does not.
    """
    try:
        return str(fix_all_zero_ip(await _config(address, "main_pool_address"), address))
    except Exception as error:
        raise ConnectionError(
            f"pool {address} does not tell its main pool ({one_line(error)}); name that one, too"
        ) from None


async def _here(question: str) -> Any:
    return answers.steered(question)


async def _asked(main: str, question: str) -> Any:
    try:
        told = await _config(main, question)
    except Exception as error:
        raise ConnectionError(f"main pool {main} does not answer: {one_line(error)}") from None
    return json.loads(told) if isinstance(told, str) else None


async def _config(address: str, content: str) -> Any:
    addresses.check(address)
    return await exchange.ask(Router.get_instance_or_empty(), address, content, TIMEOUT)


def _read(told: Any) -> Applied:
    if not isinstance(told, dict) or "status" not in told:
        raise InstructionRefused("xoscar-idle is not active in its main pool, or is older", 404)
    if told["status"] in (400, 404, 409):
        raise InstructionRefused(str(told.get("error")), told["status"])
    return Applied.read(told["applied"])
