"""One multiplexed connection: its references, its requests in flight, its listener, its end."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import copy
import enum
import logging
import math
from collections.abc import Awaitable, Callable
from functools import partial
from threading import get_ident
from typing import Any, Protocol

from xoscar.backends.communication.errors import ChannelClosed
from xoscar.backends.message import DeserializeMessageFailed
from xoscar.errors import ServerClosed

from ..clock import Clock
from ..logs import counted, one_line
from ..periodic import spawn
from . import authentication, counters, history, losses, routing, transports
from .cap import NO_SEAT
from .idle import Lane
from .tally import Tally

logger = logging.getLogger("xoscar_idle")

KEY_SHOWS = 5.0
"""Seconds in which a pool, however busy, hangs up on a connection whose key is not its own."""

NOWHERE: Lane[Any] = Lane(math.inf)
"""The lane of a connection that is in none: not yet, or no more."""


_ASTONISHING = ("silent", "peer", "error")
"""Reasons of which there is more to say."""


class _ClosedHere(EOFError):
    """This process has closed it: the pool may be as well as ever."""


class State(enum.Enum):
    """Where a connection is in its life."""

    OPEN = "open"
    RETIRED = "retired"
    """In use, but to be closed when the last reference is given back; look-ups do not find it."""
    CLOSING = "closing"
    CLOSED = "closed"


class Reply(asyncio.Future[Any]):
    """The reply to one request. Cancelling it gives the request's reference back."""

    # Not Future.cancel plus a callback: that would keep the reference until the loop's next turn.

    __slots__ = ("_client", "message", "message_id", "since")

    # Set by the connection that makes it: an __init__ would cost more than all.
    _client: CallerClient
    message_id: bytes
    message: Any
    """What it answers; None when it is done, since that may be large."""
    since: float
    """When it was asked for; 0: by ourselves."""

    def expire(self, error: BaseException, arrivals: int) -> None:
        """Fail with ``error``, unless it is done; a reply that still comes is dropped.

        If nothing at all has come since the connection's ``arrivals`` were that many, it may be
        dead: it is retired, so that the next call does not wait on it, too.
        """
        if not self.done():
            self._client._fail(self, error)
            if self._client.arrivals == arrivals:
                self._client.retire("silent")

    @property
    def arrivals(self) -> int:
        """How many messages have come on its connection."""
        return self._client.arrivals

    def cancel(self, msg: Any | None = None) -> bool:
        """Cancel as any future does; a reply that still comes is dropped."""
        cancelled = super().cancel(msg)
        if cancelled:
            self._client._forget(self)
        return cancelled


class Owner(Protocol):
    """What a connection tells the one that keeps it, each in the step in which it is so."""

    @property
    def clock(self) -> Clock: ...
    @property
    def thread(self) -> int: ...
    @property
    def tally(self) -> Tally | None:
        """Where replies are counted; None: nowhere."""

    @property
    def context(self) -> contextvars.Context:
        """An empty one, of one loop alone: a context cannot be entered by two threads at once."""

    def follow(self) -> bool:
        """The loop may have moved to this thread: whether it has, and belongs here from now on."""

    def fell_idle(self) -> None:
        """One more connection is idle."""

    def answered(self, client: CallerClient) -> None:
        """The peer has answered for the first time: it speaks as a pool does."""

    def unlink(self, client: CallerClient) -> None:
        """It takes no new calls any more; once."""

    def closed(self, client: CallerClient) -> None:
        """Nothing of it is left; once."""


