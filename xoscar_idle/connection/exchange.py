"""A connection of its own for a few questions to one process of a pool."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

from xoscar.backends.context import create_actor_ref
from xoscar.backends.message import (
    ControlMessage,
    ControlMessageType,
    ErrorMessage,
    HasActorMessage,
    SendMessage,
    new_message_id,
)

from . import authentication, routing, transports

NOBODY = b"xoscar_idle"
"""The id of an actor that no pool has."""


def question_for_name(route: str) -> SendMessage:
    """A call to an actor that is not there: its error tells the process's own name and its pid."""
    return SendMessage(new_message_id(), create_actor_ref(route, NOBODY), (NOBODY.decode(), (), {}))


def question_for_config(name: str, content: str | None) -> ControlMessage:
    """A question for the configuration of the process that calls itself ``name``."""
    return ControlMessage(new_message_id(), name, ControlMessageType.get_config, content)


def is_question(message: Any) -> bool:
    """Whether it is with what an :class:`Exchange` begins."""
    actor = getattr(message, "actor_ref", None)
    return actor is not None and bool(actor.uid == NOBODY)


async def ask(router: Any, route: str, content: str | None, timeout: float | None = None) -> Any:
    """The answer to one question for the configuration; see :class:`Exchange`."""
    async with Exchange(router, route, timeout) as exchange:
        await exchange.introduce()
        return await exchange.config(content)


class Exchange:
    """Opened with ``async with``, or with :meth:`open` and :meth:`close`.

    Parameters
    ----------
    router
        xoscar's.
    route
        The resolved address of the process.
    timeout
        Seconds that connecting and each answer may take, else they raise asyncio.TimeoutError, or
        ConnectionError while connecting. None: the transport's own limit, and none for answers.

    Raises
    ------
    ConnectionError
        The other side hung up at the first message, which tells of ``XOSCAR_AUTH_KEY``.
    """

    pid: int
    """The process that answers; known from :meth:`introduce` on."""
    name: str
    """What it calls itself; its route until :meth:`introduce`."""

    def __init__(self, router: Any, route: str, timeout: float | None = None) -> None:
        self._router = router
        self._route = route
        self._timeout = timeout
        self._at_end = contextlib.ExitStack()
        self.name = route
        self._answered = False

    async def open(self) -> None:
        """Connect."""
        with contextlib.ExitStack() as stack:
            stack.enter_context(routing.loose(self._route))
            self._connection = await routing.connect(self._router, self._route, self._timeout)
            stack.callback(transports.abort, self._connection)  # nothing more is to be said then
            self._at_end = stack.pop_all()

    def close(self) -> None:
        """Disconnect, if connected."""
        self._at_end.close()

    async def __aenter__(self) -> Exchange:
        await self.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    async def sign_of_life(self) -> None:
        """Wait for an answer, whichever."""
        # Not a control message, which would need to be introduced.
        await self._ask(HasActorMessage(new_message_id(), create_actor_ref(self._route, NOBODY)))

    async def introduce(self) -> None:
        """Learn the process's own name for itself.

        A main pool forwards what is not addressed to exactly that name, and to itself without
        end if it is reached by another: ``localhost``, or a host where it listens on 0.0.0.0.
        The error of a call to an actor that is not there tells the name.
        """
        error = await self._ask(question_for_name(self._route))
        if not isinstance(error, ErrorMessage):
            raise ConnectionError("it does not speak as a pool does")
        self.name, self.pid = error.address, error.pid

    async def config(self, content: str | None) -> Any:
        """The answer to a question for the pool's configuration; :meth:`introduce` comes first."""
        reply = await self._ask(question_for_config(self.name, content))
        if isinstance(reply, ErrorMessage):
            raise reply.as_instanceof_cause()
        return reply.result

    async def _ask(self, message: Any) -> Any:
        async def ask() -> Any:
            await self._connection.send(message)
            return await self._connection.recv()

        try:
            answer = await asyncio.wait_for(ask(), self._timeout)
        except authentication.HUNG_UP as closed:
            if self._answered:
                raise
            raise ConnectionError(authentication.explained(closed)) from None
        self._answered = True
        return answer
