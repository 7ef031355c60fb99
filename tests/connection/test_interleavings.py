"""Every order in which two callers and the reaper can take their steps on one connection.

Callers are coroutines that are advanced by hand, so that a step is what happens between two
awaits; the reaper's steps are the deadline and the turns of the loop that then look for what is
idle, close it and listen.
"""

from __future__ import annotations

import asyncio
import contextvars
import math
from collections.abc import Callable, Coroutine, Iterator, Sequence
from typing import Any

import pytest

from xoscar_idle import config
from xoscar_idle.connection.caller import ActorCaller
from xoscar_idle.connection.cap import Cap
from xoscar_idle.connection.client import State
from xoscar_idle.connection.leases import leases

from ..support.memory import Network, message
from ..support.stepping import SteppedLoop

ROUTE = "a:1"
TIMEOUT = 30.0

Step = Callable[[], None]


def orders(lengths: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Each order of who goes next, where participant ``i`` goes ``lengths[i]`` times."""
    if not any(lengths):
        yield ()
    for i, left in enumerate(lengths):
        if left:
            rest = [*lengths[:i], left - 1, *lengths[i + 1 :]]
            yield from ((i, *order) for order in orders(rest))


class World:
    """One caller with a network, on a loop that outlives it."""

    def __init__(self, loop: SteppedLoop) -> None:
        self.loop = loop
        self.network = Network()
        with loop.current():
            self.caller = ActorCaller(clock=loop.time, cap=Cap())

    def until(self, condition: Callable[[], bool]) -> None:
        """Let the loop run until ``condition`` holds; if it then never does, something is lost."""
        while not condition():
            assert not self.loop.resting, "it waits for what never comes"
            self.loop.turn()

    def written(self, sent: Any) -> list[Any]:
        """The connections that ``sent`` was written to."""
        return [each for each in self.network.opened if sent in each.sent]

    def check(self, users: Sequence[User]) -> None:
        """What holds after each step."""
        assert not self.loop.errors
        self.caller._validate()
        # Not only those that take calls, as a table would have it: what is really there.
        taking = [c for c in self.caller._all.values() if c.state is State.OPEN]
        assert len(taking) + len(self.caller._connects.by_route) <= 1
        for connection in self.network.opened:
            references = sum(user.references(connection) for user in users)
            if references:
                assert not connection.closed, "closed while in use"
                client = self.caller._all[connection]
                assert client.state is State.OPEN
                assert client.refs == references


class User:
    """One who uses a connection, by a coroutine that is advanced by hand."""

    length: int  # in steps

    def __init__(self, world: World) -> None:
        self.world = world
        self.message = message()
        self.result: Any = None
        self.done = False
        self._main: Coroutine[Any, Any, Any] = self.main()
        self._waits_for: asyncio.Future[Any] | None = None
        self._context = contextvars.copy_context()
        self.steps: list[Step] = []

    async def main(self) -> Any:
        raise NotImplementedError

    def references(self, connection: Any) -> int:
        """How many of the references to ``connection`` are its own now."""
        raise NotImplementedError

    def is_handed(self, connection: Any) -> bool:
        """Whether it has waited for the connect, and has yet to take up its result."""
        return (
            not self.done
            and isinstance(self._waits_for, asyncio.Future)
            and self._waits_for.done()
            and getattr(self._waits_for.result(), "client", None) is connection
        )

    def advance(self) -> None:
        """Run to the next await that has to wait."""
        if self._waits_for is not None:
            self.world.until(self._waits_for.done)
        with self.world.loop.current():
            try:
                self._waits_for = self._context.run(self._main.send, None)
                if self._waits_for is not None:  # None: of sleep(0)
                    self._waits_for._asyncio_future_blocking = False
            except StopIteration as stop:
                self.result, self.done = stop.value, True

    def answer(self) -> None:
        """The peer replies, once it has the message."""
        while not self.world.written(self.message):
            self.advance()
        (connection,) = self.world.written(self.message)
        connection.reply(self.message, "reply")


class Call(User):
    """Look-up, reference and request in one step, if there is a connection; reply; return."""

    length = 3

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self.steps = [self.advance, self.answer, self.finish]

    async def main(self) -> Any:
        return await self.world.caller.call(self.world.network, ROUTE, self.message)

    def references(self, connection: Any) -> int:
        answered = self._waits_for is not None and self._waits_for.done()
        waits = self.message in connection.sent and not self.done and not answered
        return waits + self.is_handed(connection)

    def finish(self) -> None:
        while not self.done:
            self.advance()
        assert self.result.result == "reply"


class CancelledCall(Call):
    """One that is cancelled, wherever it is then."""

    length = 2

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self.steps = [self.advance, self.cancel]

    def cancel(self) -> None:
        assert self._waits_for is not None
        self._waits_for.cancel()
        with self.world.loop.current(), pytest.raises(asyncio.CancelledError):
            self._context.run(self._main.throw, asyncio.CancelledError())
        self.done = True


class Lease(User):
    """Look-up and reference; request; reply; the reference is given back."""

    length = 4

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self.leased: Any = None
        self.go_on: asyncio.Future[None] = world.loop.create_future()
        self.reply: asyncio.Future[Any] = world.loop.create_future()
        self.steps = [self.advance, self.request, self.answer, self.give_back]

    async def main(self) -> Any:
        caller, network = self.world.caller, self.world.network
        with leases():
            self.leased = await caller.get_client(network, ROUTE)
            await self.go_on
            self.reply = await caller.call_with_client(self.leased, self.message, wait=False)
            return await self.reply

    def references(self, connection: Any) -> int:
        leases = self.leased is connection and not self.done
        asks = self.message in connection.sent and not self.reply.done()
        return leases + asks + self.is_handed(connection)

    def request(self) -> None:
        while self.leased is None:
            self.advance()
        self.go_on.set_result(None)
        self.advance()

    def give_back(self) -> None:
        self.advance()
        assert self.done
        assert self.result.result == "reply"


def reaper(loop: SteppedLoop, turns: int) -> list[Step]:
    """The deadline of what is idle now; and turns in which the check comes, closes and is done."""

    def deadline() -> None:
        loop.now += TIMEOUT

    return [deadline, *[loop.turn] * turns]


def play(world: World, users: Sequence[User], order: Sequence[int], turns: int) -> None:
    steps = [iter(p) for p in ([user.steps for user in users] + [reaper(world.loop, turns)])]
    for who in order:
        next(steps[who])()
        world.check(users)
    world.loop.rest()
    assert all(user.done for user in users)
    for user in users:
        # One that was cancelled while it waited for the connect has written nothing.
        assert len(world.written(user.message)) == 1 or isinstance(user, CancelledCall)
    assert all(client.refs == 0 for client in world.caller._all.values())
    world.loop.sleep(TIMEOUT)
    world.caller._validate()
    assert not world.caller._all
    assert all(connection.closed for connection in world.network.opened)
    assert not asyncio.all_tasks(world.loop)


@pytest.mark.parametrize("connected", [True, False], ids=["connected", "not connected"])
@pytest.mark.parametrize(
    ("kinds", "turns", "count"),
    [((Call, Call), 3, 4200), ((Call, Lease), 3, 11550), ((Call, CancelledCall), 4, 2520)],
    ids=["two calls", "a call and a lease", "a call and one that is cancelled"],
)
def test_every_order(
    kinds: tuple[type[User], type[User]], turns: int, count: int, connected: bool
) -> None:
    before = config.current()
    config.use(config.Settings(idle_timeout=TIMEOUT))
    loop = SteppedLoop()
    try:
        lengths = [*(kind.length for kind in kinds), 1 + turns]
        played = 0
        for order in orders(lengths):
            world = World(loop)
            if connected:
                loop.run_until_complete(world.caller.get_client(world.network, ROUTE))
            try:
                play(world, [kind(world) for kind in kinds], order, turns)
            except BaseException as error:
                raise AssertionError(f"in the order {order}") from error
            played += 1
        expected = math.factorial(sum(lengths)) // math.prod(map(math.factorial, lengths))
        assert played == count == expected
        assert not loop.errors
    finally:
        config.use(before)
        loop.close()
