"""Connects under way: one for all who ask for the same route, with room made for it."""

from __future__ import annotations

import asyncio
import errno
from functools import partial
from typing import Any, Protocol

from xoscar.errors import ServerClosed

from .. import config
from ..clock import Clock
from ..logs import counted, one_line
from ..periodic import spawn
from . import counters, history, losses, routing, transports
from .cap import NO_SEAT, Cap, Seat
from .client import CallerClient, copy_error, settable
from .deadlines import clear as clear_deadline


class Keeper(Protocol):
    """Who keeps the connections that come of it."""

    @property
    def loop(self) -> asyncio.AbstractEventLoop: ...
    @property
    def clock(self) -> Clock: ...

    def keep(
        self, connection: transports.Client, route: str, router: Any, seat: Seat
    ) -> CallerClient:
        """Keep an open connection, which begins to listen; on an error nothing of it is left."""

    def fell_idle(self) -> None:
        """A connection is idle."""


class Connect:
    """A connect under way, and the callers that wait for it."""

    __slots__ = (
        "given_up",
        "keeper",
        "retire",
        "route",
        "router",
        "seat",
        "started",
        "task",
        "waiters",
    )

    task: asyncio.Task[transports.Client]

    def __init__(self, keeper: Keeper, router: Any, route: str, retire: str | None) -> None:
        self.keeper = keeper
        self.router = router
        self.route = route
        self.started = keeper.clock()
        self.retire = retire
        """Why the connection is to be used by those who wait for it alone."""
        self.seat = NO_SEAT
        self.given_up = False
        self.waiters: list[asyncio.Future[CallerClient]] = []

    def succeed(self, client: CallerClient) -> None:
        """Hand the connection to everybody who still waits, each with a reference."""
        for waiter in self.waiters:
            if not waiter.done():
                client.hold()
                waiter.set_result(client)

    def fail(self, error: BaseException) -> None:
        """Let everybody who still waits raise ``error``."""
        for waiter in self.waiters:
            if not waiter.done():
                waiter.set_exception(copy_error(settable(error)))

    def opened(self) -> transports.Client | None:
        """The connection, where it is open and the loop had no turn yet to hand it out."""
        done = self.task.done() and not self.task.cancelled()
        return self.task.result() if done and self.task.exception() is None else None

    def give_up(self) -> None:
        """Nobody wants it any more."""
        self.given_up = True
        self.task.cancel()
        name = routing.known_as(self.router, self.route)
        error = ServerClosed(f"Connecting to {name} was given up")
        error.closed_here = True
        self.fail(error)


