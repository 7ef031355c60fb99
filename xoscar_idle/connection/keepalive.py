"""Socket options that let the kernel find out that a TCP peer is gone.

Plain lists of options, so that what is set on connections can be tried beforehand.
"""

from __future__ import annotations

import socket
from typing import Any, NamedTuple


class Option(NamedTuple):
    """A socket option by its name in :mod:`socket`, and its value."""

    name: str
    value: Any

    def __str__(self) -> str:
        return f"{self.name}={self.value}"


def options(interval: float) -> list[Option]:
    """What there is to set on a TCP socket for a keepalive interval, on this system.

    Parameters
    ----------
    interval
        Seconds, above 0; in effect whole ones from 1 on. A peer that does not answer three
        reminders, a third of the interval apart, is gone.
    """
    idle, between = max(1, round(interval)), max(1, round(interval / 3))
    if hasattr(socket, "SIO_KEEPALIVE_VALS"):  # Windows
        return [Option("SIO_KEEPALIVE_VALS", (1, idle * 1000, between * 1000))]
    wanted = (
        Option("SO_KEEPALIVE", 1),
        Option("TCP_KEEPIDLE", idle),
        Option("TCP_KEEPALIVE", idle),  # macOS
        Option("TCP_KEEPINTVL", between),
        Option("TCP_KEEPCNT", 3),
    )
    return [option for option in wanted if hasattr(socket, option.name)]


def refused(sock: Any, wanted: list[Option]) -> list[tuple[Option, Exception]]:
    """Set the options on ``sock``; those that the kernel refuses, with what it says."""
    failures: list[tuple[Option, Exception]] = []
    for option in wanted:
        number = getattr(socket, option.name)
        level = socket.SOL_SOCKET if option.name.startswith("SO_") else socket.IPPROTO_TCP
        try:
            if option.name.startswith("SIO_"):
                sock.ioctl(number, option.value)
            else:
                sock.setsockopt(level, number, option.value)
        except Exception as error:  # for a number that no C integer holds it is no OSError
            failures.append((option, error))
    return failures
