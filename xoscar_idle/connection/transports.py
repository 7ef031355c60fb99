"""xoscar's transports: the one place that knows how they differ.

Sending so that "nothing was written" is told apart, hearing of a peer's end, closing within a
deadline, and closing without the help of an event loop.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import ipaddress
import logging
import os
import socket
from collections.abc import Awaitable, Callable, Collection
from functools import partial
from typing import Any, Protocol

import psutil
from xoscar.backends.communication.core import get_scheme
from xoscar.backends.communication.dummy import DummyClient
from xoscar.backends.communication.errors import ChannelClosed
from xoscar.backends.communication.socket import (
    SocketChannel,
    UnixSocketClient,
    _gen_unix_socket_default_path,
)
from xoscar.backends.communication.utils import write_buffers
from xoscar.serialization import AioSerializer

from .. import descriptors
from . import keepalive

logger = logging.getLogger("xoscar_idle")

CLOSE_TIMEOUT = 5.0
"""Seconds that a close may take to flush and say goodbye before it is cut short."""


class Client(Protocol):
    """What is used of ``xoscar.backends.communication.base.Client``."""

    dest_address: str
    channel: Any

    @property
    def channel_type(self) -> int: ...
    @property
    def closed(self) -> bool: ...
    async def send(self, message: Any) -> None: ...
    async def recv(self) -> Any: ...
    async def close(self) -> None: ...


class NotSent(ChannelClosed):  # type: ignore[misc]  # xoscar is untyped
    """The connection was closed before the first byte of the message was written."""


def transport(route: str) -> str:
    """The name of the transport that serves a route."""
    return get_scheme(route) or "socket"


def holds_descriptor(route: str) -> bool:
    """Whether a connection to ``route`` needs a file descriptor."""
    return transport(route) != "dummy"


def descriptor(channel: Any) -> int | None:
    """The number of a connection's file descriptor, where there is one and it is open."""
    if not isinstance(channel, SocketChannel):
        return None
    sock = channel.writer.get_extra_info("socket")
    number: int = -1 if sock is None else sock.fileno()
    return number if number >= 0 else None


