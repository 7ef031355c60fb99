"""What a peer that hangs up tells of ``XOSCAR_AUTH_KEY``.

A pool with a key, or without one, closes a connection at the first message that does not fit, and
says nothing to the other side.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
from typing import Any

from xoscar.backends.communication.errors import ChannelClosed
from xoscar.backends.communication.socket import SocketChannel

from . import routing, transports

CONNECT_TIMEOUT = 1.0
"""Seconds that connecting once more may take."""

SILENCE = 0.3
"""Seconds for which a connection has to be kept."""

HUNG_UP = (EOFError, ConnectionResetError, BrokenPipeError, ChannelClosed)
"""What xoscar's channels raise when the other side has closed the connection."""


def is_known() -> bool:
    """Whether the xoscar that is installed here knows keys."""
    return importlib.util.find_spec("xoscar.serialization._security") is not None


def is_for(client: transports.Client) -> bool:
    """Whether a key may be asked for on this connection."""
    return isinstance(client.channel, SocketChannel) and is_known()


async def keeps_silent_connections(router: Any, route: str) -> bool:
    """Whether something at ``route`` accepts a connection, and keeps it while nothing is sent.

    A process that is ending refuses one, or ends it at once.
    """
    try:
        client = await routing.connect(router, route, CONNECT_TIMEOUT)
    except Exception:
        return False
    try:
        with routing.loose(route):
            await asyncio.wait_for(client.recv(), SILENCE)
    except asyncio.TimeoutError:
        return True
    except Exception:
        return False
    finally:
        transports.abort(client)
    return False


def explained(error: Exception) -> str:
    """Why there is no answer on a connection on which none has come before.

    Parameters
    ----------
    error
        One of :data:`HUNG_UP`.
    """
    if isinstance(error, asyncio.IncompleteReadError):
        if error.partial:
            return f"the connection broke within it: {error}"
    elif isinstance(error, EOFError) and str(error) not in _RESET:
        return f"it cannot be read: {error}"
    return (
        "the connection was closed at the first message, as a pool does to one that was not sent "
        f"with its own XOSCAR_AUTH_KEY: {_here()}; both sides need the same, or none"
    )


_RESET = ("Server may be closed", "Received empty bytes")  # what xoscar makes of these


def _here() -> str:
    if not is_known():
        return "the xoscar that is installed here knows none"
    return "one is set here" if os.environ.get("XOSCAR_AUTH_KEY") else "none is set here"
