"""Asking pools for their statistics over xoscar itself.

The question is an ordinary control message, for the pool's configuration, with one word in its
content. A pool without us passes over the word and answers with its configuration; so that is
told apart, nothing is created over there, and nothing can be left behind.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Coroutine
from typing import Any

from xoscar.backends.context import create_actor_ref
from xoscar.backends.message import (
    ControlMessage,
    ControlMessageType,
    ErrorMessage,
    ResultMessage,
    SendMessage,
    new_message_id,
)
from xoscar.backends.router import Router
from xoscar.utils import fix_all_zero_ip

from ..connections import addresses, authentication, routing, transports
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
    try:
        addresses = await _addresses(address)
    except asyncio.TimeoutError:
        raise Unobservable(f"{address} did not answer in {TIMEOUT:g} s") from None
    except Exception as error:
        raise Unobservable(f"no pool answers at {address}: {_one_line(error)}") from None
    return await asyncio.gather(*map(_process, addresses))


async def _addresses(address: str) -> list[str]:
    async with _Line(address) as line:
        pool = await line.ask(None)
    return [fix_all_zero_ip(each, address) for each in pool.get_external_addresses()]


async def _process(address: str) -> Snapshot:
    try:
        return await _ask_process(address)
    except asyncio.TimeoutError:
        note = f"did not answer in {TIMEOUT:g} s: its event loop may be blocked"
    except Exception as error:
        note = f"does not answer: {_one_line(error)}"
    return Snapshot(pid=None, address=address, note=note)


async def _ask_process(address: str) -> Snapshot:
    async with _Line(address) as line:
        told = await line.ask(QUESTION)
        if not isinstance(told, str):
            return Snapshot(line.pid, address=address, note="xoscar-idle is not active there")
        return Snapshot(**{**vars(Snapshot.from_json(told)), "address": address})


class _Line:
    """A connection to one process of a pool, for the time of an ``async with`` block."""

    pid: int

    def __init__(self, address: str) -> None:
        self._address = address

    async def __aenter__(self) -> _Line:
        addresses.check(self._address)
        router = Router.get_instance_or_empty()
        self._client = await routing.connect(router, self._address, TIMEOUT)
        try:
            await self._introduce()
        except BaseException:
            transports.abort(self._client)
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        transports.abort(self._client)  # nothing more is to be said

    async def _introduce(self) -> None:
        """Learn the process's own name for itself.

        A main pool forwards what is not addressed to exactly that name, and to itself without
        end if it is reached by another: ``localhost``, or a host where it listens on 0.0.0.0.
        The error of a call to an actor that is not there tells the name.
        """
        nobody = create_actor_ref(self._address, QUESTION.encode())
        try:
            error = await self._exchange(SendMessage(new_message_id(), nobody, (QUESTION, (), {})))
        except authentication.HUNG_UP as closed:
            raise ConnectionError(authentication.explained(closed)) from None
        if not isinstance(error, ErrorMessage):
            raise ConnectionError("it does not speak as a pool does")
        self._own_address, self.pid = error.address, error.pid

    async def ask(self, content: str | None) -> Any:
        """The answer to a question for the configuration."""
        reply = await self._exchange(
            ControlMessage(
                new_message_id(), self._own_address, ControlMessageType.get_config, content
            )
        )
        if isinstance(reply, ErrorMessage):
            raise reply.as_instanceof_cause()
        return reply.result

    async def _exchange(self, message: Any) -> Any:
        async def exchange() -> Any:
            await self._client.send(message)
            return await self._client.recv()

        return await asyncio.wait_for(exchange(), TIMEOUT)


def _one_line(error: BaseException) -> str:
    return " ".join(f"{error}".split()) or type(error).__name__