def name(channel: Any, side: str) -> str | None:
    """``host:port`` of one side, ``sockname`` or ``peername``; None: it is none of TCP."""
    if not isinstance(channel, SocketChannel):
        return None
    told = channel.writer.get_extra_info(side)
    if not isinstance(told, tuple):
        return None
    host, port = told[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def explained(error: BaseException, route: str, took: float, waiters: int) -> BaseException:
    """The error of a connect, of the same type, with the numbers that explain it."""
    told = f"connecting to {route} took {took:.2f} s"
    if waiters > 1:
        told += f", {waiters} callers waited"
    if isinstance(error, OSError) and type(error).__module__ in ("builtins", "socket"):
        if error.errno is None:
            return type(error)(f"{error} ({told})")
        return type(error)(error.errno, f"{error.strerror} ({told})")
    if hasattr(error, "add_note"):  # Python 3.11
        error.add_note(told)
    return error


_told: set[str] = set()  # the variables of which it has been said that the kernel refuses them


def keep_alive(channel: Any, interval: float) -> None:
    """Let the kernel remind the network of a quiet TCP connection, and find out that it is dead.

    What the kernel refuses is told once, and the connection goes on without it.

    Parameters
    ----------
    channel
        A xoscar channel, of either side; all but TCP are left alone.
    interval
        Seconds, as for :func:`.keepalive.options`; 0 leaves what is set as it is.
    """
    if interval:
        remedy = "a whole number of seconds from 1 to 32767, or 0 to leave it to xoscar"
        _set(channel, lambda: keepalive.options(interval), "XOSCAR_KEEPALIVE_INTERVAL", remedy)


def limit_unacknowledged(channel: Any) -> None:
    """Apply ``XOSCAR_TCP_USER_TIMEOUT``, which xoscar has for its clients, to an accepted channel.

    Keepalive is silent while data is unacknowledged: a reply to a client that is gone would be
    repeated for a quarter of an hour. The limit also cuts clients that do not read for so long,
    so it is for the operator to set (milliseconds), and has no default here.
    """
    raw = os.environ.get("XOSCAR_TCP_USER_TIMEOUT", "").strip()
    if raw and hasattr(socket, "TCP_USER_TIMEOUT"):
        remedy = "a whole number of milliseconds from 1 to 2147483647, or nothing"
        _set(
            channel,
            lambda: [keepalive.Option("TCP_USER_TIMEOUT", int(raw))],
            "XOSCAR_TCP_USER_TIMEOUT",
            remedy,
        )


def _set(
    channel: Any, options: Callable[[], list[keepalive.Option]], variable: str, remedy: str
) -> None:
    """Set options on a TCP channel; where that fails, say so once, and how to mend it."""
    if not isinstance(channel, SocketChannel):
        return
    try:
        sock = channel.writer.get_extra_info("socket")
        if sock is None or sock.family not in (socket.AF_INET, socket.AF_INET6):
            return
        refused = keepalive.refused(sock, options())
        if not refused:
            return
        sock.getpeername()  # fails where the connection is gone, and with it all there was to set
        why = ", ".join(f"{str(option)[:80]} ({error})" for option, error in refused)
    except OSError:
        return
    except Exception as error:
        why = str(error)[:80]
    if variable not in _told:
        _told.add(variable)
        logger.warning(
            "%s is not in force, and connections go on without it: the kernel refuses %s; set it "
            "to %s",
            variable,
            why,
            remedy,
        )


def sender(client: Client) -> Callable[[Any], Awaitable[None]]:
    """How to send a message over ``client``: raises :class:`NotSent` if no byte was written."""
    channel = getattr(client, "channel", None)  # of another one's transport nothing is assumed
    if isinstance(channel, SocketChannel) and type(channel).send is SocketChannel.send:
        return partial(_send, channel)
    return client.send


async def _send(channel: SocketChannel, message: Any) -> None:
    """What ``SocketChannel.send`` does, and a look at the connection just before the write."""
    buffers = await AioSerializer(message, compress=channel.compression or 0).run()
    writer = channel.writer
    if writer.is_closing() or channel.reader.at_eof():
        raise NotSent("the connection was closed before the message was written")
    try:
        write_buffers(writer, buffers)
    except BaseException:
        # Half a frame may be out: whatever followed would be read as its rest.
        writer.transport.abort()
        raise
    try:
        async with channel._send_lock:
            await writer.drain()
    except (OSError, RuntimeError) as error:
        raise ChannelClosed(str(error)) from error


def when_peer_ends(client: Client, callback: Callable[[], None]) -> None:
    """Call ``callback``, on this loop, when a peer in this process ends.

    In-process channels deliver no end of file: the task that serves the other side is the sign.
    """
    if not isinstance(client, DummyClient) or client._task is None:
        return
    loop = asyncio.get_running_loop()

    def ended(_: asyncio.Future[Any] | concurrent.futures.Future[Any]) -> None:
        with contextlib.suppress(RuntimeError):  # this loop has been closed
            loop.call_soon_threadsafe(callback)

    client._task.add_done_callback(ended)


async def close(client: Client) -> None:
    """Close ``client``; one whose peer does not play along is cut off after CLOSE_TIMEOUT."""
    try:
        await asyncio.wait_for(client.close(), CLOSE_TIMEOUT)
    except asyncio.CancelledError:
        abort(client)
        raise
    except Exception:  # a close that fails leaves nothing to close
        abort(client)


def abort(client: Client) -> None:
    """Close ``client`` at once, whatever is still to be sent."""
    channel = client.channel
    with contextlib.suppress(Exception):  # it is closed already, or its loop is
        if isinstance(channel, SocketChannel):
            channel.writer.transport.abort()
        elif isinstance(client, DummyClient):
            channel._closed.set()
            if client._task is not None:
                client._task.cancel()
        elif hasattr(channel, "abort"):  # UCX
            channel.abort()


def sever(client: Client, loop: asyncio.AbstractEventLoop) -> None:
    """Close the socket of a connection whose ``loop`` will not run again, without awaiting."""
    abort(client)
    if not isinstance(client.channel, SocketChannel):
        return
    transport = client.channel.writer.transport
    sock = getattr(transport, "_sock", None)
    if sock is not None:  # asyncio leaves it to a callback that this loop never gets to
        sock.close()
        if loop.is_closed():
            transport._sock = None  # else it would warn of a socket left open
    elif not loop.is_closed():  # uvloop closes its handles with the loop, and not before
        _let_go(transport)


def disown(client: Client) -> None:
    """In a forked child: give up this process's copy of the socket, and nothing else.

    The connection is the parent's, and so is the selector that both processes share: neither may
    be told anything.
    """
    if isinstance(client.channel, SocketChannel):
        _let_go(client.channel.writer.transport)


def disown_to(routes: Collection[str]) -> None:
    """In a forked child: give up its copies of all sockets that lead to ``routes``.

    While a connect is under way the event loop keeps its socket to itself, so that there is no
    other way to tell it.
    """
    inet: set[tuple[str, str]] = set()
    unix: set[str] = set()
    for route in routes:
        if transport(route) == "unixsocket":
            unix.add(_gen_unix_socket_default_path(UnixSocketClient._get_process_index(route)))
        elif transport(route) == "socket":
            host, _, port = route.rpartition(":")
            inet.add((host.strip("[]"), port))
    with contextlib.suppress(OSError, psutil.Error):  # it ends, or what it is about has gone
        for each in descriptors.inet_connections(psutil.Process()):
            if each.fd >= 0 and each.raddr and _leads_to(each.raddr, inet):
                descriptors.void(each.fd)
    for fd in descriptors.sockets() if unix else ():
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(fd)) as sock:
            if sock.family == socket.AF_UNIX and sock.getpeername() in unix:
                descriptors.void(fd)


def _leads_to(address: tuple[str, int], ends: set[tuple[str, str]]) -> bool:
    # A name is not resolved here: a lock of the resolver may be held by a thread of the parent.
    return any(
        port == str(address[1]) and (host == address[0] or not _is_one_end(host))
        for host, port in ends
    )


def _is_one_end(host: str) -> bool:
    try:
        return not ipaddress.ip_address(host).is_unspecified  # that leads to this machine
    except ValueError:
        return False


def _let_go(transport: asyncio.WriteTransport) -> None:
    """Close a transport's socket behind its back."""
    sock = transport.get_extra_info("socket")
    fd = -1 if sock is None else sock.fileno()
    if fd >= 0:
        descriptors.void(fd)