class Connects:
    """The connects of one caller that are under way."""

    def __init__(self, cap: Cap) -> None:
        self.by_route: dict[str, Connect] = {}
        """Those that calls can join."""
        self.all: dict[Connect, None] = {}
        """Until their tasks have ended."""
        self._cap = cap
        self._retiring: str | None = None

    def tasks(self) -> list[asyncio.Task[transports.Client]]:
        """Those that carry them out."""
        return [connect.task for connect in list(self.all)]

    async def join(self, keeper: Keeper, router: Any, route: str) -> CallerClient:
        """A connection to ``route`` with a reference taken; all who ask share one connect."""
        loop = keeper.loop
        connect = self.by_route.get(route)
        if connect is None:
            connect = Connect(keeper, router, route, self._retiring)
            connect.task = spawn(loop, self._dial(connect))  # first: a fork looks at it
            connect.task.add_done_callback(partial(self._connected, connect))
            self.by_route[route] = connect
            self.all[connect] = None
        waiter: asyncio.Future[CallerClient] = loop.create_future()
        connect.waiters.append(waiter)
        try:
            return await waiter
        except asyncio.CancelledError:
            # Cancelled just after the connection was handed over?
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                waiter.result().de_ref()
            raise

    def give_up(self) -> None:
        """Nobody wants them any more; a call that is made now makes a connect of its own."""
        self.by_route.clear()
        for connect in list(self.all):
            connect.give_up()

    def retire(self, reason: str) -> None:
        """Those under way, and from now on, are for those who wait for them alone."""
        self._retiring = reason
        for connect in self.all:
            connect.retire = reason

    def resume(self) -> None:
        """Undo :meth:`retire` for what comes."""
        self._retiring = None

    def sever(self, loop: asyncio.AbstractEventLoop) -> None:
        """Give up without the loop, which is closed or may never run again."""
        for connect in self.all:
            connect.seat.leave()
            if (connection := connect.opened()) is not None:
                transports.sever(connection, loop)
        self.by_route.clear()

    def disown(self) -> None:
        """In a forked child: all of this is the parent's."""
        for connect in self.all:
            if (connection := connect.opened()) is not None:
                transports.disown(connection)
            elif not connect.task.done():
                routing.disown_too(connect.route)

    async def _dial(self, connect: Connect) -> transports.Client:
        clear_deadline()  # it is for all who wait, and what it starts in this process lives on
        try:
            return await self._open(connect)
        except ConnectionRefusedError:
            told = await losses.refused(routing.known_as(connect.router, connect.route))
            if told is None:
                raise
            raise told from None

    async def _open(self, connect: Connect) -> transports.Client:
        router, route = connect.router, connect.route
        routing.override(router, "idle_timeout")  # a bad one fails here, before it is needed
        timeout = routing.override(router, "connect_timeout")
        if timeout is None:
            timeout = config.current().connect_timeout
        if not transports.holds_descriptor(route):
            return await routing.connect(router, route, timeout)
        connect.seat = self._cap.take()
        if not await self._cap.make_room():
            name = routing.known_as(router, route)
            number = counted(self._cap.limit, "connection")
            history.note("cap exceeded", name, f"all in use: {number}")
        try:
            return await routing.connect(router, route, timeout)
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE):
                raise
        await self._cap.relieve()
        return await routing.connect(router, route, timeout)

    def _connected(self, connect: Connect, task: asyncio.Task[transports.Client]) -> None:
        """A connect has ended: hand its outcome to all who wait, in one step."""
        took = connect.keeper.clock() - connect.started
        try:
            self._conclude(connect, task, took)
        except BaseException as error:
            connect.fail(error)
            raise
        finally:
            self.all.pop(connect, None)  # last: until it is kept, a fork finds it here
        failed = task.cancelled() or task.exception() is not None
        counters.count_connect(took, failed)
        if failed:
            why = None if task.cancelled() else task.exception()
            told = "given up" if why is None else one_line(why)
            name = routing.known_as(connect.router, connect.route)
            history.note("connect failed", name, f"after {took:.3f} s: {told}")

    def _conclude(
        self, connect: Connect, task: asyncio.Task[transports.Client], took: float
    ) -> None:
        if self.by_route.get(connect.route) is connect:
            del self.by_route[connect.route]
        error = None if task.cancelled() else task.exception()
        if task.cancelled() or connect.given_up:
            connect.give_up()
            if not task.cancelled() and error is None:  # it was just done
                transports.abort(task.result())
        elif error is None:
            try:
                self._hand_over(connect, task.result())
                return
            except Exception as unexpected:
                error = unexpected
        connect.seat.leave()
        if error is not None:
            name = routing.known_as(connect.router, connect.route)
            explained: Any = transports.explained(error, name, took, len(connect.waiters))
            explained.unexecuted = True
            connect.fail(explained)

    def _hand_over(self, connect: Connect, connection: transports.Client) -> None:
        """Have an open connection kept, and give it to all who wait."""
        client = connect.keeper.keep(connection, connect.route, connect.router, connect.seat)
        try:
            connect.succeed(client)
            if connect.retire is not None:
                client.retire(connect.retire)
            elif not client.refs:
                connect.keeper.fell_idle()  # nobody waits for it any more
        except BaseException:
            client.close("error")
            raise
