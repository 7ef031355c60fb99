"""Where pools of tests listen, and addresses at which there is none for as long as is needed."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

HOST = "127.0.0.2"
"""For pools whose processes are recovered at the addresses that they had. Connections within the
machine come from 127.0.0.1, whose ports they take: that of a process that has died, too."""

ELSEWHERE = "127.0.0.3"
"""The same for pools of other processes. xoscar remembers for good which unix sockets the pools of
its own process had, and would look for one of another process there that has got such a port."""


@contextlib.contextmanager
def refusing() -> Iterator[str]:
    """One that refuses connects: the port is taken, and nobody listens."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{sock.getsockname()[1]}"


@contextlib.contextmanager
def deaf() -> Iterator[str]:
    """One where connects are neither accepted nor refused."""
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(4):  # fill the queue that nobody accepts from
            client = stack.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(server.getsockname())
        yield f"127.0.0.1:{server.getsockname()[1]}"
