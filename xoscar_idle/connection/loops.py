"""Whether the event loops with connections run, and what their threads do if not; in any thread."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
import traceback
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..versions import known_fields
from . import statistics

if TYPE_CHECKING:
    from .accepted import Accepted
    from .caller import ActorCaller

RUNNING, BLOCKED, AT_REST = "running", "blocked", "at rest"
"""States of an event loop: it gives a sign; it gives none; no thread runs it at present."""

LONGEST_STACK = 10_000
"""Characters of a stack, whose outermost calls say little."""

PATIENCE = 0.25
"""Seconds for which the signs of all loops are waited for: one without is blocked."""


@dataclass(frozen=True)
class Loop:
    """An event loop with connections, in values that JSON has."""

    thread: int
    """The identifier of its thread."""
    name: str
    """The name of that; empty: it is not known."""
    state: str
    """:data:`RUNNING`, :data:`BLOCKED` or :data:`AT_REST`."""
    seconds: float = 0.0
    """For how long it has been blocked, at least: since somebody first asked it for a sign."""
    stack: str = ""
    """What its thread does while it is blocked, the innermost call first."""

    @classmethod
    def from_dict(cls, given: Mapping[str, Any]) -> Loop:
        """Of ``dataclasses.asdict`` of one, from a process with another version of us, too."""
        return cls(**known_fields(cls, given))


class _Sign:
    """A loop that runs has been asked to say so."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.asked = time.monotonic()
        self.came = threading.Event()
        loop.call_soon_threadsafe(self.came.set)


# Of a loop that is blocked there is one for all who ask: so it is known since when, and callbacks
# do not pile up there.
_signs: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _Sign] = weakref.WeakKeyDictionary()


class Asked:
    """A loop, and the sign that it is to give, unless no thread runs it.

    One that does not give it within ``patience`` seconds is blocked.
    """

    def __init__(self, owner: ActorCaller | Accepted, patience: float = PATIENCE) -> None:
        self.loop = owner.loop
        self._patience = patience
        # asyncio's loops tell the thread that runs them; of others it is the one that did so last.
        self._thread: int = getattr(owner.loop, "_thread_id", None) or owner.thread
        self._sign = _sign_of(owner.loop)

    def wait(self) -> None:
        """Give it the time to answer; not on a loop."""
        if self._sign is not None:
            self._sign.came.wait(max(0.0, self._sign.asked + self._patience - time.monotonic()))

    def seen(self) -> Loop:
        """How it is now."""
        thread = self._thread
        name = next((each.name for each in threading.enumerate() if each.ident == thread), "")
        if self._sign is None or not self.loop.is_running():
            return Loop(thread, name, AT_REST)
        silent, stack = time.monotonic() - self._sign.asked, stack_of(thread)[:LONGEST_STACK]
        # In this order: what one does that has just gone on is not what it was blocked by.
        if self._sign.came.is_set() or silent < self._patience:
            return Loop(thread, name, RUNNING)
        return Loop(thread, name, BLOCKED, round(silent, 3), stack)


def _sign_of(loop: asyncio.AbstractEventLoop) -> _Sign | None:
    if not loop.is_running():
        _signs.pop(loop, None)  # it says nothing of the time until it runs again
        return None
    sign = _signs.get(loop)
    if sign is None or sign.came.is_set():
        sign = _signs[loop] = _Sign(loop)
    return sign


def blocked(patience: float) -> list[Loop]:
    """Those that give no sign for so many seconds, which it takes only where there is one."""
    asked: dict[asyncio.AbstractEventLoop, Asked] = {}
    owners: list[ActorCaller | Accepted] = [*statistics.callers(), *statistics.serving()]
    for owner in owners:
        if not owner.loop.is_closed() and owner.loop not in asked:
            asked[owner.loop] = Asked(owner, patience)
    for each in asked.values():
        each.wait()
    return [seen for each in asked.values() if (seen := each.seen()).state == BLOCKED]


def stack_of(thread: int) -> str:
    """What a thread does, the innermost call first; empty: it has ended."""
    frame = sys._current_frames().get(thread)
    if frame is None:
        return ""
    # The innermost call tells most: it comes first, and what does not fit is cut at the end.
    lines = traceback.format_list(traceback.extract_stack(frame)[::-1])
    return "".join(lines)
