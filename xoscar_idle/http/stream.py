"""The events of this process as server-sent events, for as many as follow them.

Nothing is kept for who follows but how far it has come: an event that it has not read when a
thousand others have come is told as a gap. The format is that of the HTML standard, "Server-sent
events".
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

from ..journal import UNNAMED
from ..supervision.events import Events

KEEP_ALIVE = 15.0
"""Seconds after which a comment is sent where nothing happens: nobody on the way forgets it."""

RETRY = 1.0
"""Seconds after which a browser whose stream has ended is to come again."""

FIRST = "0"
"""The id before all events."""


class Streams:
    """Those who follow the events, on one loop."""

    def __init__(self, journal: Events) -> None:
        self._journal = journal
        self._loop = asyncio.get_running_loop()
        self._waiting: set[asyncio.Event] = set()
        self._closed = False
        journal.listen(self._happened)

    def close(self) -> None:
        """Let all of them end."""
        self._journal.ignore(self._happened)
        self._closed = True
        self._wake()

    def _happened(self) -> None:
        """In any thread."""
        self._loop.call_soon_threadsafe(self._wake)

    def _wake(self) -> None:
        for each in self._waiting:
            each.set()

    async def follow(self, last: str | None) -> AsyncIterator[bytes]:
        """What comes after the event of that id; None: from now on.

        An id of another process, or none at all, is one of which it is not known what came since:
        all that is remembered is told, behind a gap.
        """
        woken = asyncio.Event()
        self._waiting.add(woken)
        try:
            at, is_known = self._journal.last, True
            if last is not None:
                at, is_known = self._journal.position(*_parsed(last))
            yield f"retry: {RETRY * 1000:.0f}\n\n".encode()
            if not is_known:
                yield self._gap(None, 0).encode()
            while not self._closed:
                woken.clear()
                missed, events = self._journal.since(at)
                if missed:
                    yield self._gap(missed, at + missed).encode()
                if events:
                    at = events[-1].sequence
                    told = (self._frame(each.kind, vars(each), each.sequence) for each in events)
                    yield "".join(told).encode()
                    continue
                try:
                    await asyncio.wait_for(woken.wait(), KEEP_ALIVE)
                except asyncio.TimeoutError:
                    yield b": nothing has happened\n\n"
        finally:
            self._waiting.discard(woken)

    def so_far(self, last: str | None) -> dict[str, object]:
        """What has come after the event of that id, in values that JSON has; None: all."""
        return self._journal.told(*_parsed(last or FIRST))

    def _gap(self, missed: int | None, at: int) -> str:
        return self._frame("gap", {"missed": missed}, at)

    def _frame(self, kind: str, data: dict[str, object], at: int) -> str:
        # JSON of ASCII has no line end in it.
        return f"id: {self._journal.name}-{at}\nevent: {kind}\ndata: {json.dumps(data)}\n\n"


def _parsed(last: str) -> tuple[str, int]:
    """The name of a journal and the number of an event, from an id."""
    if last == FIRST:
        return UNNAMED, 0
    name, _, number = last.rpartition("-")
    whole = number.isascii() and number.isdecimal() and len(number) < 20
    return (name, int(number)) if whole else ("", 0)
