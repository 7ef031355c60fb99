"""Asking pools for their statistics over xoscar itself.

The question is an ordinary control message, for the pool's configuration, with one word in its
content. A pool without us passes over the word and answers with its configuration; so that is
told apart, nothing is created over there, and nothing can be left behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
from collections.abc import Callable, Coroutine, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from xoscar.backends.message import ControlMessageType, ResultMessage
from xoscar.backends.router import Router
from xoscar.utils import fix_all_zero_ip

from ..connection import addresses, exchange
from . import kernel, questions, snapshot
from .snapshot import BLOCKED, GONE, INACTIVE, NOT_ACTIVE, Snapshot, Unobservable, take

logger = logging.getLogger("xoscar_idle")

QUESTION = "xoscar_idle"

TIMEOUT = 5.0
"""Seconds that connecting to a process, and each of its answers, may take."""

AT_ONCE = 128
"""How many processes are asked: each takes a descriptor."""

HERE = 5.0
"""Seconds that asking those of this machine over their side channels may take, all together."""

THREADS = 64
"""In which they are asked."""


class Silent(Unobservable):
    """Who listens there does not answer."""


def answer(original: Callable[[Any, Any], Coroutine[Any, Any, Any]]) -> Callable[..., Any]:
    """For ``handle_control_command`` of xoscar's pools: knows our question, too."""

    @functools.wraps(original)
    async def handle_control_command(self: Any, message: Any) -> Any:
        told = None
        if message.control_message_type == ControlMessageType.get_config:
            is_ours = message.content == QUESTION
            told = take().to_json() if is_ours else await questions.answer_there(message.content)
        if told is None:
            return await original(self, message)
        return ResultMessage(message.message_id, told, protocol=message.protocol)

    return handle_control_command


async def ask(address: str, at_once: asyncio.Semaphore | None = None) -> list[Snapshot]:
    """All processes of the pool at ``address``, that of any of its processes.

    Those that do not answer, the named one too, are looked for on this machine.

    Parameters
    ----------
    at_once
        Held for each process that is being asked.

    Raises
    ------
    Unobservable
        No pool answers there.
    """
    at_once = at_once or asyncio.Semaphore(AT_ONCE)
    try:
        async with at_once:
            with _observing(address):
                addresses = await _addresses(address)
        asked = []
    except Silent:
        asked = await _told_here([_silent(address)])
        # Not those in the same process, which would be waited for in vain once more.
        known = [pool for each in asked for pool in each.pools if not pool.get("here")]
        beside = dict.fromkeys(pool.get("address") for pool in known)
        addresses = [each for each in beside if each and each != address]
    seen = await asyncio.gather(*(_process(each, at_once) for each in addresses))
    return asked + await _told_here(seen)


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


async def tell(address: str, question: str, at_once: asyncio.Semaphore) -> str:
    """The answer to a question of ours of the process at ``address`` alone.

    Parameters
    ----------
    at_once
        Held while it is being asked.

    Raises
    ------
    Unobservable
        There is none: it does not answer, which is :class:`Silent`, or is no process that could.
    """
    async with at_once:
        with _observing(address):
            told = await _config(address, question)
    if not isinstance(told, str):
        raise Unobservable(f"{address}: xoscar-idle is not active there, or is older")
    return told


@contextlib.contextmanager
def _observing(address: str, remedy: str = "") -> Iterator[None]:
    """An error in the block is one line for the user."""
    try:
        yield
    except asyncio.TimeoutError as error:
        if getattr(error, "errno", None) is not None:  # of the kernel: there is no connection
            raise Unobservable(f"no pool answers at {address}: {kernel.why(error)}") from None
        raise Silent(f"{address} did not answer in {TIMEOUT:g} s{remedy}") from None
    except Exception as error:
        raise Unobservable(f"no pool answers at {address}: {kernel.why(error)}") from None


async def _addresses(address: str) -> list[str]:
    pool = await _config(address, None)
    return [fix_all_zero_ip(each, address) for each in pool.get_external_addresses()]


async def _process(address: str, at_once: asyncio.Semaphore) -> Snapshot:
    try:
        async with at_once:
            return await _ask_process(address)
    except asyncio.TimeoutError:
        return _silent(address)
    except Exception as error:
        note = f"does not answer: {kernel.why(error)}"
        return Snapshot(pid=None, address=address, note=note, status=GONE)


def _silent(address: str) -> Snapshot:
    note = f"did not answer in {TIMEOUT:g} s: its event loop may be blocked"
    return Snapshot(pid=None, address=address, note=note, status=BLOCKED)


async def _ask_process(address: str) -> Snapshot:
    addresses.check(address)
    router = Router.get_instance_or_empty()
    async with exchange.Exchange(router, address, TIMEOUT) as asking:
        await asking.introduce()
        told = await asking.config(QUESTION)
        if not isinstance(told, str):
            note = f"{NOT_ACTIVE} there"
            return Snapshot(asking.pid, address=address, note=note, status=INACTIVE)
        return Snapshot(**{**vars(Snapshot.from_json(told)), "address": address})


async def _config(address: str, content: str | None) -> Any:
    addresses.check(address)
    return await exchange.ask(Router.get_instance_or_empty(), address, content, TIMEOUT)


# Those of this machine whose event loop does not answer


async def _told_here(seen: Sequence[Snapshot]) -> list[Snapshot]:
    """``seen``; those of this machine that are silent have told more over their side channels."""
    silent = [each.address for each in seen if each.status == BLOCKED and each.address is not None]
    if not silent:
        return list(seen)
    told: dict[str | None, Snapshot] = {}
    threads = ThreadPoolExecutor(min(THREADS, len(silent)), "xoscar-idle-look")
    try:
        await asyncio.wait_for(_ask_here(threads, silent, told), HERE)
    except Exception as error:
        logger.debug("silent processes cannot be looked for on this machine: %r", error)
    finally:
        threads.shutdown(wait=False, cancel_futures=True)
    return [told.get(each.address, each) for each in seen]


async def _ask_here(
    threads: Executor, addresses: Sequence[str], told: dict[str | None, Snapshot]
) -> None:
    loop = asyncio.get_running_loop()

    async def ask(address: str, pid: int) -> None:
        found = await loop.run_in_executor(threads, _process_here, address, pid)
        if found is not None:
            told[address] = found

    here = await loop.run_in_executor(threads, kernel.listeners, addresses)
    await asyncio.gather(*(ask(address, pid) for address, pid in here.items()))


def _process_here(address: str, pid: int) -> Snapshot | None:
    """What is known of a silent process that listens at ``address``; None: nothing more."""
    why = f"did not answer in {TIMEOUT:g} s"
    try:
        told = snapshot.ask(pid)
    except TimeoutError:
        seen = kernel.look(pid, f"{why}, nor over its local socket", BLOCKED)
    except (AttributeError, TypeError, ValueError):  # another version
        seen = kernel.look(pid, why, BLOCKED)
    else:
        if told is not None:
            note = f"{why}: its event loop is blocked; it told this over the local socket"
            if told.note and told.status != BLOCKED:
                note = f"{note}; {told.note}"
            return replace(told, address=address, status=BLOCKED, note=note)
        seen = kernel.look(pid, f"{why}; no monitor", BLOCKED)
    return replace(seen, address=address) if seen.status == BLOCKED else None
