"""What callers are told of a pool that died, wherever they are.

Its main pool knows. In the main pool's process it is asked directly. A sub-pool knows its main pool
and the addresses of its siblings. Anybody else asks a pool that it is connected to, while all is
well, for the address of its main pool: once, and again after a while, since a hand-over changes it.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from xoscar.backends.communication.socket import SocketClient, UnixSocketClient
from xoscar.backends.message import ErrorMessage
from xoscar.backends.pool import SubActorPoolBase
from xoscar.backends.router import Router
from xoscar.errors import ServerClosed
from xoscar.utils import fix_all_zero_ip

from ..connection import hosted
from ..connection.client import CallerClient
from ..connection.exchange import Exchange, ask, question_for_config, question_for_name
from ..connection.losses import Spawn
from ..locks import process_lock
from . import answers, supervisor
from .crash import PoolCrashed, PoolUnavailable
from .record import CrashRecord
from .state import State

logger = logging.getLogger("xoscar_idle")

PATIENCE = 1.0
"""Seconds for which an error waits for what there is to say."""

QUIET = 5.0
"""Seconds for which a main pool that has not answered is not asked again."""

INTRODUCTION = 5.0
"""Seconds that a pool may take to tell its name, and that of its main pool."""

ASK_AGAIN = 0.2
"""Seconds between two questions whether a pool has been recovered, at least."""

FRESH = 60.0
"""Seconds for which that is not asked again."""

KNOWN = 1000
"""Addresses of which the main pool is remembered, those met last."""


@dataclass(frozen=True)
class _Known:
    """Of a pool: its own name for itself, and the address of its main pool."""

    name: str
    main: str
    learnt: float


class Witness:
    """Asks main pools; of a whole process, on any of its loops."""

    def __init__(self) -> None:
        self._known: OrderedDict[str, _Known] = OrderedDict()  # by the address that is called
        self._lock = process_lock()
        self._silent: dict[str, float] = {}  # main pools that have not answered, and until when

    # -- who belongs to whom ---------------------------------------------------------------------

    def met(self, client: CallerClient, spawn: Spawn) -> None:
        """A pool has answered: learn whose it is, in the background."""
        if not isinstance(client.client, (SocketClient, UnixSocketClient)):
            return
        address = client.address
        known = self._known.get(address)
        if known is not None and time.monotonic() - known.learnt < FRESH:
            return
        if supervisor.of(address) is not None:
            return
        if (main := _main_of_siblings(address)) is not None:
            # It may be a sibling no more when it is asked about.
            self._remember(address, address, main)
        else:
            spawn(self._learn(client, address))

    async def _learn(self, client: CallerClient, address: str) -> None:
        try:
            name, main = await _introduced(client)
        except Exception as error:  # the connection has ended, or it is no pool
            logger.debug("the main pool of %s is not known: %r", address, error)
            return
        self._remember(address, name, fix_all_zero_ip(main, address))

    def _remember(self, address: str, name: str, main: str) -> None:
        with self._lock:
            self._known[address] = _Known(name, main, time.monotonic())
            self._known.move_to_end(address)
            while len(self._known) > KNOWN:
                self._known.popitem(last=False)

    # -- what became of them ---------------------------------------------------------------------

    async def lost(self, client: CallerClient) -> BaseException | None:
        """What calls on a connection are to raise that has been lost; None: nothing is known."""
        address, open_for = client.address, client.now() - client.opened
        if supervisor.of(address) is not None:
            told = await answers.end(address, open_for, answers.PATIENCE)
        else:
            told = await self._ask(address, lambda name: answers.end_of(name, open_for))
        if not isinstance(told, dict):
            return None
        try:
            record = replace(CrashRecord.from_dict(told["record"]), address=address)
            if not told["requested"]:
                return PoolCrashed.of(record)
            closed = ServerClosed(
                f"Remote server {address} closed: its process, {record.pid}, has ended: "
                f"{told['requested']}"
            )
            # Of other transports nobody knows what has arrived.
            is_socket = isinstance(client.client, (SocketClient, UnixSocketClient))
            closed.unexecuted = is_socket and bool(told.get("unexecuted"))
            return closed  # type: ignore[no-any-return]
        except (KeyError, TypeError, ValueError) as error:  # of another version of us
            logger.debug("the end of pool %s cannot be told: %r", address, error)
            return None

    async def refused(self, address: str) -> BaseException | None:
        """What calls are to raise whose connect has been refused; None: nothing is known."""
        if (here := supervisor.of(address)) is not None:
            told = here.down(address)
        else:
            told = await self._ask(address, answers.why_down)
        if not isinstance(told, dict):
            return None
        try:
            return PoolUnavailable.of(address, told)
        except (KeyError, TypeError) as error:
            logger.debug("why pool %s is down cannot be told: %r", address, error)
            return None

    async def recovered(
        self, address: str, timeout: float, held: Callable[[], int], via: str
    ) -> str | None:
        """Where a pool that is down can be reached once it has been recovered; None: nowhere."""
        until = time.monotonic() + timeout
        while (left := until - time.monotonic()) > 0:
            asked = time.monotonic()
            patience = min(left, answers.LONGEST_WAIT)
            if supervisor.of(address) is not None:
                told: Any = await answers.recovered(address, patience, held())
            else:
                told = await self._ask_patiently(address, patience, held(), via)
            if not isinstance(told, dict) or not told.get("waiting"):
                found = told.get("address") if isinstance(told, dict) else None
                return found if isinstance(found, str) else None
            # A main pool that does not answer at once has its reasons.
            await asyncio.sleep(max(0.0, min(left, asked + ASK_AGAIN - time.monotonic())))
        return None

    async def _ask_patiently(self, address: str, patience: float, held: int, via: str) -> Any:
        """The answer of its main pool; that is to be asked again where it is busy, not gone."""
        known = self._whose(address)
        if known is None and via != address and (passed_on := self._known.get(via)) is not None:
            known = address, passed_on.main
        if known is None and (known := await self._asked_itself(address, patience)) is None:
            return None
        name, main = known
        question = answers.until_recovered(name, patience, held, _own_name_for(main))
        try:
            told = await asyncio.wait_for(_asked(main, question), patience + PATIENCE)
        except asyncio.TimeoutError:
            return {"waiting": True}
        except Exception as error:
            logger.debug("main pool %s tells nothing of %s: %r", main, address, error)
            return None
        if isinstance(told, dict) and isinstance(there := told.get("address"), str):
            # Its name for itself is not always that by which it is known here.
            told["address"] = address if there == name else fix_all_zero_ip(there, address)
        return told

    async def _asked_itself(self, address: str, timeout: float) -> tuple[str, str] | None:
        """As :meth:`_whose`, of one that has been called for the first time, and answers."""
        router = Router.get_instance_or_empty()
        try:
            async with Exchange(router, address, min(timeout, INTRODUCTION)) as exchange:
                await exchange.introduce()
                main = fix_all_zero_ip(await exchange.config("main_pool_address"), address)
        except Exception as error:
            logger.debug("the main pool of %s is not known: %r", address, error)
            return None
        self._remember(address, exchange.name, main)
        return self._whose(address)

    async def excused(self, client: CallerClient) -> str:
        """Why a pool that answers no probe is not given up: its main pool says that it is busy."""
        address = client.address
        if (here := supervisor.of(address)) is not None:
            told: Any = here.info(address)
        else:
            told = await self._ask(address, answers.info_of)
        if isinstance(told, dict) and told.get("state") == State.BUSY.value:
            return f"its main pool says that it is busy: {told.get('reason')}"
        return ""

    def _whose(self, address: str) -> tuple[str, str] | None:
        """Its own name for itself, and its main pool; None: that is not known, or it is one."""
        if (main := _main_of_siblings(address)) is not None:
            name = address
        elif (known := self._known.get(address) or self._named(address)) is not None:
            name, main = known.name, known.main
        else:
            return None
        return None if main in (address, name) else (name, main)

    def _named(self, name: str) -> _Known | None:
        """The pool that calls itself so, under whatever address it is known here."""
        with self._lock:
            return next((k for k in reversed(self._known.values()) if k.name == name), None)

    async def _ask(self, address: str, question: Callable[[str], str]) -> Any:
        """What the main pool of ``address`` answers to a question about it; None: nothing."""
        if (known := self._whose(address)) is None:
            return None
        name, main = known
        now = time.monotonic()
        if self._silent.get(main, 0.0) > now:
            return None
        try:
            return await asyncio.wait_for(_asked(main, question(name)), PATIENCE)
        except asyncio.TimeoutError:
            # Else each call that is refused would wait for it once more.
            self._silent = {m: t for m, t in self._silent.items() if t > now} | {main: now + QUIET}
            logger.debug("main pool %s has not answered in %g s", main, PATIENCE)
            return None
        except Exception as error:  # it has gone, too, or its loop is blocked
            logger.debug("main pool %s tells nothing of %s: %r", main, address, error)
            return None


async def _introduced(client: CallerClient) -> tuple[str, str]:
    """The own name of whoever answers on a connection, and the address of its main pool."""
    reply = await client.ask(question_for_name(client.route), INTRODUCTION)
    if not isinstance(reply, ErrorMessage):
        raise ConnectionError("it does not speak as a pool does")
    # By its own name for itself: a main pool forwards all else, to itself if need be.
    name = reply.address
    question = question_for_config(name, "main_pool_address")
    reply = await client.ask(question, INTRODUCTION)
    if isinstance(reply, ErrorMessage) or not isinstance(reply.result, str):
        raise ConnectionError("it does not name its main pool")
    return name, reply.result


async def _asked(main: str, question: str) -> Any:
    told = await ask(Router.get_instance_or_empty(), main, question)
    return json.loads(told) if isinstance(told, str) else None


# -- siblings --------------------------------------------------------------------------------------


def _sub_pools() -> list[Any]:
    """Those of this process: they know their main pool."""
    return [each for each in hosted.pools() if isinstance(each, SubActorPoolBase)]


def _own_name_for(main: str) -> str:
    """The address of the sub-pool of this process that belongs to that main pool."""
    for pool in _sub_pools():
        if pool._main_address == main:
            return str(pool.external_address)
    return answers.NO_POOL


def _main_of_siblings(address: str) -> str | None:
    for pool in _sub_pools():
        if address in pool._config.get_external_addresses():
            main: str = pool._main_address
            return main
    return None
