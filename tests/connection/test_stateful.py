"""Random sequences of all that can happen to connections, against a model of what must follow.

Two callers share one loop and one cap. Each step may leave the loop in the middle of something;
whenever it has come to rest, every call must have come to what the model says, or wait for
something that can still come. A sequence that fails is printed as a script.

XOSCAR_IDLE_FUZZ=10000 runs so many sequences, other ones each time. With XOSCAR_IDLE_NO_SHRINK a
failing one is told as it is, at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import sys
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)
from xoscar.backends.message import DeserializeMessageFailed, ResultMessage
from xoscar.errors import ServerClosed

from xoscar_idle import config
from xoscar_idle.connection import transports
from xoscar_idle.connection.caller import ActorCaller
from xoscar_idle.connection.cap import Cap
from xoscar_idle.connection.client import CallerClient, State
from xoscar_idle.connection.deadlines import CallTimeout, deadline
from xoscar_idle.connection.leases import leases

from ..support.memory import Connection, Network, message
from ..support.stepping import SteppedLoop

FUZZ = int(os.environ.get("XOSCAR_IDLE_FUZZ", "0"))

ROUTES = ("a:1", "b:1", "dummy://c")
Outcome = Any  # the result of a call, or the type of its error


class Use:
    """A call or a lease: what it is up to, and what it may come to."""

    def __init__(self, net: Net, address: str) -> None:
        self.net = net
        self.address = address
        self.message = message()
        self.task: asyncio.Future[Any] | None = None
        self.route: str | None = None  # known once it has looked up
        self.connection: Peer | None = None  # known once it sends, or is leased
        self.lease: Use | None = None  # that a call goes over
        self.release: asyncio.Event | None = None  # of a lease
        self.may_come_to: set[Outcome] = set()
        self.settled = False
        self.cancelled = False
        self.due = float("inf")  # its deadline

    @property
    def future(self) -> asyncio.Future[Any] | None:
        """What is awaited: the task, or the reply that it returned."""
        if self.task is not None and self.task.done() and not self.task.cancelled():
            result = None if self.task.exception() else self.task.result()
            if isinstance(result, asyncio.Future):
                return result
        return self.task

    @property
    def done(self) -> bool:
        return self.future is not None and self.future.done()

    @property
    def over(self) -> bool:
        """Whether a lease is being given back, or has been."""
        assert self.release is not None
        return self.release.is_set() or self.cancelled or self.done

    @property
    def in_use(self) -> bool:
        """Whether its connection must be there for it: all that happened lets it wait."""
        return not (
            self.connection is None
            or self.connection.ends
            or self.settled
            or self.cancelled
            or self.done
            or (self.release is not None and self.over)
            or self.due <= self.net.loop.now
        )

    def outcome(self) -> Outcome:
        future = self.future
        assert future is not None
        if future.cancelled():
            return asyncio.CancelledError
        if (error := future.exception()) is not None:
            return type(error)
        result = future.result()
        return result.result if isinstance(result, ResultMessage) else result

    def allowed(self) -> set[Outcome]:
        """What it may have come to."""
        if self.cancelled:
            return {asyncio.CancelledError}
        allowed = set(self.may_come_to)
        if self.connection is not None:
            allowed |= self.connection.ends
        elif self.route is not None:
            allowed |= self.net.trouble.get(self.route, set())
        if self.lease is not None:
            assert self.lease.connection is not None
            if self.lease.over or self.lease.connection.ends:
                allowed |= {ServerClosed, *self.lease.connection.ends}
        if self.due <= self.net.loop.now:
            allowed.add(CallTimeout)
        return allowed


class Peer(Connection):
    """A connection with its other side, which knows what was done to it."""

    client: CallerClient
    known_at: float

    def __init__(self, route: str, net: Net) -> None:
        super().__init__(route)
        self.channel = SimpleNamespace(abort=self._cut)
        self.net = net
        self.opened_at = self.last_used = net.loop.now
        self.closed_at: float | None = None
        self.unused_since: float | None = None
        self.ends: set[Outcome] = set()  # what calls come to since the test ended it
        self.fault: str | None = None  # of the next send
        self.stalls_after_write = False
        self.retired = False
        self.judged = False
        self.gone = asyncio.Event()  # cleared: a close takes until it is set
        self.gone.set()

    async def send(self, message: Any) -> None:
        use = self.net.calls[message.message_id]
        use.connection, self.unused_since = self, None
        fault, self.fault = self.fault, None
        if fault == "unpicklable":
            use.settled = True
            use.may_come_to.add(TypeError)
            raise TypeError("cannot pickle")
        if not self.stalls_after_write:
            await self.sending.wait()
        if self.closed or fault == "not sent":
            if fault:
                self.net.end(self, ServerClosed)
            # It goes to another connection, or fails where this one was opened for it.
            use.connection = None
            use.may_come_to.add(ServerClosed)
            raise transports.NotSent("closed before the write")
        if message.message_id in self.net.written:
            self.net.violations.append(f"{message} was written twice")
        self.net.written.add(message.message_id)
        self.sent.append(message)
        if self.stalls_after_write:
            await self.sending.wait()
        if fault == "reset":
            self.net.end(self, ServerClosed)
        if self.closed or fault == "reset":
            use.may_come_to.add(ServerClosed)
            raise ConnectionResetError("reset")

    async def close(self) -> None:
        self._cut()
        await self.gone.wait()

    def _cut(self) -> None:
        if self.closed_at is None:
            self.closed_at = self.net.loop.now
        self.closed = True
        self.sending.set()


class Net(Network):
    """One caller, and all there is for it to talk to."""

    def __init__(self, loop: SteppedLoop, cap: Cap) -> None:
        super().__init__()
        self.loop = loop
        self.caller = ActorCaller(clock=loop.time, cap=cap)
        self.calls: dict[bytes, Use] = {}
        self.written: set[bytes] = set()
        self.peers: list[Peer] = []
        self.under_way: dict[Any, str] = {}  # the connects, by their routes
        self.failures: list[OSError] = []
        self.retrying: set[str] = set()  # routes whose connect lacked a descriptor once
        self.trouble: dict[str, set[Outcome]] = {}  # what became of connects since the last rest
        self.given_up: set[Any] = set()  # connects that were under way at a stop
        self.leaving = False
        self.retired: set[Any] = set()  # connects that were under way when all was retired
        self.relieved = False
        self.violations: list[str] = []

    async def _create_client(self, client_type: Any, address: str, **kw: Any) -> Peer:
        connect = self.caller._connects.by_route[address]
        if address in self.dialed() or address in self.caller._clients:
            self.violations.append(f"a second connection to {address}")
        self.under_way[connect] = address
        self.dials += 1
        try:
            await self.dialing.wait()
        except asyncio.CancelledError:
            if self.loop.now >= connect.started + config.current().connect_timeout:
                self._trouble(address, ConnectionError)
            elif connect not in self.given_up:
                self.violations.append(f"the connect to {address} was cancelled")
            raise
        finally:
            del self.under_way[connect]
        if self.failures:
            failure = self.failures.pop(0)
            if failure.errno == 24 and transports.holds_descriptor(address):
                self.relieved = True
                if address not in self.retrying:
                    self.retrying.add(address)
                    raise failure
            self._trouble(address, type(failure))
            raise failure
        peer = Peer(address, self)
        if connect in self.given_up:
            peer.ends.add(ServerClosed)
        peer.retired = connect in self.retired or connect.retire is not None
        self.peers.append(peer)
        return peer

    def dialed(self) -> list[str]:
        """The routes of the connects that calls can join."""
        return [route for each, route in self.under_way.items() if each not in self.given_up]

    def _trouble(self, route: str, outcome: Outcome) -> None:
        self.trouble.setdefault(route, set()).add(outcome)

    def stop(self) -> None:
        """The caller is being stopped: calls fail, wherever they are."""
        self.given_up.update(self.caller._connects.all)
        for route in ROUTES:
            self._trouble(route, ServerClosed)
        for peer in self.peers:
            peer.ends.add(ServerClosed)

    def end(self, peer: Peer, outcome: Outcome) -> None:
        """``peer`` has gone: so much for its calls, and for those it is handed to just now."""
        peer.ends.add(outcome)
        self._trouble(peer.dest_address, ServerClosed)

    def latest(self, route: str) -> Peer | None:
        """The connection that was opened last, unless it is closed."""
        found = [p for p in self.peers if p.dest_address == route and not p.closed]
        return found[-1] if found else None


NETS = st.sampled_from([0, 1])
ADDRESSES = st.sampled_from(ROUTES)
SECONDS = st.sampled_from([0.5, 3, 10, 40])
REST = 100
TURNS = st.sampled_from([REST, REST, 0, 1, 2, 3, 4])
"""How many turns of the loop a step lasts; with 0 the next one happens at the same moment."""


class Connections(RuleBasedStateMachine):
    """What can happen, and what holds then."""

    calls = Bundle("calls")
    held = Bundle("held")
    sequences = steps = 0

    def __init__(self) -> None:
        super().__init__()
        gc.freeze()  # what is there already need not be looked at again
        Connections.sequences += 1
        self.settings_before = config.current()
        self.unraisable_hook = sys.unraisablehook
        self.loop = SteppedLoop()
        sys.unraisablehook = self.unraisable
        self.end = "stop"
        self.uses: list[Use] = []  # whose outcome has not been looked at
        self.all_uses: list[Use] = []
        self.others: list[asyncio.Task[None]] = []  # more tasks of the test
        self.cap = Cap()
        with self.loop.current():
            self.nets = [Net(self.loop, self.cap) for _ in range(2)]

    @initialize(end=st.sampled_from(["stop", "cancel", "close"]))
    def how_it_ends(self, end: str) -> None:
        self.end = end
        self.configure_to(config.Settings(idle_timeout=30), 0)

    # -- calls and leases ------------------------------------------------------------------------

    @rule(
        target=calls,
        net=NETS,
        address=ADDRESSES,
        wait=st.booleans(),
        within=st.sampled_from([None, None, None, 5]),
        turns=TURNS,
    )
    def call(self, net: int, address: str, wait: bool, within: float | None, turns: int) -> Use:
        use = Use(self.nets[net], address)

        async def calling() -> Any:
            use.route = use.net._resolve_address(address)
            return await use.net.caller.call(use.net, address, use.message, wait)

        return self.begin(use, calling, within, turns)

    @rule(net=NETS, address=ADDRESSES, turns=TURNS)
    def visit(self, net: int, address: str, turns: int) -> None:
        """A call that is answered as soon as it can be."""
        use = self.call(net, address, True, None, REST)
        self.reply(use, True, turns)

    @rule(target=held, net=NETS, address=ADDRESSES, turns=TURNS)
    def lease(self, net: int, address: str, turns: int) -> Use:
        use = Use(self.nets[net], address)
        use.release = asyncio.Event()
        use.may_come_to.add("given back")

        async def holding() -> str:
            assert use.release is not None
            use.route = use.net._resolve_address(address)
            with leases():
                connection: Any = await use.net.caller.get_client(use.net, address)
                use.connection, connection.unused_since = connection, None
                await use.release.wait()
            return "given back"

        return self.begin(use, holding, None, turns)

    @rule(
        target=calls,
        lease=held,
        wait=st.booleans(),
        within=st.sampled_from([None, None, None, 5]),
        turns=TURNS,
    )
    def call_over(self, lease: Use, wait: bool, within: float | None, turns: int) -> Use:
        use = Use(lease.net, lease.address)

        async def calling() -> Any:
            if lease.connection is None or lease.over:
                use.may_come_to.add(None)
                return None
            use.lease = lease
            connection = lease.connection
            return await use.net.caller.call_with_client(connection, use.message, wait)

        return self.begin(use, calling, within, turns)

    def begin(self, use: Use, main: Callable[[], Any], within: float | None, turns: int) -> Use:
        async def in_time(seconds: float) -> Any:
            use.due = self.loop.now + seconds
            with deadline(seconds, required=False):  # nothing is installed here
                return await main()

        use.net.calls[use.message.message_id] = use
        self.uses.append(use)
        self.all_uses.append(use)
        use.task = self.loop.create_task(main() if within is None else in_time(within))
        self.loop.turn(turns)
        return use

    @rule(lease=held, turns=TURNS)
    def give_back(self, lease: Use, turns: int) -> None:
        assert lease.release is not None
        lease.release.set()
        self.loop.turn(turns)

    @rule(use=calls | held, turns=TURNS)
    def cancel(self, use: Use, turns: int) -> None:
        with self.loop.current():
            if use.future is not None and use.future.cancel():
                use.cancelled = True
        self.loop.turn(turns)

    # -- the other side --------------------------------------------------------------------------

    @rule(use=calls, readable=st.booleans(), turns=TURNS)
    def reply(self, use: Use, readable: bool, turns: int) -> None:
        """Answer a call that was written: in time, late or once more."""
        where = [p for p in use.net.peers if use.message in p.sent]
        if not where:
            return
        (peer,) = where
        failure = DeserializeMessageFailed(use.message.message_id)
        failure.__cause__ = ModuleNotFoundError("no module")
        with self.loop.current():
            if readable:
                peer.reply(use.message, use.message.message_id)
            else:
                peer.incoming.put_nowait(failure)
        if not (peer.ends or use.settled):
            use.settled = True
            use.may_come_to.add(use.message.message_id if readable else ModuleNotFoundError)
        self.loop.turn(turns)

    @rule(
        net=NETS,
        route=ADDRESSES,
        does=st.sampled_from(["hang up", "vanish", "garbage", "reset", "unasked reply"]),
        turns=TURNS,
    )
    def peer(self, net: int, route: str, does: str, turns: int) -> None:
        """The other side of a connection does something by itself."""
        if not (peer := self.nets[net].latest(route)):
            return
        if does == "unasked reply":
            peer.reply(message())
        else:
            peer.net.end(peer, ValueError if does == "garbage" else ServerClosed)
            errors = {"garbage": ValueError("garbage"), "reset": ConnectionResetError("reset")}
            peer.incoming.put_nowait(errors.get(does, EOFError("hung up")))
        if does == "vanish":
            peer.closed = True  # known to the transport before the listener hears of it
            peer.sending.set()
        self.loop.turn(turns)

    # -- faults and delays -----------------------------------------------------------------------

    @rule(
        net=NETS,
        route=ADDRESSES,
        what=st.sampled_from(
            [
                "next send: unpicklable",
                "next send: not sent",
                "next send: reset",
                "next connect: 111",
                "next connect: 24",
                "connects stall",
                "sends stall before the write",
                "sends stall after the write",
                "close stalls",
            ]
        ),
    )
    def fault(self, net: int, route: str, what: str) -> None:
        where = self.nets[net]
        peer = where.latest(route)
        kind, _, which = what.partition(": ")
        if kind == "next connect":
            where.failures.append(OSError(int(which), "failed"))
        elif kind == "connects stall":
            where.dialing.clear()
        elif peer and kind == "next send":
            peer.fault = which
        elif peer and kind == "close stalls":
            peer.gone.clear()
        elif peer and peer.sending.is_set():
            peer.stalls_after_write = kind.endswith("after the write")
            peer.sending.clear()

    @rule(net=NETS, turns=TURNS)
    def go_on(self, net: int, turns: int) -> None:
        """Nothing stalls any more."""
        self.nets[net].dialing.set()
        for peer in self.nets[net].peers:
            peer.sending.set()
            peer.gone.set()
        self.loop.turn(turns)

    @rule(net=NETS, address=ADDRESSES, route=ADDRESSES)
    def change_route(self, net: int, address: str, route: str) -> None:
        self.nets[net].mapping[address] = route

    # -- time, settings, the end -----------------------------------------------------------------

    @rule(seconds=SECONDS)
    def wait(self, seconds: float) -> None:
        self.loop.sleep(seconds)

    @rule(seconds=SECONDS, turns=TURNS)
    def suspend(self, seconds: float, turns: int) -> None:
        """The clock goes on, and what is ready comes before the timers that are late."""
        if not self.loop.resting:
            for peer in self.peers():
                peer.unused_since = None  # it may fall idle only now
        self.loop.now += seconds
        self.loop.turn(turns)

    @rule(turns=TURNS)
    def run(self, turns: int) -> None:
        self.loop.turn(turns)

    @rule(
        idle=st.sampled_from([0, 5, 30]),
        dummy=st.sampled_from([None, 7]),
        age=st.sampled_from([0, 0, 50]),
        cap=st.sampled_from([0, 1, 2]),
        turns=TURNS,
    )
    def configure(self, idle: float, dummy: float | None, age: float, cap: int, turns: int) -> None:
        self.configure_to(
            config.Settings(idle_timeout=idle, idle_timeout_dummy=dummy, max_connection_age=age),
            cap,
        )
        self.loop.turn(turns)

    def configure_to(self, settings: config.Settings, cap: int) -> None:
        config.use(settings)
        self.cap.limit = cap
        with self.loop.current():
            for net in self.nets:
                net.caller.apply_settings()

    @rule(net=NETS, how=st.sampled_from(["retire", "for good", "resume", "stop"]), turns=TURNS)
    def leave(self, net: int, how: str, turns: int) -> None:
        where = self.nets[net]

        async def stopping() -> None:
            where.stop()
            await where.caller.stop()

        if how == "stop":
            self.others.append(self.loop.create_task(stopping()))
        elif how == "resume":
            where.caller.resume()
            where.leaving = False
        else:
            where.leaving = how == "for good"
            where.retired.update(where.caller._connects.all)
            for peer in where.peers:
                peer.retired = True
            with self.loop.current():
                where.caller.retire("stop")
                if not where.leaving:
                    where.caller.resume()
        self.loop.turn(turns)

    def teardown(self) -> None:
        try:
            getattr(self, f"end_by_{self.end}")()
            left = [p.dest_address for p in self.peers() if not p.closed and state_of(p)]
            assert not left, "connections outlive their callers"
            self.let_go()
            gc.collect()
            if not self.loop.is_closed():
                assert not asyncio.all_tasks(self.loop)
                self.loop.close()
            assert self.cap.count == 0
            assert not self.cap._members
            errors = self.loop.errors
            if self.end == "close":  # so those who would have taken notice of an error never ran
                errors = [error for error in errors if "never retrieved" not in error]
            assert not errors
        finally:
            self.restore()

    def restore(self) -> None:
        """Leave no trace."""
        sys.unraisablehook = self.unraisable_hook
        config.use(self.settings_before)
        if not self.loop.is_closed():
            self.loop.close()

    def unraisable(self, info: Any) -> None:
        # A queue that is destroyed with its loop cannot cancel what it waits for.
        if str(info.exc_value) != "Event loop is closed":
            self.loop.errors.append(f"{info.exc_value!r} in {info.object}")

    def let_go(self) -> None:
        """Take notice of what is left, and keep nothing of it, so that it is destroyed now."""
        for use in self.all_uses:
            if use.done:
                use.outcome()
            use.__dict__.clear()  # hypothesis keeps them
        self.others.clear()
        self.nets.clear()

    def end_by_stop(self) -> None:
        for net in self.nets:
            net.dialing.set()
            for peer in net.peers:
                peer.gone.set()
            self.leave(self.nets.index(net), "stop", 0)
        self.loop.rest()
        for use in self.uses:
            if use.release is not None:
                use.release.set()
        self.loop.rest()
        # A call that was not yet written when its connection was stopped has opened another.
        for net in self.nets:
            self.leave(self.nets.index(net), "stop", REST)
        self.at_rest()
        assert all(use.done for use in self.uses)

    def end_by_cancel(self) -> None:
        """As ``asyncio.run`` ends a loop."""
        for net in self.nets:
            net.stop()
            for peer in net.peers:
                peer.gone.set()
        with self.loop.current():
            for task in asyncio.all_tasks(self.loop):
                task.cancel()
        self.loop.rest()
        assert all(use.done or not use.task.done() for use in self.uses if use.task)
        self.loop.close()
        self.sever()

    def end_by_close(self) -> None:
        """A loop that is closed with all that is under way on it."""
        ours = {task for net in self.nets for task in tasks_of(net.caller)}
        for task in asyncio.all_tasks(self.loop) - ours:
            task._log_destroy_pending = False  # type: ignore[attr-defined]
        self.loop.close()
        self.sever()

    def sever(self) -> None:
        for net in self.nets:
            net.caller.sever("loop")

    # -- what holds ------------------------------------------------------------------------------

    def peers(self) -> list[Peer]:
        return [peer for net in self.nets for peer in net.peers]

    @invariant()
    def holds(self) -> None:
        Connections.steps += 1
        self.at_any_moment()
        if self.loop.resting:
            self.at_rest()

    def at_any_moment(self) -> None:
        assert not self.loop.errors
        now = self.loop.now
        for net in self.nets:
            assert not net.violations
            net.caller._validate()
            for connection, client in net.caller._all.items():
                assert isinstance(connection, Peer)
                if not hasattr(connection, "client"):
                    connection.client, connection.known_at = client, now
            for route in ROUTES:
                taking = [
                    peer
                    for peer in net.peers
                    if peer.dest_address == route and state_of(peer) is State.OPEN
                ]
                assert len(taking) + net.dialed().count(route) <= 1
        used = {use.connection for use in self.uses if use.in_use}
        for peer in self.peers():
            if not hasattr(peer, "client"):
                continue
            if peer in used:
                assert state_of(peer) in (State.OPEN, State.RETIRED), "closed while in use"
                assert peer.client.refs > 0
                peer.last_used, peer.unused_since = now, None
            elif peer.unused_since is None:
                peer.unused_since = now
            if not peer.judged and state_of(peer) is not State.OPEN:
                peer.judged = True
                self.judge(peer)

    def judge(self, peer: Peer) -> None:
        """Whether ``peer`` had to be closed, or retired, for the reason that is given."""
        chosen = config.current()
        closed_at = self.loop.now if peer.closed_at is None else peer.closed_at
        reason = peer.client.reason
        if reason == "idle":
            timeout = chosen.idle_timeout_of(transports.transport(peer.dest_address))
            assert timeout
            assert closed_at - peer.last_used >= timeout, "closed before it was idle for so long"
        elif reason == "age":
            assert chosen.max_connection_age
            assert closed_at - peer.opened_at >= 0.9 * chosen.max_connection_age
        elif reason == "cap":
            assert self.cap.limit or any(net.relieved for net in self.nets)
        elif reason == "silent":
            late = [use for use in self.all_uses if use.due <= self.loop.now]
            assert peer in {use.connection for use in late}, "no deadline was missed"
        else:
            assert reason in ("peer", "error", "stop")
            assert peer.ends or (peer.retired and reason == "stop"), "nothing ended it"

    def at_rest(self) -> None:
        self.calls_have_come_to_what_they_should()
        self.references_are_exact()
        self.cap_is_respected()
        self.overdue_are_gone()
        if not any(net.caller._all or net.caller._connects.by_route for net in self.nets):
            ours = {*self.others, *(use.task for use in self.uses)}
            assert asyncio.all_tasks(self.loop) <= ours, "nothing open, and something running"

    def calls_have_come_to_what_they_should(self) -> None:
        for use in self.uses:
            if use.done:
                outcome = use.outcome()
                assert outcome in use.allowed(), f"{outcome} is not in {use.allowed()}"
                continue
            assert not use.cancelled
            assert use.due > self.loop.now, "it waits beyond its deadline"
            if use.connection is None:
                assert use.route in use.net.caller._connects.by_route, "it waits for nothing"
            elif use.release is not None:
                assert not use.over
            elif use.connection.sending.is_set():
                assert not use.settled, "its reply has come"
                assert not use.connection.ends, "its connection has ended"
        self.uses = [use for use in self.uses if not use.done]
        self.others = [task for task in self.others if not task.done()]
        for net in self.nets:
            net.trouble.clear()
            net.retrying.intersection_update(net.caller._connects.by_route)

    def references_are_exact(self) -> None:
        for net in self.nets:
            for peer, client in net.caller._all.items():
                using = [use for use in self.uses if use.connection is peer]
                held = [use for use in using if use.release is not None]
                asked = [use for use in using if use.release is None and use.in_use]
                assert client.refs == len(held) + len(asked)
                assert client.in_flight == len(asked)

    def cap_is_respected(self) -> None:
        counted = 0
        for net in self.nets:
            counted += sum(map(transports.holds_descriptor, net.caller._connects.by_route))
            for peer in net.peers:
                if state_of(peer) is State.OPEN and transports.holds_descriptor(peer.dest_address):
                    counted += 1
                    assert peer.client.refs or not self.cap.surplus, "too many, and one is idle"
        assert self.cap.count == counted

    def overdue_are_gone(self) -> None:
        now, chosen = self.loop.now, config.current()
        for peer in self.peers():
            timeout = chosen.idle_timeout_of(transports.transport(peer.dest_address))
            if timeout and peer.unused_since is not None and not peer.ends:
                assert peer.closed or now < peer.unused_since + timeout, "idle for too long"
            if chosen.max_connection_age and state_of(peer) is State.OPEN:
                assert now < peer.known_at + chosen.max_connection_age, "too old"


def tasks_of(caller: ActorCaller) -> set[asyncio.Task[Any] | None]:
    """What runs for ``caller``; before Python 3.12, wait_for adds tasks of its own."""
    return {
        caller._check,
        *caller._background.tasks(),
        *(connect.task for connect in caller._connects.by_route.values()),
        *(client._task for client in caller._all.values()),
    }


def state_of(peer: Peer) -> State | None:
    """None: it has been opened just now, and nobody knows it yet."""
    return peer.client.state if hasattr(peer, "client") else None


# Before Python 3.12, wait_for begins what it awaits a turn later: the loop may be closed by then.
IGNORE_NEVER_AWAITED = pytest.mark.filterwarnings(
    "ignore:coroutine .* was never awaited:RuntimeWarning"
)


@IGNORE_NEVER_AWAITED
@pytest.mark.timeout(0 if FUZZ else 120)
def test_any_sequence_keeps_the_invariants() -> None:
    try:
        run_state_machine_as_test(
            Connections,
            settings=hypothesis_settings(
                max_examples=FUZZ or 200,
                stateful_step_count=40,
                derandomize=not FUZZ,
                deadline=None,
                phases=[Phase.generate] if "XOSCAR_IDLE_NO_SHRINK" in os.environ else list(Phase),
                report_multiple_bugs=False,
                suppress_health_check=list(HealthCheck),
            ),
        )
    finally:
        gc.unfreeze()
        print(f"{Connections.sequences} sequences, {Connections.steps} steps")


# -- sequences that random ones meet seldom ------------------------------------------------------


@contextlib.contextmanager
def sequence(end: str = "stop") -> Iterator[Connections]:
    """One that is written down."""
    state = Connections()
    try:
        state.how_it_ends(end)
        yield state
        state.holds()
    except BaseException:
        state.restore()
        raise
    state.teardown()


CONNECTING = pytest.mark.parametrize("turns", range(10))
"""From before a connect begins to after its connection was used."""


@CONNECTING
def test_stop_at_any_moment_of_a_connect_leaves_nothing(turns: int) -> None:
    with sequence() as state:
        call: Any = state.call(0, "a:1", True, None, turns)
        if turns:  # else it comes after the stop
            state.leave(0, "stop", 0)
            (stopping,) = state.others
            while not stopping.done():
                state.run(1)
            caller = state.nets[0].caller
            assert not (caller._all)
            assert not (caller._connects.by_route)
            state.run(REST)
            assert call.outcome() is ServerClosed


@CONNECTING
@IGNORE_NEVER_AWAITED
def test_loop_closed_at_any_moment_of_a_connect_leaves_nothing(turns: int) -> None:
    with sequence("close") as state:
        state.call(0, "a:1", True, None, turns)


@CONNECTING
@pytest.mark.parametrize("within", [None, 5])
def test_cancellation_at_any_moment_of_a_call(turns: int, within: float | None) -> None:
    with sequence() as state:
        call: Any = state.call(0, "a:1", True, within, turns)
        state.cancel(call, REST)
        assert call.outcome() is asyncio.CancelledError


def test_lease_on_a_loop_that_is_closed() -> None:
    with sequence("close") as state:
        state.lease(0, "a:1", REST)
        state.call(0, "dummy://c", True, 5, REST)


def test_connection_that_nobody_waits_for_any_more_is_too_many() -> None:
    with sequence() as state:
        state.call(0, "a:1", True, None, REST)
        state.configure(30, None, 0, 1, REST)
        state.fault(0, "b:1", "connects stall")
        state.cancel(state.call(0, "b:1", True, None, REST), REST)
        state.go_on(0, REST)
        state.holds()
        assert [peer.closed for peer in state.nets[0].peers] == [False, True]


def test_connect_waits_until_what_makes_room_is_gone() -> None:
    with sequence() as state:
        state.configure(30, None, 0, 1, REST)
        state.visit(0, "a:1", REST)
        state.fault(0, "a:1", "close stalls")
        state.call(0, "b:1", True, None, REST)
        assert state.nets[0].dials == 1
        state.go_on(0, REST)
        assert state.nets[0].dials == 2


def test_shorter_timeout_wakes_the_check() -> None:
    with sequence() as state:
        state.visit(0, "a:1", REST)
        state.configure(5, None, 0, 0, REST)
        state.wait(10)


def test_changed_timeout_keeps_the_order_of_falling_idle() -> None:
    with sequence() as state:
        for route in ("a:1", "b:1", "a:1"):
            state.visit(0, route, REST)
            state.wait(0.5)
        state.configure(5, None, 0, 0, REST)
        state.wait(4)
        state.holds()
        assert [peer.closed for peer in state.nets[0].peers] == [False, True]
