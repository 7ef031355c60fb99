"""Having an instruction carried out from the command line."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import click

from .. import side_channel
from ..supervision.instructions import InstructionFailed, InstructionRefused, Order
from ..telemetry.pools import QUESTION, Supervised, look
from ..telemetry.targets import Target
from .tables import printable

REFUSED = 2
"""The exit status where nothing has been done."""


def apply(given: Mapping[str, object], main: Target | None, as_json: bool) -> int:
    """Carry out an instruction and print what became of it; the exit status.

    Parameters
    ----------
    given
        The fields of :class:`~xoscar_idle.supervision.instructions.Order`.
    main
        The process of the main pool, or its address; None: it is looked for.
    """
    try:
        order = Order.parse(given)
        applied = asyncio.run(_carried_out(order, main))
    except (InstructionRefused, ConnectionError, TimeoutError) as error:
        click.echo(f"xoscar-idle: {printable(str(error))}", err=True)
        return REFUSED
    except InstructionFailed as error:
        click.echo(f"xoscar-idle: {printable(str(error))}", err=True)
        return 1
    if as_json:
        click.echo(json.dumps(dataclasses.asdict(applied), indent=2))
    else:
        where = f"pool {applied.address} (its incarnation {applied.incarnation})"
        click.echo(printable(f"{applied.instruction} of {where}: {applied.reason}"))
    return 0


async def _carried_out(order: Order, main: Target | None) -> Any:
    pid = main if isinstance(main, int) else None
    if main is None:
        pid = await _process_of(order.address)
    from ..supervision import steering  # imports xoscar, which takes a while

    if pid is not None:
        # It answers while its loop is blocked.
        return await steering.carried_out(order, lambda asked: _told_by(pid, asked))
    return await steering.apply(main=main, **dataclasses.asdict(order))  # type: ignore[arg-type]


async def _process_of(address: str) -> int | None:
    """The process of this user that says that the sub-pool is its own."""
    seen: list[Supervised] = []
    if await asyncio.to_thread(side_channel.offered):
        seen, _ = await look([])
    for each in seen:
        if any(pool.address == address for pool in each.pools):
            return each.pid
    return None


async def _told_by(pid: int, question: str) -> Any:
    told = await asyncio.to_thread(side_channel.ask, pid, question)
    if told is None and await asyncio.to_thread(side_channel.ask, pid, QUESTION) is None:
        raise ConnectionError(
            f"process {pid} offers this user no monitor: start it with {side_channel.MONITOR}=1, "
            "or name the address of the main pool instead of its PID"
        )
    return None if told is None else json.loads(told)
