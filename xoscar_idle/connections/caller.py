"""The connections of one thread and one event loop: opening, calling, checking, stopping."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import errno
import logging
import math
import random
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextvars import ContextVar
from functools import partial
from threading import get_ident
from time import perf_counter
from typing import Any

from xoscar.backends.communication import ChannelType
from xoscar.backends.message import (
    DEFAULT_PROTOCOL,
    CancelMessage,
    ForwardMessage,
    MessageType,
    new_message_id,
)
from xoscar.errors import ServerClosed
from xoscar.profiling import get_profiling_data

from .. import config
from ..periodic import Periodic, spawn
from . import cap as caps
from . import routing, statistics, transports
from .age import AgeQueue
from .cap import NO_SEAT, Cap
from .client import NOWHERE, CallerClient, Clock, Reply, State, copy_error, monotonic, settable
from .deadlines import Limit, limit_of
from .deadlines import clear as clear_deadline
from .idle import IdleQueue
from .probe import Prober

logger = logging.getLogger("xoscar_idle")

CANCEL_TIMEOUT = 5.0
"""Seconds that are spent on telling the other side that a call has missed its deadline."""

_NOT_CANCELLABLE = (MessageType.cancel, MessageType.control)

_leases: ContextVar[contextlib.ExitStack | None] = ContextVar("xoscar_idle_leases", default=None)


@contextlib.contextmanager
def leases() -> Iterator[None]:
    """Keep each connection that ``get_client`` hands out referenced until the block ends."""
    with contextlib.ExitStack() as stack:
        token = _leases.set(stack)
        try:
            yield
        finally:
            with contextlib.suppress(ValueError):  # garbage of a closed loop, in no context of it
                _leases.reset(token)


def _abandon(sending: asyncio.Task[Reply]) -> None:
    """Whoever sent has been cancelled; so is a request that went out all the same."""
    if not sending.cancelled() and sending.exception() is None:
        sending.result().cancel()


class _Connect:
    """A connect under way, and the callers that wait for it."""

    __slots__ = ("given_up", "retire", "route", "router", "seat", "started", "task", "waiters")

    task: asyncio.Task[transports.Client]

    def __init__(self, router: Any, route: str, started: float) -> None:
        self.router = router
        self.route = route
        self.started = started
        self.seat = NO_SEAT
        self.given_up = False
        self.retire: str | None = None
        """Why the connection is to be used by those who wait for it alone."""
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
        self.fail(ServerClosed(f"Connecting to {name} was given up"))


class ActorCaller(Periodic):
    """Calls over connections that it opens on demand and closes when nobody uses them.

    It belongs to the event loop that it was made on, and so to the thread that runs that loop, and
    touches no other's connections. At most one connection that takes calls, or one connect that
    calls can join, exists per route.
    """

    def __init__(self, clock: Clock = monotonic, cap: Cap | None = None) -> None:
        super().__init__(clock)
        self.thread = get_ident()
        self.context = contextvars.Context()
        self._cap = cap or caps.process
        self._clients: dict[str, CallerClient] = {}  # by route: those that take calls
        self._all: dict[transports.Client, CallerClient] = {}  # until nothing of them is left
        self._connects: dict[str, _Connect] = {}  # by route: those that calls can join
        self._dials: dict[_Connect, None] = {}  # until their tasks have ended
        self._idle: IdleQueue[CallerClient] = IdleQueue()
        self._ages: AgeQueue[CallerClient] = AgeQueue()
        self._background: set[asyncio.Task[None]] = set()  # a loop holds its tasks weakly
        self._prober = Prober()
        self._retiring: str | None = None
        self._profiling_data = get_profiling_data()

    def __repr__(self) -> str:
        return f"<ActorCaller {list(self._all.values())}, {len(self._dials)} connecting>"

    def connecting(self) -> list[str]:
        """The routes to which connects are under way."""
        return [connect.route for connect in list(self._dials)]

    def connections(self) -> list[CallerClient]:
        """Those of which something is left."""
        return list(self._all.values())

    # -- xoscar's interface ----------------------------------------------------------------------

    def call(
        self,
        router: Any,
        dest_address: str,
        message: Any,
        wait: bool = True,
        proxy_addresses: list[str] | None = None,
    ) -> Coroutine[Any, Any, Any]:
        """Send ``message`` to the pool at ``dest_address``.

        Returns
        -------
        The coroutine of xoscar's ``ResultMessage`` or ``ErrorMessage``; with ``wait=False`` that of
        the future of it.

        Raises
        ------
        OSError
            The connection could not be opened.
        ServerClosed
            The connection was lost; the message may have reached the other side.
        CallTimeout
            There was no reply by the deadline.
        """
        limit = limit_of(message)
        if limit is None:
            return self._send(router, dest_address, message, proxy_addresses, wait)
        sending = self._send(router, dest_address, message, proxy_addresses, wait=False)
        cancel = partial(self._cancel, router, dest_address, message, proxy_addresses)
        return self._in_time(limit, sending, dest_address, message, cancel, wait)

    async def get_client(
        self, router: Any, dest_address: str, proxy_addresses: list[str] | None = None
    ) -> transports.Client:
        """The connection that serves ``dest_address``, opened if need be.

        Within :func:`leases` it stays referenced until that block ends; else it may be closed
        once it has been idle for its timeout.
        """
        return await self._lease(router, routing.resolve(router, dest_address, proxy_addresses))

    async def get_client_via_type(
        self, router: Any, dest_address: str, client_type: type[transports.Client]
    ) -> transports.Client:
        """As :meth:`get_client`, over the transport of ``client_type``."""
        return await self._lease(
            router, routing.resolve_via_type(router, dest_address, client_type)
        )

    def call_with_client(
        self, client: transports.Client, message: Any, wait: bool = True
    ) -> Coroutine[Any, Any, Any]:
        """Send ``message`` over a connection from :meth:`get_client`; see :meth:`call`."""
        return self._call_over(client, message, None, wait)

    def call_send_buffers(
        self, client: Any, local_buffers: list[Any], meta_message: Any, wait: bool = True
    ) -> Coroutine[Any, Any, Any]:
        """Send ``local_buffers`` behind ``meta_message`` (UCX); see :meth:`call`."""
        send = partial(client.send_buffers, local_buffers, meta_message)
        return self._call_over(client, meta_message, send, wait)

    async def stop(self) -> None:
        """Close all connections, in use or not, and wait until they are closed."""
        clients = list(self._all.values())
        self.cancel_tasks()
        connects = [connect.task for connect in self._dials]
        if connects:
            await asyncio.wait(connects)
            await asyncio.sleep(0)  # for what is done when they have ended
        for client in clients:
            await client.wait_closed()

    def cancel_tasks(self) -> None:
        """Close all connections in the background; whoever waits gets ``ServerClosed``."""
        self.close("stop")

    # -- sending ---------------------------------------------------------------------------------

    async def _send(
        self,
        router: Any,
        dest_address: str,
        message: Any,
        proxy_addresses: list[str] | None,
        wait: bool,
    ) -> Any:
        """Send ``message`` over a connection to where its address is routed."""
        started = perf_counter()
        route = routing.resolve(router, dest_address, proxy_addresses)
        while True:
            client = self._clients.get(route)
            reused = client is not None and client.add_ref()
            if client is None or not reused:
                client = await self._connect(router, route)
            outgoing = message
            if (
                route != dest_address
                and client.client.channel_type == ChannelType.remote
                and message.message_type != MessageType.control
            ):
                outgoing = ForwardMessage(
                    message_id=message.message_id, address=dest_address, raw_message=message
                )
            try:
                reply = await client.request(outgoing)
                break
            except transports.NotSent as error:
                # Nothing was written, so another connection may try; but a peer that hangs up
                # on new connections is not to be dialed in a loop.
                if not reused:
                    raise ServerClosed(f"Remote server {client.address} closed: {error}") from None
        result = await reply if wait else reply
        self._profiling_data.collect_actor_call(message, perf_counter() - started)
        return result

    def _call_over(
        self,
        connection: transports.Client,
        message: Any,
        send: Callable[[], Awaitable[None]] | None,
        wait: bool,
    ) -> Coroutine[Any, Any, Any]:
        limit = limit_of(message)
        if limit is None:
            return self._send_over(connection, message, send, wait)
        sending = self._send_over(connection, message, send, wait=False)
        address = connection.dest_address
        return self._in_time(limit, sending, address, message, lambda: None, wait)

    async def _send_over(
        self,
        connection: transports.Client,
        message: Any,
        send: Callable[[], Awaitable[None]] | None,
        wait: bool,
    ) -> Any:
        """Send ``message`` over a connection from :meth:`get_client`."""
        started = perf_counter()
        client = self._all.get(connection)
        try:
            if client is None or not client.add_ref():
                raise transports.NotSent("the connection was closed before")
            reply = await client.request(message, send)
        except transports.NotSent as error:
            address = connection.dest_address if client is None else client.address
            raise ServerClosed(f"Remote server {address} closed: {error}") from None
        result = await reply if wait else reply
        self._profiling_data.collect_actor_call(message, perf_counter() - started)
        return result

    async def _in_time(
        self,
        limit: Limit,
        sending: Coroutine[Any, Any, Reply],
        address: str,
        message: Any,
        cancel: Callable[[], None],
        wait: bool,
    ) -> Any:
        """Send, and see to it that sending and reply fail at the deadline."""
        if limit.at <= self.loop.time():
            sending.close()
            raise limit.passed(address, message)
        task = self.loop.create_task(sending)
        timeout = self.loop.call_at(limit.at, task.cancel)
        try:
            # Not wait_for: before Python 3.12 it swallows a cancellation that comes at the end.
            await asyncio.wait([task])
        except asyncio.CancelledError:
            task.add_done_callback(_abandon)
            task.cancel()
            raise
        finally:
            timeout.cancel()
        if task.cancelled():
            cancel()
            raise limit.error(address, message)
        reply = task.result()
        arrivals = reply.arrivals

        def expire() -> None:
            reply.expire(limit.error(address, message), arrivals)
            cancel()

        timer = self.loop.call_at(limit.at, expire)
        reply.add_done_callback(lambda _: timer.cancel())
        return await reply if wait else reply

    def _cancel(
        self, router: Any, address: str, message: Any, proxy_addresses: list[str] | None
    ) -> None:
        """Let the other side stop working on ``message``, in the background."""
        if message.message_type in _NOT_CANCELLABLE:
            return

        async def cancel() -> None:
            clear_deadline()
            id_ = new_message_id()
            request = CancelMessage(id_, address, message.message_id, protocol=DEFAULT_PROTOCOL)
            calling = self.call(router, address, request, proxy_addresses=proxy_addresses)
            with contextlib.suppress(Exception):  # whoever waited has had its error
                await asyncio.wait_for(calling, CANCEL_TIMEOUT)

        task = spawn(self.loop, cancel())
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    # -- the life of connections -----------------------------------------------------------------

    def close(self, reason: str) -> None:
        """Close all connections in the background, giving ``reason`` for it."""
        self._connects.clear()  # a call that is made now makes a connect of its own
        for connect in list(self._dials):
            connect.give_up()
        for task in [*self._background, *self._prober.tasks()]:
            task.cancel()
        for client in list(self._all.values()):
            client.close(reason)

    def retire(self, reason: str) -> None:
        """Close what is idle; what is in use, waited for, or opened from now on, after its use."""
        self._retiring = reason
        for connect in self._dials:
            connect.retire = reason
        for client in list(self._clients.values()):
            client.retire(reason)

    def resume(self) -> None:
        """Keep again what is opened from now on."""
        self._retiring = None

    def sever(self, reason: str) -> None:
        """Close all connections at once; their loop is closed or may never run again.

        If it runs all the same, whoever waits there gets an error.
        """
        tasks: list[Any] = [connect.task for connect in self._dials]
        tasks += [*self._background, *self._prober.tasks()]
        if self._check is not None:
            tasks.append(self._check)
        for task in tasks:
            task._log_destroy_pending = False
        for connect in self._dials:
            connect.seat.leave()
            if (connection := connect.opened()) is not None:
                transports.sever(connection, self.loop)
        clients = list(self._all.values())
        for client in clients:
            client.seat.leave()
            client.sever(reason)
        self._cap.leave(self)
        self._clients.clear()
        self._connects.clear()
        self._all.clear()
        self._idle, self._ages = IdleQueue(), AgeQueue()
        with contextlib.suppress(RuntimeError):  # it is closed
            self.loop.call_soon_threadsafe(self._wind_up, clients, tasks)

    def _wind_up(self, clients: list[CallerClient], tasks: list[asyncio.Task[Any]]) -> None:
        """The loop runs on after :meth:`sever`."""
        for connect in list(self._dials):
            connect.give_up()
        for client in clients:
            client.wind_up()
        for task in tasks:
            task.cancel()
        self._check = None

    def disown(self) -> None:
        """In a forked child: all of this is the parent's."""
        for client in self._all.values():
            client.disown()
        for connect in self._dials:
            if (connection := connect.opened()) is not None:
                transports.disown(connection)
            elif not connect.task.done():
                routing.disown_too(connect.route)

    def idlest(self) -> tuple[float, CallerClient] | None:
        """The least recently used idle connection that holds a descriptor, and since when."""
        return self._idle.oldest()

    def apply_settings(self) -> None:
        """Let the settings in force hold for the connections that are open."""
        now = self.clock()
        # In the order of falling idle, which is that of a lane.
        for client in sorted(self._clients.values(), key=lambda c: c.idle_since or now):
            self._file(client, client.idle_since)
        self.ensure_check()
        self._cap.shrink()

    def sweep(self, now: float) -> None:
        """Close what has been idle for its timeout or has reached its age."""
        for client in self._ages.expire(now):
            client.retire("age")
        for client in self._idle.expire(now):
            client.close("idle")
        self._prober.sweep(now, self._all.values())

    def next_expiry(self, now: float) -> float:
        """When the next connection can expire, or a probe is due."""
        return min(
            self._idle.next_expiry(now),
            self._ages.next_expiry(),
            self._prober.next_expiry(now) if self._all else math.inf,
        )

    async def _connect(self, router: Any, route: str) -> CallerClient:
        """A connection to ``route`` with a reference taken; all who ask share one connect."""
        connect = self._connects.get(route)
        if connect is None:
            connect = _Connect(router, route, self.clock())
            connect.retire = self._retiring
            connect.task = spawn(self.loop, self._dial(connect))  # first: a fork looks at it
            connect.task.add_done_callback(partial(self._connected, connect))
            self._connects[route] = connect
            self._dials[connect] = None
        waiter: asyncio.Future[CallerClient] = self.loop.create_future()
        connect.waiters.append(waiter)
        try:
            return await waiter
        except asyncio.CancelledError:
            # Cancelled just after the connection was handed over?
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                waiter.result().de_ref()
            raise

    async def _dial(self, connect: _Connect) -> transports.Client:
        clear_deadline()  # it is for all who wait, and what it starts in this process lives on
        router, route = connect.router, connect.route
        routing.override(router, "idle_timeout")  # a bad one fails here, before it is needed
        timeout = routing.override(router, "connect_timeout")
        if timeout is None:
            timeout = config.current().connect_timeout
        if not transports.holds_descriptor(route):
            return await routing.connect(router, route, timeout)
        connect.seat = self._cap.take()
        await self._cap.make_room()
        try:
            return await routing.connect(router, route, timeout)
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE):
                raise
        await self._cap.relieve()
        return await routing.connect(router, route, timeout)

    def _connected(self, connect: _Connect, task: asyncio.Task[transports.Client]) -> None:
        """A connect has ended: hand its outcome to all who wait, in one step."""
        took = self.clock() - connect.started
        try:
            self._conclude(connect, task, took)
        except BaseException as error:
            connect.fail(error)
            raise
        finally:
            self._dials.pop(connect, None)  # last: until it is kept, a fork finds it here
        statistics.count_connect(took, failed=task.cancelled() or task.exception() is not None)

    def _conclude(
        self, connect: _Connect, task: asyncio.Task[transports.Client], took: float
    ) -> None:
        if self._connects.get(connect.route) is connect:
            del self._connects[connect.route]
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
            connect.fail(transports.explained(error, name, took, len(connect.waiters)))

    def _hand_over(self, connect: _Connect, connection: transports.Client) -> None:
        """Keep an open connection, and give it to all who wait; on an error nothing is left."""
        client = None
        try:
            client = CallerClient(connection, connect.route, connect.router, self)
            client.seat = connect.seat
            if not self._clients:
                self._cap.join(self)
            self._clients[client.route] = self._all[connection] = client
            # The idle clock starts when the connection opens: one that is never used expires, too.
            self._file(client, client.opened)
            client.listen()
        except BaseException:
            connect.seat.leave()
            transports.abort(connection)  # first: what follows may fail, too
            self._all.pop(connection, None)
            if client is not None:
                client.abandon()
            raise
        try:
            connect.succeed(client)
            if connect.retire is not None:
                client.retire(connect.retire)
            elif not client.refs:
                self.fell_idle()  # nobody waits for it any more
            self.ensure_check()
        except BaseException:
            client.close("error")
            raise

    def _file(self, client: CallerClient, idle_since: float | None) -> None:
        """Put an open connection into the lane of its timeout, and down for its age."""
        chosen = config.current()
        lane = self._idle.join(
            self._idle_timeout(client, chosen), evictable=transports.holds_descriptor(client.route)
        )
        self._idle.leave(client.lane, client)
        client.lane = lane
        if idle_since is not None:
            lane.fell_idle(client, idle_since)
        transports.keep_alive(client.client.channel, chosen.keepalive)
        # With jitter, so that what was opened together is not replaced together.
        age = chosen.max_connection_age * (1 - 0.1 * random.random())
        client.retire_at = client.opened + age if age else math.inf
        self._ages.join(client, client.retire_at)

    def _idle_timeout(self, client: CallerClient, chosen: config.Settings) -> float:
        ours = chosen.idle_timeout_of(transports.transport(client.route))
        try:
            timeout = routing.override(client.router, "idle_timeout")
        except ValueError as error:  # it was good when the connection was opened
            logger.warning("%s; %g is used for %s", error, ours, client.address)
            return ours
        return ours if timeout is None else timeout

    # -- what connections tell (client.Owner) ----------------------------------------------------

    def fell_idle(self) -> None:
        """One more connection is idle."""
        if self._cap.surplus:
            self._cap.shrink()

    def unlink(self, client: CallerClient) -> None:
        """A connection takes no new calls any more."""
        client.seat.leave()
        if self._clients.get(client.route) is client:
            del self._clients[client.route]
        self._idle.leave(client.lane, client)
        client.lane = NOWHERE
        self._ages.leave(client)
        if not self._clients:
            self._cap.leave(self)
        self.ensure_check()

    def follow(self) -> bool:
        """The loop may have moved to this thread: whether it has, and belongs here from now on.

        One that rests between two runs belongs to whoever touches it.
        """
        if self.loop.is_running() and asyncio._get_running_loop() is not self.loop:
            return False
        self.thread = get_ident()
        return True

    def closed(self, client: CallerClient) -> None:
        """Nothing of a connection is left."""
        self._all.pop(client.client, None)
        if not self._all:
            self.ensure_check()

    async def _lease(self, router: Any, route: str) -> transports.Client:
        client = self._clients.get(route)
        if client is None or not client.add_ref():
            client = await self._connect(router, route)
        stack = _leases.get()
        if stack is None:
            client.de_ref()
        else:
            stack.callback(client.de_ref)
        return client.client

    def _validate(self) -> None:
        """Check the invariants of the design; for tests."""
        for route, client in self._clients.items():
            assert client.route == route, client
            assert client.state is State.OPEN, client
            assert route not in self._connects, client
            assert self._all[client.client] is client, client
        for client in self._all.values():
            assert client.refs >= client.in_flight, client
            assert (client.idle_since is None) == (client.refs > 0) or client.state in (
                State.CLOSING,
                State.CLOSED,
            ), client
            if client.state is State.OPEN:
                assert self._clients[client.route] is client, client
                head = client.lane.oldest()
                assert head is None or head[1].refs == 0, client
            if client.state is State.RETIRED:
                assert client.refs > 0, client
            if client.state in (State.CLOSING, State.CLOSED):
                assert not client.in_flight, client
        expiring = self.next_expiry(self.clock()) < math.inf
        assert (self._check is not None) == expiring, self