class CallerClient:
    """A connection of xoscar with a count of its users.

    The count is the sum of the requests in flight and of the leases taken with :meth:`add_ref`.
    While it is above 0 nothing of ours closes the connection; at 0 it is idle. All methods belong
    to the event loop that opened it, and so to the thread that runs that loop.

    Parameters
    ----------
    client
        The connection, freshly opened by ``router``.
    route
        The resolved address it was opened to.
    router
        xoscar's router, of which the address is known under which calls know it.
    owner
        Who keeps it. It lets it :meth:`listen` once everything is in its place.
    """

    __slots__ = (
        "__weakref__",
        "_asking",
        "_owner",
        "_requests",
        "_send",
        "_task",
        "arrivals",
        "calls",
        "client",
        "lane",
        "loop",
        "opened",
        "reason",
        "refs",
        "retire_at",
        "route",
        "router",
        "seat",
        "state",
    )

    _task: asyncio.Task[None]

    def __init__(self, client: transports.Client, route: str, router: Any, owner: Owner) -> None:
        self.client = client
        self.route = route
        self.loop = asyncio.get_running_loop()
        self.state = State.OPEN
        self.reason: str | None = None
        self.refs = 0
        self.calls = 0
        self.arrivals = 0
        self.router = router
        self.seat = NO_SEAT  # its place under the cap; set by the owner
        self.opened = owner.clock()
        self.lane = NOWHERE  # where its idle time is kept; set by the owner
        self.retire_at = math.inf
        self._owner = owner
        self._requests: dict[bytes, Reply] = {}
        self._asking = 0  # questions of ours among them
        self._send: Callable[[Any], Awaitable[None]] = transports.sender(client)
        counters.count_open()
        history.note("opened", self.address)

    def listen(self) -> None:
        """Begin to receive."""
        transports.when_peer_ends(self.client, partial(self.close, "peer"))
        self._task = spawn(self.loop, self._run())  # last: what fails before leaves nothing running
        # In an empty context: else each connection would hold a copy of the present one.
        self._task.add_done_callback(self._finished, context=self._owner.context)
        logger.debug("open %r", self)

    def __repr__(self) -> str:
        use = [] if self.state is State.OPEN else [self.state.value]
        if self.refs:
            use.append(f"{self.refs} in use")
        elif (since := self.idle_since) is not None:
            use.append(f"idle {self.now() - since:.1f}s")
        return f"<CallerClient {self.address} {', '.join(use)}, {self.calls} calls>"

    @property
    def thread(self) -> int:
        """The identifier of the thread that opened it."""
        return self._owner.thread

    @property
    def address(self) -> str:
        """The address of the pool: what the route, of a unix socket say, stands for."""
        return routing.known_as(self.router, self.route)

    @property
    def idle_since(self) -> float | None:
        """When it fell idle; None while it is in use, and from its end on."""
        return self.lane.since(self)

    def now(self) -> float:
        """The time that ``opened`` and ``idle_since`` are told in."""
        return self._owner.clock()

    @property
    def in_flight(self) -> int:
        """How many requests of the program wait for their reply."""
        return max(0, len(self._requests) - self._asking)

    def waiting(self) -> list[Reply]:
        """The requests that wait for their reply, the oldest first."""
        return list(self._requests.values())

    # -- references ------------------------------------------------------------------------------

    def add_ref(self) -> bool:
        """Take a reference; False if the connection takes no users any more: look up again.

        One that is overdue is closed here and now instead: the check may be late, above all when
        the machine was suspended.
        """
        if get_ident() != self._owner.thread and not self._owner.follow():
            raise RuntimeError(f"add_ref on {self!r} from a foreign thread")
        if self.state is not State.OPEN and self.state is not State.RETIRED:
            return False
        if self.refs == 0:
            now = self._owner.clock()
            if self.lane.expired(self, now):
                self.close("idle")
                return False
            if self.retire_at <= now:
                self.close("age")
                return False
        self.hold()
        return True

    def hold(self) -> None:
        """Take a reference to a connection that is known to take users, being just opened."""
        if self.refs == 0:
            self.lane.in_use(self)
        self.refs += 1

    def de_ref(self) -> None:
        """Give a reference back; with the last one the connection falls idle."""
        if self.state is State.CLOSED or self.state is State.CLOSING:
            self.refs -= 1  # nothing follows from it: garbage, of a closed loop too, comes anywhere
            return
        if get_ident() != self._owner.thread and not self._owner.follow():
            raise RuntimeError(f"de_ref on {self!r} from a foreign thread")
        if self.refs <= 0:
            raise RuntimeError(f"de_ref on {self!r} without a reference to give back")
        self.refs -= 1
        if self.refs == 0:
            if self.state is State.OPEN:
                self.lane.fell_idle(self, self._owner.clock())
                self._owner.fell_idle()
            elif self.state is State.RETIRED:
                self.close(self.reason or "retired")

    # -- requests --------------------------------------------------------------------------------

    async def request(
        self, message: Any, send: Callable[[], Awaitable[None]] | None = None, ours: bool = False
    ) -> Reply:
        """Send ``message``; the caller's reference becomes the request's, whatever happens.

        Parameters
        ----------
        message
            A xoscar message.
        send
            How to send it, where that is not simply ``client.send(message)``.
        ours
            It is a question of ours, and no call of the program's.

        Raises
        ------
        transports.NotSent
            The connection was closed, and no byte of the message was written.
        ServerClosed
            The connection was lost; part of the message may have been written.
        """
        message_id = message.message_id
        reply = Reply(loop=self.loop)
        reply._client, reply.message_id, reply.message = self, message_id, message
        reply.since = 0.0 if ours else self._owner.clock()
        if (older := self._requests.get(message_id)) is not None:
            self._fail(older, RuntimeError(f"message id {message_id.hex()} was used again"))
        self._requests[message_id] = reply
        self.calls += 1
        try:
            # It may have ended between being handed over by its connect and now.
            ended = self.state is not State.OPEN and self.state is not State.RETIRED
            if ended or self.client.closed:
                raise transports.NotSent("the connection was closed before the message was written")
            await (self._send(message) if send is None else send())
        except BaseException as error:
            if not isinstance(error, (ConnectionError, ChannelClosed)):
                self._forget(reply)
                raise
            if unsent := isinstance(error, transports.NotSent):
                self._forget(reply)  # it goes elsewhere; what there is to say is for the others
            try:
                told = await self._explained(error)
                if self._end("peer" if unsent else "error", told):
                    self._task.cancel()
            finally:
                self._forget(reply)
            if unsent:
                raise
            # The connection's task may have found out first, and have told more.
            known = reply.exception() if reply.done() and not reply.cancelled() else None
            raise known or self._server_closed(told) from None
        return reply

    async def ask(self, message: Any, timeout: float) -> Any:
        """The reply to a question of ours, which is no call of the program's.

        It is cancelled after ``timeout`` seconds.

        Raises
        ------
        ConnectionError, ServerClosed, transports.NotSent
            There is none.
        """
        if not self.add_ref():
            raise transports.NotSent("the connection was closed before")
        self.calls -= 1
        self._asking += 1
        try:
            reply = await self.request(message, ours=True)
            # Not wait_for, which leaves a task of its own where a loop ends in the middle of it.
            timer = self.loop.call_later(timeout, reply.cancel)
            try:
                return await reply
            finally:
                timer.cancel()
        finally:
            self._asking -= 1

    def _settle(self, message_id: bytes, message: Any) -> None:
        """Deliver a reply. Nobody waits for one that was cancelled, or never asked for."""
        self.arrivals += 1
        reply = self._requests.pop(message_id, None)
        if reply is not None:
            if reply.since and (tally := self._owner.tally) is not None:
                tally.add(self._owner.clock() - reply.since, reply.message)
            reply.message = None
            if not reply.done():
                reply.set_result(message)
            self.de_ref()
        if self.arrivals == 1:
            self._owner.answered(self)

    def _unreadable(self, failure: DeserializeMessageFailed) -> None:
        reply = self._requests.get(failure.message_id)
        if reply is not None:
            error: Any = failure.__cause__ or failure
            with contextlib.suppress(AttributeError, TypeError):  # it takes no attributes
                error.is_answer = True
            self._fail(reply, error)

    def _fail(self, reply: Reply, error: BaseException) -> None:
        self._forget(reply)
        if isinstance(error, asyncio.CancelledError):
            reply.cancel()  # the loop ends: its tasks are being cancelled, and shall end as such
        elif not reply.done():
            reply.set_exception(settable(error))
            reply.exception()  # whoever sent without waiting for the reply does not want to know

    def _forget(self, reply: Reply) -> None:
        # Who takes a request out of the table gives its reference back: so exactly once.
        if self._requests.get(reply.message_id) is reply:
            del self._requests[reply.message_id]
            reply.message = None
            self.de_ref()

    # -- the end ---------------------------------------------------------------------------------

    def retire(self, reason: str) -> None:
        """Take no new calls; close at once if idle, else with the last reference."""
        if self.state is not State.OPEN:
            return
        if self.refs == 0:
            self.close(reason)
        else:
            self.state, self.reason = State.RETIRED, reason
            self._owner.unlink(self)

    def close(self, reason: str, told: str = "") -> None:
        """Close in the background; requests in flight get ``ServerClosed``.

        ``told`` is what that says, where the reason alone does not say enough.
        """
        if self.state is State.CLOSING or self.state is State.CLOSED:
            return
        try:
            self._end(reason, EOFError(reason) if reason == "peer" else _ClosedHere(told or reason))
        finally:
            self._task.cancel()

    def give_up(self, why: str, asked: list[Reply]) -> None:
        """The peer shows no sign of life: fail those of ``asked`` that still wait.

        Requests that began later have their time: while there are any the connection is retired.
        Else it is closed at once, whatever is still to be sent.
        """
        if self._requests.keys() - {reply.message_id for reply in asked}:
            for reply in asked:
                self._fail(reply, self._server_closed(EOFError(why)))
            self.retire("silent")
        elif self._end("silent", EOFError(why)):
            transports.abort(self.client)
            self._task.cancel()

    def abandon(self) -> None:
        """Let go of it before it listens: its owner could not keep it."""
        self.state, self.reason = State.CLOSED, "error"
        self._count_close("error")
        self._owner.unlink(self)
        self._owner.closed(self)

    def sever(self, reason: str) -> None:
        """Close at once and without the loop, which is closed or may never run again."""
        if self.state in (State.OPEN, State.RETIRED):
            self._count_close(reason)
        self.state, self.reason = State.CLOSED, reason
        self._task._log_destroy_pending = False  # type: ignore[attr-defined]
        transports.sever(self.client, self.loop)

    def wind_up(self) -> None:
        """Its loop runs on after :meth:`sever`: whoever waits is to know."""
        self._settle_all(_ClosedHere(self.reason))
        self._task.cancel()

    def disown(self) -> None:
        """In a forked child: the connection is the parent's, and its task never runs here."""
        if self.state in (State.OPEN, State.RETIRED):
            counters.count_close("fork")
        self.state, self.reason = State.CLOSED, "fork"
        transports.disown(self.client)

    async def wait_closed(self) -> None:
        """Wait until the connection is closed; its end must have begun."""
        await asyncio.wait([self._task])

    @property
    def closed_here(self) -> bool:
        """Whether this process has ended it, or is about to, for reasons of its own."""
        return self.reason not in (None, "peer", "error", "silent")

    def _end(self, reason: str, error: BaseException) -> bool:
        """In one step: no new calls, out of the owner's tables, every waiter settled."""
        if self.state in (State.CLOSING, State.CLOSED):
            return False
        logger.debug("close %r: %s (%s)", self, reason, error)
        self._count_close(reason, error)
        before, self.state, self.reason = self.state, State.CLOSING, reason
        try:
            if before is State.OPEN:
                self._owner.unlink(self)
        finally:
            self._settle_all(error)
        return True

    def _count_close(self, reason: str, error: BaseException | None = None) -> None:
        counters.count_close(reason)
        age, calls = self.now() - self.opened, counted(self.calls, "call")
        text = f"{reason}, after {age:.1f} s and {calls}"
        if lost := self.in_flight:
            counters.count("lost", lost)
            text += f", {lost} of them in flight"
        if error and reason in _ASTONISHING and (why := one_line(error)) != reason:
            text += f": {why}"
        history.note("closed", self.address, text)

    def _settle_all(self, error: BaseException) -> None:
        if isinstance(error, (EOFError, OSError, ChannelClosed)):
            error = self._server_closed(error)
        for reply in list(self._requests.values()):
            self._fail(reply, copy_error(error))

    def _server_closed(self, error: BaseException) -> ServerClosed:
        if isinstance(error, ServerClosed):
            return error
        closed = ServerClosed(f"Remote server {self.address} closed: {error}")
        closed.closed_here = isinstance(error, _ClosedHere)
        return closed

    async def _run(self) -> None:
        """The connection's task: listens as long as it is open, then closes it."""
        # One coroutine: an idle connection holds the frames of all that it is suspended in.
        try:
            while True:
                try:
                    message = await self.client.recv()
                except DeserializeMessageFailed as failure:
                    self._unreadable(failure)
                else:
                    self._settle(message.message_id, message)
                    del message  # the next one may be long in coming, and this one large
        except asyncio.CancelledError as error:
            self._end("loop", error)
        except Exception as error:
            # A reply that cannot be read leaves the rest of the stream unreadable, too.
            reason = "peer" if isinstance(error, EOFError) else "error"
            self._end(reason, await self._explained(error))
        if self.state is not State.CLOSED:  # severed: its loop runs nothing more
            await transports.close(self.client)
            self.state = State.CLOSED

    async def _explained(self, error: Exception) -> BaseException:
        """What there is to say to those who wait on a connection that has been lost.

        It may take a second; no other call joins them meanwhile.
        """
        if not self._requests:
            return error
        if self.state is State.OPEN:
            self.retire("peer" if isinstance(error, EOFError) else "error")
        # A peer that has ended hangs up on the first message, too. But where the key does not fit,
        # the pool goes on.
        first = not self.arrivals and self.now() - self.opened < KEY_SHOWS
        if (
            first
            and isinstance(error, authentication.HUNG_UP)
            and authentication.is_for(self.client)
            and await authentication.keeps_silent_connections(self.router, self.route)
        ):
            return EOFError(authentication.explained(error))
        return await losses.lost(self) or error

    def _finished(self, task: asyncio.Task[None]) -> None:
        # A task that is cancelled before its first step, or while it closes, leaves this undone.
        if self.state is not State.CLOSED:
            self._end("loop", asyncio.CancelledError())
            transports.abort(self.client)
            self.state = State.CLOSED
        self._owner.closed(self)


def settable(error: BaseException) -> BaseException:
    """``error``, or what tells of it where a future does not take it."""
    if not isinstance(error, StopIteration):
        return error
    wrapped = RuntimeError(f"{type(error).__name__}: {error}")
    wrapped.__cause__ = error
    return wrapped


def copy_error(error: BaseException) -> BaseException:
    """A copy for one more waiter: a shared one would collect the tracebacks of all."""
    try:
        return copy.copy(error)
    except Exception:
        return error
