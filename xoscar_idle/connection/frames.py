"""What arrives on an accepted connection: whether a frame is under way, and whether it flows.

xoscar reads a frame part by part, and its reader's buffer is empty between two of them. So bytes
are counted where they arrive, and frames where they are whole.
"""

from __future__ import annotations

import asyncio
from typing import Any

from xoscar.backends.communication.socket import SocketChannel

from ..clock import Clock
from ..logs import one_line

MIN_RATE = 500.0
"""Bytes per second at which a frame has to come, on the whole, beyond its first timeout."""


class FrameReader(asyncio.StreamReader):
    """The stream of an accepted connection; made of one by :func:`watch`."""

    clock: Clock
    arrived: int
    """Bytes so far."""
    taken: int
    """Those of them that were in frames that are whole."""
    last: float
    """When the last of them arrived."""
    refused: str
    """Why xoscar did not want what came; empty: it did."""
    began: float
    """When the first byte of the frame that is under way arrived."""

    def feed_data(self, data: Any) -> None:
        """Bytes have arrived."""
        self.last = self.clock()
        if self.arrived == self.taken:
            self.began = self.last
        self.arrived += len(data)
        asyncio.StreamReader.feed_data(self, data)

    def frame_ends(self) -> None:
        """A frame has been read; what is in the buffer is of the next one."""
        self.taken = self.arrived - len(self._buffer)  # type: ignore[attr-defined]
        self.began = self.last

    def give_up(self, error: EOFError) -> None:
        """xoscar reads no more, as at the end: be it that, or what came was no message."""
        if not self._eof:  # type: ignore[attr-defined]
            self.refused = one_line(error)

    @property
    def starving(self) -> bool:
        """Whether xoscar waits for bytes, having dealt with all that have arrived."""
        return self._waiter is not None  # type: ignore[attr-defined]

    @property
    def unfinished(self) -> int:
        """Bytes of the frame that is under way; 0 between frames."""
        return self.arrived - self.taken

    def patience_ends(self, timeout: float) -> float:
        """When to stop waiting for bytes, unless more arrive until then.

        Parameters
        ----------
        timeout
            Seconds that may pass without a byte, and in which a frame has to be whole; for what
            has arrived of it there is more time, at :data:`MIN_RATE`.
        """
        quiet = self.last + timeout
        if not self.unfinished:
            return quiet
        return min(quiet, self.began + timeout + self.unfinished / MIN_RATE)


class AcceptedChannel(SocketChannel):  # type: ignore[misc]  # xoscar is untyped
    """xoscar's channel, for accepted connections: knows when a frame has been received."""

    __slots__ = ()

    async def recv(self) -> Any:
        """The next message."""
        try:
            message = await SocketChannel.recv(self)
        except EOFError as error:
            if type(self.reader) is FrameReader:
                self.reader.give_up(error)
            raise
        if type(self.reader) is FrameReader:
            self.reader.frame_ends()
        return message


def watch(channel: Any, clock: Clock) -> bool:
    """Let the channel's reader count from now on; False where its frames cannot be told apart."""
    reader = channel.reader
    if type(channel) is not AcceptedChannel or type(reader) is not asyncio.StreamReader:
        return type(reader) is FrameReader
    # Python's transports and xoscar hold this very object, and have held it from the start.
    watched: Any = reader
    watched.__class__ = FrameReader
    watched.clock, watched.refused = clock, ""
    watched.last = watched.began = clock()
    watched.taken, watched.arrived = 0, len(watched._buffer)
    return True
