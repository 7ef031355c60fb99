"""The HTTP server of this process, as long as there is a main pool in it: one thread, one loop.

uvicorn serves, behind bounds of our own: a request has to be there within a few seconds, a client
that does not read loses its connection, and there are only so many of them.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import errno
import ipaddress
import logging
import os
import socket
import stat
import threading
import time
from collections.abc import Iterator
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from .. import config, descriptors
from ..locks import process_lock
from ..supervision import health, supervisor
from ..supervision.events import journal
from . import app
from .access import Door
from .stream import Streams

logger = logging.getLogger("xoscar_idle")

PATIENCE = 5.0
"""Seconds within which a request must have come whole, and for which a client may not read."""

MOST = 512
"""Connections; then the oldest one that has not said what it wants makes room for the next."""

LONGEST_HEAD = 16 * 1024
"""Bytes of a request without its body."""

END = 2.0
"""Seconds for which the end of the thread is waited for."""

HEADERS = [
    ("connection", "close"),  # so that each request has the bounds of a new connection
    ("cache-control", "no-store"),
    ("x-content-type-options", "nosniff"),
    ("referrer-policy", "no-referrer"),
    ("cross-origin-resource-policy", "same-origin"),
]


class Guarded(H11Protocol):
    """A connection, within bounds."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.access_log = False  # not by the config, which would change the program's own, too
        self._since = 0.0
        self._comes: asyncio.TimerHandle | None = None
        self._reads: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """See asyncio.Protocol."""
        super().connection_made(transport)
        self._since = self.loop.time()
        self._comes = self.loop.call_later(PATIENCE, self._abort_if_incomplete)
        if len(self.connections) > most():
            # Whoever says nothing makes room: else those would keep all others out.
            all_of_them = [each for each in self.connections if isinstance(each, Guarded)]
            silent = [each for each in all_of_them if each.is_incomplete]
            min(silent, key=lambda each: each._since, default=self).transport.abort()

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        try:
            super().data_received(data)
        except Exception:  # what is no HTTP at all, behind what was
            logger.debug("a request over HTTP is none", exc_info=True)
            self._forget_request()
            self.transport.abort()

    def send_400_response(self, msg: str) -> None:
        """See H11Protocol; whoever is at the beginning of that request has nothing to say then."""
        self._forget_request()
        super().send_400_response(msg)

    def _forget_request(self) -> None:
        if self.cycle is not None:
            self.cycle.disconnected = True
            self.cycle.message_event.set()

    def pause_writing(self) -> None:
        """See asyncio.Protocol."""
        super().pause_writing()
        if self._reads is None:
            self._reads = self.loop.call_later(PATIENCE, self.transport.abort)

    def resume_writing(self) -> None:
        """See asyncio.Protocol."""
        super().resume_writing()
        if self._reads is not None:
            self._reads.cancel()
            self._reads = None

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio.Protocol."""
        super().connection_lost(exc)
        for each in (self._comes, self._reads):
            if each is not None:
                each.cancel()

    @property
    def is_incomplete(self) -> bool:
        """Whether its request has not come whole."""
        return self.conn.their_state in (h11.IDLE, h11.SEND_BODY)

    def _abort_if_incomplete(self) -> None:
        if self.is_incomplete or self.transport.is_closing():
            self.transport.abort()


def most() -> int:
    """Connections that there may be at once, of the descriptors that the process may have."""
    limit, _ = descriptors.limits()
    return MOST if limit is None else min(MOST, limit // 4)


class Server:
    """One server, at one address.

    Raises
    ------
    OSError
        It cannot listen there.
    ValueError
        It must not: the address is not of this machine alone, and there is no token.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self._socket, self.bound = _listening(address)
        host = "" if address.startswith("/") else address.rpartition(":")[0]
        self._host, self._is_local = host, _is_local(self.bound)
        if not self._is_local and config.current().health_token is None:
            self._socket.close()
            raise ValueError(
                "it is not an address of this machine alone, so XOSCAR_HEALTH_TOKEN must be set"
            )
        self._file = os.stat(address).st_ino if not host else None
        self._loop = asyncio.new_event_loop()
        self._ending = asyncio.Event()
        self._uvicorn: uvicorn.Server | None = None
        self._thread = threading.Thread(target=self._run, name="xoscar-idle-http", daemon=True)

    def start(self) -> None:
        """Serve."""
        self._thread.start()

    def end(self) -> None:
        """Serve no more."""
        with contextlib.suppress(RuntimeError):  # it has ended
            self._loop.call_soon_threadsafe(self._ending.set)
        if threading.current_thread() is not self._thread:
            self._thread.join(END)

    def disown(self) -> None:
        """In a forked child: what is open is the parent's."""
        held = self._uvicorn.server_state.connections if self._uvicorn else ()
        found = [each.transport.get_extra_info("socket") for each in held]
        for each in (self._socket, *found):
            with contextlib.suppress(OSError, AttributeError):
                os.close(each.fileno())

    def _door(self) -> Door:
        return Door(self._host, self._is_local, config.current().health_token)

    def _run(self) -> None:
        try:
            with _quiet():
                self._loop.run_until_complete(self._serve())
        except Exception:
            logger.warning("nothing is told over HTTP any more", exc_info=True)
            _forget(self)
            self._close()
        finally:
            self._loop.close()

    async def _serve(self) -> None:
        self._loop.set_exception_handler(_unexpected)
        streams = Streams(journal)
        try:
            await self._serve_to(streams)
        finally:
            streams.close()

    async def _serve_to(self, streams: Streams) -> None:
        chosen = uvicorn.Config(
            app.make(self._door, streams),
            http=Guarded,
            ws="none",
            lifespan="off",
            log_config=None,
            proxy_headers=False,  # whoever comes over a proxy is no one of this machine
            server_header=False,
            date_header=False,
            timeout_graceful_shutdown=1,
            h11_max_incomplete_event_size=LONGEST_HEAD,
            headers=HEADERS,
        )
        chosen.load()
        self._uvicorn = server = uvicorn.Server(chosen)
        # Not its main loop, which wakes up ten times a second.
        server.lifespan = chosen.lifespan_class(chosen)
        server.server_state.default_headers = chosen.encoded_headers
        await server.startup(sockets=[self._socket])
        try:
            while not self._is_over():
                for each in supervisor.running():
                    each.pulse.ask(time.monotonic())
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(self._ending.wait(), health.BEAT)
        finally:
            streams.close()
            await server.shutdown(sockets=[self._socket])
            for connection in list(server.server_state.connections):
                connection.transport.abort()  # it does not read

    def _is_over(self) -> bool:
        """Whether it is to end; from then on another one can listen there."""
        with _lock:
            if not self._ending.is_set() and supervisor.running():
                return False
            _forget(self)
            self._close()
            return True

    def _close(self) -> None:
        if self._uvicorn is not None:
            for each in self._uvicorn.servers:
                each.close()
        self._socket.close()
        if self._file is not None:
            with contextlib.suppress(OSError):
                if os.stat(self.address).st_ino == self._file:  # else it is another one's by now
                    os.unlink(self.address)


