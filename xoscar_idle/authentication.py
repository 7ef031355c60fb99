"""What a peer that hangs up tells of ``XOSCAR_AUTH_KEY``.

A pool with a key, or without one, closes a connection at the first message that does not fit, and
says nothing to the other side.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os

from xoscar.backends.communication.errors import ChannelClosed

HUNG_UP = (EOFError, ConnectionResetError, BrokenPipeError, ChannelClosed)
"""What xoscar's channels raise when the other side has closed the connection."""


def has_key() -> bool:
    """Whether this process has a key."""
    return bool(os.environ.get("XOSCAR_AUTH_KEY"))


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
    if importlib.util.find_spec("xoscar.serialization._security") is None:
        return "the xoscar that is installed here knows none"
    return "one is set here" if has_key() else "none is set here"
