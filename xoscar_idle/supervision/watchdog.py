"""systemd's watchdog, fed by the event loops of main pools.

A unit with ``Type=notify`` and ``WatchdogSec`` hands its process a socket and an interval. What is
sent there says that the service is ready, and then that it lives: by the loops, not by a thread,
which would go on while they are blocked. The protocol is that of ``sd_notify(3)``.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from .. import side_thread, values
from ..locks import process_lock

logger = logging.getLogger("xoscar_idle")

OFTEN = 3
"""So many signs in the time after which systemd acts: one may be late."""

SHORTEST = 0.01
"""Seconds between two signs, however short the time is after which systemd acts."""

Loops = Callable[[], Sequence[asyncio.AbstractEventLoop]]


@dataclass(frozen=True)
class Wish:
    """What systemd has asked this process for."""

    address: str
    """Of a datagram socket: a path, or a name behind ``@``."""
    interval: float
    """Seconds between two signs."""

    @classmethod
    def of(cls, environ: Mapping[str, str], pid: int) -> Wish:
        """That in the environment.

        Raises
        ------
        ValueError
            There is none for this process; the text says what is missing.
        """
        address = environ.get("NOTIFY_SOCKET", "")
        if address[:1] not in ("/", "@"):
            raise ValueError("NOTIFY_SOCKET is not set: the unit needs Type=notify")
        microseconds = values.whole(environ.get("WATCHDOG_USEC", ""), 2**53)
        if not microseconds:
            raise ValueError("WATCHDOG_USEC is not set: the unit needs WatchdogSec=")
        if values.whole(environ.get("WATCHDOG_PID", f"{pid}")) != pid:
            raise ValueError(f"WATCHDOG_PID names another process than this one, {pid}")
        return cls(address, max(SHORTEST, microseconds / 1e6 / OFTEN))


class Watchdog:
    """Sends a sign when all loops have given theirs."""

    def __init__(self, wish: Wish, loops: Loops) -> None:
        self.wish = wish
        self._loops = loops
        self._awaited: set[asyncio.AbstractEventLoop] = set()
        self._is_ready = False

    def feed(self) -> None:
        """At intervals, in the side thread: ask the loops, if all have answered."""
        loops = {each for each in self._loops() if not each.is_closed()}
        for loop in list(self._awaited):
            if loop not in loops:
                self._awaited.discard(loop)
        if self._awaited:
            return
        if not loops:  # there is nothing that could be blocked
            self._send()
        self._awaited.update(loops)
        for loop in loops:
            try:
                loop.call_soon_threadsafe(self._answered, loop)
            except RuntimeError:  # it has been closed just now
                self._awaited.discard(loop)

    def end(self) -> None:
        """Nobody feeds it any more: systemd is not to wait for signs."""
        _sent(self.wish.address, "WATCHDOG_USEC=0")

    def _answered(self, loop: asyncio.AbstractEventLoop) -> None:
        """On a loop; the last one sends the sign."""
        self._awaited.discard(loop)
        if not self._awaited:
            self._send()

    def _send(self) -> None:
        text = "WATCHDOG=1" if self._is_ready else "READY=1\nWATCHDOG=1"
        self._is_ready = _sent(self.wish.address, text) or self._is_ready


def _sent(address: str, text: str) -> bool:
    name = f"\0{address[1:]}" if address.startswith("@") else address
    with (
        contextlib.suppress(OSError),  # full, or gone: systemd acts on what does not come
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sock,
    ):
        sock.sendto(text.encode(), name)
        return True
    return False


# -- that of this process --------------------------------------------------------------------------

_lock = process_lock()
_running: Watchdog | None = None
_refused = False  # systemd has not asked this process for one


def start(loops: Loops) -> None:
    """Feed systemd's, unless it is fed already; where there is none, one warning."""
    global _running, _refused
    with _lock:
        if _running is not None or _refused:
            return
        try:
            _running = Watchdog(Wish.of(os.environ, os.getpid()), loops)
        except ValueError as error:
            _refused = True
            logger.warning("XOSCAR_WATCHDOG does nothing: %s", error)
        else:
            side_thread.every(_running.wish.interval, _running.feed)


def stop() -> None:
    """Feed it no more, until :func:`start`, which is a new wish."""
    global _running, _refused
    with _lock:
        before, _running, _refused = _running, None, False
    if before is not None:  # without the lock: this may wait for the side thread, which takes it
        side_thread.never(before.feed)
        before.end()


def after_fork() -> None:
    """In a forked child: systemd knows the parent."""
    global _running
    _running = None