def _unexpected(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    logger.debug("over HTTP: %s", context.get("message"), exc_info=context.get("exception"))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """What uvicorn says of this thread's server is not for the program's log, but for errors."""
    thread = threading.get_ident()

    def passes(record: logging.LogRecord) -> bool:
        return record.thread != thread or record.levelno >= logging.ERROR

    theirs = logging.getLogger("uvicorn.error")
    theirs.addFilter(passes)
    try:
        yield
    finally:
        theirs.removeFilter(passes)


# -- where it listens ------------------------------------------------------------------------------


def _listening(address: str) -> tuple[socket.socket, Any]:
    """A socket that listens, and its name."""
    if address.startswith("/"):
        sock = _unix_socket(address)
    else:
        family, name = _resolved(address)
        sock = socket.create_server(name[:2], family=family)
    return sock, sock.getsockname()


def _resolved(address: str) -> tuple[int, Any]:
    host, _, port = address.rpartition(":")
    found = socket.getaddrinfo(
        host.strip("[]"), int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )
    return found[0][0], found[0][4]


def _unix_socket(path: str) -> socket.socket:
    """One that its own user alone can use."""
    _remove_left(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.bind(path)
        os.chmod(path, 0o600)  # before anybody can connect
        sock.listen()
    except BaseException:
        sock.close()
        raise
    return sock


def _remove_left(path: str) -> None:
    """Remove the socket of a process that has been killed; nothing else."""
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode) or found.st_uid != os.geteuid():
        raise OSError(errno.EADDRINUSE, "there is something else at that path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(1.0)
        try:
            sock.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
    raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))


def is_local(address: str) -> bool:
    """Whether this machine alone can reach an address; not where its host is not known."""
    try:
        return address.startswith("/") or _is_local(_resolved(address)[1])
    except OSError:
        return False


def _is_local(bound: Any) -> bool:
    return isinstance(bound, str) or ipaddress.ip_address(bound[0].partition("%")[0]).is_loopback


# -- that of this process --------------------------------------------------------------------------

_lock = process_lock()
_running: Server | None = None


def _forget(server: Server) -> None:
    global _running
    with _lock:
        if _running is server:
            _running = None


def follow(address: str | None) -> None:
    """Serve at that address, and nowhere else; None: nowhere.

    Raises
    ------
    OSError, ValueError
        As :class:`Server` does.
    """
    global _running
    with _lock:
        ended = _running if _running is not None and _running.address != address else None
    if ended is not None:
        ended.end()
    with _lock:
        if address is not None and _running is None:
            made = Server(address)
            made.start()
            _running = made
            logger.info("pools are told of over HTTP at %s", where())


def where() -> str | None:
    """Where this process is served: a URL, or the path of a unix socket; None: nowhere."""
    with _lock:
        if _running is None:
            return None
        bound = _running.bound
    if isinstance(bound, str):
        return bound
    host = f"[{bound[0]}]" if ":" in bound[0] else bound[0]
    return f"http://{host}:{bound[1]}"


def after_fork() -> None:
    """In a forked child: it is the parent's."""
    global _running
    if _running is not None:
        _running.disown()
        _running = None


def end() -> None:
    """Serve no more."""
    follow(None)


atexit.register(end)
