"""The connections of one thread and one event loop: opening, calling, checking, stopping."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
import math
import random
from collections.abc import Awaitable, Callable, Coroutine
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
from ..clock import Clock, monotonic
from ..periodic import Background, Periodic
from . import cap as caps
from . import counters, holding, leases, losses, routing, transports
from .age import AgeQueue
from .cap import Cap, Seat
from .client import NOWHERE, CallerClient, State
from .connecting import Connects
from .deadlines import clear as clear_deadline
from .deadlines import in_time, limit_of
from .idle import IdleQueue
from .probe import Prober
from .tally import Tally, tally_of

logger = logging.getLogger("xoscar_idle")

CANCEL_TIMEOUT = 5.0
"""Seconds that are spent on telling the other side that a call has missed its deadline."""


async def _known(reply: Any, loop: asyncio.AbstractEventLoop, wait: bool) -> Any:
    """A reply that need not be asked for, or the future of it."""
    if wait:
        return reply
    future = loop.create_future()
    future.set_result(reply)
    return future


async def _awaited(sending: Coroutine[Any, Any, asyncio.Future[Any]]) -> Any:
    return await (await sending)


_NOT_CANCELLABLE = (MessageType.cancel, MessageType.control)


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
        self._connects = Connects(self._cap)
        self._idle: IdleQueue[CallerClient] = IdleQueue()
        self._ages: AgeQueue[CallerClient] = AgeQueue()
        self._background = Background()
        self._prober = Prober()
        self._holding = holding.Holding(self.loop)
        self._profiling_data = get_profiling_data()
        self._tally = tally_of(self)
        self.tally: Tally | None = None
        self._count_calls()

    def __repr__(self) -> str:
        return f"<ActorCaller {list(self._all.values())}, {len(self._connects.all)} connecting>"

    def connecting(self) -> list[str]:
        """The routes to which connects are under way."""
        return [connect.route for connect in list(self._connects.all)]

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
        sending = None
        if message.message_type == MessageType.cancel:
            known, moved = self._holding.cancel(message)
            if known is not None:
                return _known(known, self.loop, wait)
            dest_address = moved or dest_address
        elif config.current().recovery_timeout and holding.is_on(message):
            send = partial(self._send_to, router, proxy_addresses)
            sending = self._holding.call(send, dest_address, message)
        if limit is None:
            if sending is not None:
                return _awaited(sending) if wait else sending
            return self._send(router, dest_address, message, proxy_addresses, wait)
        if sending is None:
            sending = self._send(router, dest_address, message, proxy_addresses, wait=False)
        cancel = partial(self._cancel, router, dest_address, message, proxy_addresses)
        return in_time(limit, sending, dest_address, message, cancel, wait)

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

    async def _lease(self, router: Any, route: str) -> transports.Client:
        client = self._clients.get(route)
        if client is None or not client.add_ref():
            client = await self._connects.join(self, router, route)
        leases.let(client)
        return client.client

    async def stop(self) -> None:
        """Close all connections, in use or not, and wait until they are closed."""
        clients = list(self._all.values())
        self.cancel_tasks()
        if connects := self._connects.tasks():
            await asyncio.wait(connects)
            await asyncio.sleep(0)  # for what is done when they have ended
        for client in clients:
            await client.wait_closed()

    def cancel_tasks(self) -> None:
        """Close all connections in the background; whoever waits gets ``ServerClosed``."""
        self.close("stop")

    # -- sending ---------------------------------------------------------------------------------

    def _send_to(
        self, router: Any, proxy_addresses: list[str] | None, address: str, message: Any
    ) -> Coroutine[Any, Any, Any]:
        return self._send(router, address, message, proxy_addresses, wait=False)

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
                client = await self._connects.join(self, router, route)
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
                again = reused or client.reason == "operator"
                counters.count("resent", again)
                if not again:
                    told: Any = await losses.lost(client)
                    if told is None:
                        told = ServerClosed(f"Remote server {client.address} closed: {error}")
                    told.unexecuted, told.closed_here = True, client.closed_here
                    raise told from None
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
        return in_time(limit, sending, address, message, lambda: None, wait)

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

    def _cancel(
        self, router: Any, address: str, message: Any, proxy_addresses: list[str] | None
    ) -> None:
        """Let the other side stop working on ``message``, in the background."""
        if message.message_type in _NOT_CANCELLABLE:
            return
        where = self._holding.whereabouts(message, address)
        if where is None:
            return

        async def cancel() -> None:
            clear_deadline()
            id_ = new_message_id()
            request = CancelMessage(id_, where, message.message_id, protocol=DEFAULT_PROTOCOL)
            calling = self.call(router, where, request, proxy_addresses=proxy_addresses)
            with contextlib.suppress(Exception):  # whoever waited has had its error
                await asyncio.wait_for(calling, CANCEL_TIMEOUT)

        self._in_background(cancel())

    def _in_background(self, work: Coroutine[Any, Any, None]) -> None:
        self._background.spawn(self.loop, work)

    # -- the life of connections -----------------------------------------------------------------

    def close(self, reason: str) -> None:
        """Close all connections in the background, giving ``reason`` for it."""
        self._connects.give_up()
        self._holding.give_up()
        for task in [*self._background.tasks(), *self._prober.tasks()]:
            task.cancel()
        for client in list(self._all.values()):
            client.close(reason)

    def retire(self, reason: str) -> None:
        """Close what is idle; what is in use, waited for, or opened from now on, after its use."""
        self._connects.retire(reason)
        self._holding.retire()
        for client in list(self._clients.values()):
            client.retire(reason)

    def resume(self) -> None:
        """Keep again what is opened from now on."""
        self._connects.resume()
        self._holding.resume()

    def sever(self, reason: str) -> None:
        """Close all connections at once; their loop is closed or may never run again.

        If it runs all the same, whoever waits there gets an error.
        """
        tasks: list[Any] = [*self._connects.tasks()]
        tasks += [*self._background.tasks(), *self._prober.tasks(), *self._holding.tasks()]
        if self._check is not None:
            tasks.append(self._check)
        for task in tasks:
            task._log_destroy_pending = False
        self._connects.sever(self.loop)
        self._holding.sever()
        clients = list(self._all.values())
        for client in clients:
            client.seat.leave()
            client.sever(reason)
        self._cap.leave(self)
        self._clients.clear()
        self._all.clear()
        self._idle, self._ages = IdleQueue(), AgeQueue()
        with contextlib.suppress(RuntimeError):  # it is closed
            self.loop.call_soon_threadsafe(self._wind_up, clients, tasks)

    def _wind_up(self, clients: list[CallerClient], tasks: list[asyncio.Task[Any]]) -> None:
        """The loop runs on after :meth:`sever`."""
        self._connects.give_up()
        self._holding.give_up()
        for client in clients:
            client.wind_up()
        for task in tasks:
            task.cancel()
        self._check = None

    def disown(self) -> None:
        """In a forked child: all of this is the parent's."""
        for client in self._all.values():
            client.disown()
        self._connects.disown()

    def idlest(self) -> tuple[float, CallerClient] | None:
        """The least recently used idle connection that holds a descriptor, and since when."""
        return self._idle.oldest()

    def apply_settings(self) -> None:
        """Let the settings in force hold for the connections that are open."""
        self._count_calls()
        now = self.clock()
        # In the order of falling idle, which is that of a lane.
        for client in sorted(self._clients.values(), key=lambda c: c.idle_since or now):
            self._file(client, client.idle_since)
        self.ensure_check()
        self._cap.shrink(self.loop)

    def _count_calls(self) -> None:
        """As the settings in force say."""
        chosen = config.current().call_metrics
        self._tally.by_method = chosen == "method"
        self.tally = None if chosen == "off" else self._tally

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

    # -- what connects and connections tell (connecting.Keeper, client.Owner) --------------------

    def keep(
        self, connection: transports.Client, route: str, router: Any, seat: Seat
    ) -> CallerClient:
        """Keep an open connection, which begins to listen; on an error nothing of it is left."""
        client = None
        try:
            client = CallerClient(connection, route, router, self)
            client.seat = seat
            if not self._clients:
                self._cap.join(self)
            self._clients[client.route] = self._all[connection] = client
            # The idle clock starts when the connection opens: one that is never used expires, too.
            self._file(client, client.opened)
            self.ensure_check()
            client.listen()
        except BaseException:
            seat.leave()
            transports.abort(connection)  # first: what follows may fail, too
            self._all.pop(connection, None)
            if client is not None:
                client.abandon()
            raise
        return client

    def fell_idle(self) -> None:
        """One more connection is idle."""
        if self._cap.surplus:
            self._cap.shrink(self.loop)

    def answered(self, client: CallerClient) -> None:
        """A pool speaks on the other side of a connection."""
        losses.met(client, self._in_background)

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

    def _validate(self) -> None:
        """Check the invariants of the design; for tests."""
        for route, client in self._clients.items():
            assert client.route == route, client
            assert client.state is State.OPEN, client
            assert route not in self._connects.by_route, client
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
