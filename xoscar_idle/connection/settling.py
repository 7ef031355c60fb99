"""Whether answers are with those who asked, while others are written to the same connections."""

from __future__ import annotations

import socket
from typing import Any

from .. import descriptors
from . import accepted


class Settling:
    """Of all requests to the running loop that are in process when this is made.

    A connection has settled when it has been seen without a request in process, and the other
    side's kernel has what had been written to it by then. What follows is of no concern: a
    connection need never be quiet.
    """

    def __init__(self) -> None:
        self._unsettled: dict[Any, _Written | None] = dict.fromkeys(accepted.in_process())
        self.lost = False
        """Whether a connection has been lost before it had settled."""

    def look(self) -> bool:
        """Whether all have settled that are still there."""
        there = accepted.in_process()
        for channel, written in list(self._unsettled.items()):
            if channel not in there:
                self.lost = True
            elif written is None and not there[channel]:
                written = self._unsettled[channel] = _Written(channel)
            if channel not in there or (written is not None and written.has_arrived()):
                del self._unsettled[channel]
        return not self._unsettled


class _Written:
    """What has been written to a connection until now."""

    def __init__(self, channel: Any) -> None:
        self._transport = channel.writer.transport
        sock = self._transport.get_extra_info("socket")
        # What the kernel takes for a unix socket is with its reader.
        is_tcp = sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6)
        self._descriptor: int = sock.fileno() if is_tcp else -1
        self._end = self._all()

    def has_arrived(self) -> bool:
        """Whether the other side's kernel has it."""
        if self._end is not None:
            acknowledged = descriptors.acknowledged(self._descriptor)
            return acknowledged is not None and acknowledged >= self._end
        if self._transport.get_write_buffer_size():
            return False
        return self._descriptor < 0 or not descriptors.unacknowledged(self._descriptor)

    def _all(self) -> int | None:
        """How many bytes that makes since the connection was opened; None: that is not known."""
        if self._descriptor < 0:
            return None
        acknowledged = descriptors.acknowledged(self._descriptor)
        while acknowledged is not None:
            unacknowledged = descriptors.unacknowledged(self._descriptor)
            again = descriptors.acknowledged(self._descriptor)
            if again == acknowledged:  # else some have arrived between the two
                return acknowledged + unacknowledged + int(self._transport.get_write_buffer_size())
            acknowledged = again
        return None
