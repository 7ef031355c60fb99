"""Asking pools for their statistics over xoscar itself.

The question is an ordinary control message, for the pool's configuration, with one word in its
content. A pool without us passes over the word and answers with its configuration; so that is
told apart, nothing is created over there, and nothing can be left behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

from xoscar.backends.message import ControlMessageType, ResultMessage
from xoscar.backends.router import Router
from xoscar.utils import fix_all_zero_ip

from ..connection import addresses, exchange
from ..logs import one_line
from .snapshot import Snapshot, Unobservable, take

QUESTION = "xoscar_idle"

TIMEOUT = 5.0
"""Seconds that connecting to a process, and each of its answers, may take."""


def answer(original: Callable[[Any, Any], Coroutine[Any, Any, Any]]) -> Callable[..., Any]:
    """For ``handle_control_command`` of xoscar's pools: knows our question, too."""

    @functools.wraps(original)
    async def handle_control_command(self: Any, message: Any) -> Any:
        if (
            message.control_message_type == ControlMessageType.get_config
            and message.content == QUESTION
        ):
            return ResultMessage(message.message_id, take().to_json(), protocol=message.protocol)
        return await original(self, message)

    return handle_control_command


async def ask(address: str) -> list[Snapshot]:
    """All processes of the pool at ``address``, that of any of its processes.

    Raises
    ------
    Unobservable
        No pool answers there.
    """
    with _observing(address):
        addresses = await _addresses(address)
    return await asyncio.gather(*map(_process, addresses))


async def ask_main_pool(address: str, question: str) -> tuple[str, str]:
    """The main pool of the pool at ``address``, and its answer to a question of ours.

    Raises
    ------
    Unobservable
        No pool answers there, or xoscar-idle is not active in the main pool.
    """
    remedy = ": if it is a sub-pool, name its main pool, which can tell of those that are blocked"
    with _observing(address, remedy):
        main = fix_all_zero_ip(await _config(address, "main_pool_address"), address)
    with _observing(main):
        told = await _config(main, question)
    if not isinstance(told, str):
        raise Unobservable(f"main pool {main}: xoscar-idle is not active there, or is older")
    return main, told


@contextlib.contextmanager
def _observing(address: str, remedy: str = "") -> Iterator[None]:
    """An error in the block is one line for the user."""
    try:
        yield
    except asyncio.TimeoutError:
        raise Unobservable(f"{address} did not answer in {TIMEOUT:g} s{remedy}") from None
    except Exception as error:
        raise Unobservable(f"no pool answers at {address}: {one_line(error)}") from None


async def _addresses(address: str) -> list[str]:
    pool = await _config(address, None)
    return [fix_all_zero_ip(each, address) for each in pool.get_external_addresses()]


async def _process(address: str) -> Snapshot:
    try:
        return await _ask_process(address)
    except asyncio.TimeoutError:
        note = f"did not answer in {TIMEOUT:g} s: its event loop may be blocked"
    except Exception as error:
        note = f"does not answer: {one_line(error)}"
    return Snapshot(pid=None, address=address, note=note)


async def _ask_process(address: str) -> Snapshot:
    addresses.check(address)
    router = Router.get_instance_or_empty()
    async with exchange.Exchange(router, address, TIMEOUT) as asking:
        await asking.introduce()
        told = await asking.config(QUESTION)
        if not isinstance(told, str):
            return Snapshot(asking.pid, address=address, note="xoscar-idle is not active there")
        return Snapshot(**{**vars(Snapshot.from_json(told)), "address": address})


async def _config(address: str, content: str | None) -> Any:
    addresses.check(address)
    return await exchange.ask(Router.get_instance_or_empty(), address, content, TIMEOUT)
