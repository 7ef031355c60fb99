"""How many connections this process may have, over all threads and loops, and making room."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import threading
from typing import Protocol

ASK_TIMEOUT = 1.0
"""Seconds that the other loops together have to make room when this one has nothing idle."""


class Connection(Protocol):
    """What is used of :class:`~xoscar_idle.connection.client.CallerClient`."""

    def close(self, reason: str) -> None: ...
    async def wait_closed(self) -> None: ...


class Member(Protocol):
    """What is used of :class:`~xoscar_idle.connection.caller.ActorCaller`."""

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """Whose thread closes its connections."""

    def idlest(self) -> tuple[float, Connection] | None:
        """The least recently used idle connection, and since when it is idle."""


class Seat:
    """The place of one connection in the count, from its connect on until it takes no calls."""

    __slots__ = ("_cap",)

    def __init__(self, cap: Cap | None) -> None:
        self._cap = cap

    def leave(self) -> None:
        """The connect has failed, or the connection takes no calls any more; again: nothing."""
        if (cap := self._cap) is None:
            return
        with cap._lock:
            if self._cap is not None:
                self._cap = None
                cap.count -= 1


NO_SEAT = Seat(None)
"""That of a connection without a descriptor."""


class Cap:
    """A count of connections that hold a descriptor, from their connect on, and its soft limit.

    A connection that takes no calls any more does not count: whoever closes one to make room
    waits until it is gone.
    """

    def __init__(self, limit: int = 0) -> None:
        self.limit = limit
        """0: none."""
        self.count = 0
        self.exceeded = 0
        """How many connects went ahead over the limit, since all connections were in use."""
        # Reentrant: a finalizer may run wherever memory is allocated.
        self._lock = threading.RLock()
        self._members: dict[Member, None] = {}

    @property
    def surplus(self) -> int:
        """How many connections there are too many."""
        return self.count - self.limit if 0 < self.limit < self.count else 0

    def take(self) -> Seat:
        """A connect begins."""
        with self._lock:
            self.count += 1
        return Seat(self)

    def join(self, member: Member) -> None:
        """``member`` has connections that may make room."""
        with self._lock:
            self._members[member] = None

    def leave(self, member: Member) -> None:
        """``member`` has none any more."""
        with self._lock:
            self._members.pop(member, None)

    async def make_room(self) -> bool:
        """Close what is idle until the limit holds; False where all is in use: go ahead then."""
        loop = asyncio.get_running_loop()
        others, until = self._other_loops(loop), loop.time() + ASK_TIMEOUT
        while self.surplus:
            victim = self._idlest(loop)
            if victim is not None:
                victim.close("cap")
                await victim.wait_closed()
            elif others:
                await self._ask_next(others, until)
            else:
                with self._lock:
                    self.exceeded += 1
                return False
        return True

    def shrink(self, loop: asyncio.AbstractEventLoop) -> None:
        """Close what is idle on ``loop``, which may rest, until the limit holds."""
        while self.surplus and (victim := self._idlest(loop)) is not None:
            victim.close("cap")

    async def relieve(self) -> None:
        """Close all that is idle on this loop, else something on another: descriptors ran out."""
        loop = asyncio.get_running_loop()
        victims = []
        while (victim := self._idlest(loop)) is not None:
            victim.close("cap")
            victims.append(victim)
        for victim in victims:
            await victim.wait_closed()
        others, until = [] if victims else self._other_loops(loop), loop.time() + ASK_TIMEOUT
        while others and not await self._ask_next(others, until):
            pass

    def _all(self) -> list[Member]:
        with self._lock:
            return list(self._members)

    def _of(self, loop: asyncio.AbstractEventLoop) -> list[Member]:
        return [member for member in self._all() if member.loop is loop]

    def _idlest(self, loop: asyncio.AbstractEventLoop) -> Connection | None:
        heads = [head for member in self._of(loop) if (head := member.idlest()) is not None]
        return min(heads, key=lambda head: head[0])[1] if heads else None

    def _other_loops(self, loop: asyncio.AbstractEventLoop) -> list[asyncio.AbstractEventLoop]:
        """The other loops, the one to ask first last: that with the least recently used."""
        others = [m for m in self._all() if m.loop is not loop and m.loop.is_running()]
        since: dict[asyncio.AbstractEventLoop, float] = {}
        for member in others:
            # A glance at what belongs to another thread: it orders the asking, no more.
            with contextlib.suppress(RuntimeError):  # changed under the glance
                head = member.idlest()
                if head is not None:
                    since[member.loop] = min(head[0], since.get(member.loop, head[0]))
        return sorted(since, key=since.__getitem__, reverse=True)

    async def _ask_next(self, others: list[asyncio.AbstractEventLoop], until: float) -> bool:
        """Ask the last of ``others``, for its share of the time that they all have left."""
        left = until - asyncio.get_running_loop().time()
        share = max(0.0, left) / len(others)
        return await self._ask(others.pop(), share)

    async def _ask(self, loop: asyncio.AbstractEventLoop, timeout: float) -> bool:
        """Let ``loop`` close one of its idle connections; whether it did."""
        answer: concurrent.futures.Future[bool] = concurrent.futures.Future()

        def close_one() -> None:
            if not answer.set_running_or_notify_cancel():
                return  # too late: others have made room, or nobody has
            victim = self._idlest(loop)
            if victim is None:
                tell(False)
                return
            victim.close("cap")
            closing = loop.create_task(victim.wait_closed())
            closing.add_done_callback(lambda _: tell(True))

        def tell(closed: bool) -> None:
            with contextlib.suppress(concurrent.futures.InvalidStateError):  # nobody waits
                answer.set_result(closed)

        try:
            loop.call_soon_threadsafe(close_one)
            await asyncio.wait_for(asyncio.wrap_future(answer), timeout)
        except (RuntimeError, asyncio.TimeoutError):  # closed meanwhile, or too busy to answer
            return False
        return answer.result()


process = Cap()
"""That of this process."""


def after_fork() -> None:
    """A child has no connections yet."""
    global process
    process = Cap(process.limit)
