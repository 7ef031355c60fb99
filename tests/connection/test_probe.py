"""Probes: a request fails for its own silence, and for no other's."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from xoscar.errors import ServerClosed

from xoscar_idle import config
from xoscar_idle.connection.caller import ActorCaller

from ..conftest import Run
from ..support.memory import Network, message, settle
from .test_deadlines import Answering

INTERVAL, TIMEOUT = 4, 2
UNANSWERED = "did not answer a probe within 2 s"


@pytest.fixture
def settings() -> config.Settings:
    return config.Settings(idle_timeout=1000, probe_interval=INTERVAL, probe_timeout=TIMEOUT)


class Peer(Answering):
    """One that answers no probe, unless it is told to."""

    def __init__(self, network: Network) -> None:
        super().__init__(network)
        self.alive = False

    async def asked(self, times: int = 1) -> None:
        """Wait until it has been probed so often."""
        while self.probes < times:  # noqa: ASYNC110  # in virtual time
            await asyncio.sleep(0.25)


async def begin(caller: ActorCaller, network: Network, sent: Any = None) -> Any:
    """A request that nobody answers yet."""
    return await caller.call(network, "a:1", sent or message(), wait=False)


async def outcome(reply: Any) -> BaseException | None:
    await asyncio.wait([reply], timeout=100)
    error: BaseException | None = reply.exception()
    return error


def test_what_joins_during_a_probe_does_not_pay_for_it(in_virtual_time: Run) -> None:
    async def test(caller: ActorCaller, network: Network) -> None:
        peer = Peer(network)
        older = await begin(caller, network)
        await peer.asked()
        younger = await begin(caller, network, sent := message())
        assert UNANSWERED in str(await outcome(older))
        await settle()
        assert not younger.done()
        (client,) = caller._all.values()
        assert client.state.value == "retired"
        assert not network.opened[0].closed
        other = await begin(caller, network)
        (new,) = caller._clients.values()
        assert new is not client
        network.opened[0].reply(sent, "late, but well")
        assert (await younger).result == "late, but well"
        await settle()
        assert network.opened[0].closed
        assert client.reason == "silent"
        assert not other.done()
        other.cancel()

    in_virtual_time(test)


def test_what_joined_has_a_probe_of_its_own_after_its_own_silence(in_virtual_time: Run) -> None:
    async def test(caller: ActorCaller, network: Network) -> None:
        peer = Peer(network)
        await begin(caller, network)
        await peer.asked()
        younger, began = await begin(caller, network), caller.clock()
        await peer.asked(2)
        assert caller.clock() - began >= INTERVAL
        assert not younger.done()
        assert UNANSWERED in str(await outcome(younger))
        assert caller.clock() - began <= 2 * TIMEOUT + INTERVAL + 2 * INTERVAL / 4 + 0.25
        await settle()
        assert network.opened[0].closed
        assert not caller._all

    in_virtual_time(test)


def test_what_was_there_when_the_probe_began_fails_with_it(in_virtual_time: Run) -> None:
    async def test(caller: ActorCaller, network: Network) -> None:
        peer = Peer(network)
        older = await begin(caller, network)
        await asyncio.sleep(INTERVAL - 1)
        younger = await begin(caller, network)
        before = peer.probes
        for reply in (older, younger):
            with pytest.raises(ServerClosed, match=UNANSWERED):
                await reply
        await settle()
        assert (before, peer.probes) == (0, 1)
        assert network.opened[0].closed

    in_virtual_time(test)


def test_a_reply_during_the_probe_spares_all(in_virtual_time: Run) -> None:
    async def test(caller: ActorCaller, network: Network) -> None:
        peer = Peer(network)
        older, other = await begin(caller, network, sent := message()), await begin(caller, network)
        await peer.asked()
        younger = await begin(caller, network)
        network.opened[0].reply(sent, 1)
        await asyncio.sleep(TIMEOUT + 0.5)
        assert (await older).result == 1
        assert not other.done()
        assert not younger.done()
        (client,) = caller._clients.values()
        assert client.client is network.opened[0]
        other.cancel()
        younger.cancel()

    in_virtual_time(test)


@pytest.mark.parametrize("joined", [False, True])
def test_what_was_asked_about_is_cancelled_during_the_probe(
    in_virtual_time: Run, joined: bool
) -> None:
    async def test(caller: ActorCaller, network: Network) -> None:
        peer = Peer(network)
        older = await begin(caller, network)
        await peer.asked()
        older.cancel()
        younger = await begin(caller, network) if joined else None
        await asyncio.sleep(TIMEOUT + 0.1)
        assert not caller._clients, "no call finds it any more"
        assert network.opened[0].closed == (not joined)
        if younger is not None:
            assert not younger.done()
            younger.cancel()
            await settle()
            assert network.opened[0].closed

    in_virtual_time(test)


def test_silence_is_not_inherited_from_a_request_that_was_cancelled(in_virtual_time: Run) -> None:
    async def test(caller: ActorCaller, network: Network) -> None:
        peer = Peer(network)
        older = await begin(caller, network)
        await asyncio.sleep(INTERVAL - 0.5)
        younger, began = await begin(caller, network), caller.clock()
        older.cancel()
        await peer.asked()
        assert caller.clock() - began >= INTERVAL
        assert UNANSWERED in str(await outcome(younger))

    in_virtual_time(test)


def test_an_answer_spares_all_for_an_interval(in_virtual_time: Run) -> None:
    async def test(caller: ActorCaller, network: Network) -> None:
        peer = Peer(network)
        peer.alive = True
        older = await begin(caller, network)
        await peer.asked()
        asked = caller.clock()
        younger = await begin(caller, network)
        peer.alive = False
        await peer.asked(2)
        assert caller.clock() - asked >= INTERVAL
        for reply in (older, younger):
            assert UNANSWERED in str(await outcome(reply))
        await settle()
        assert network.opened[0].closed

    in_virtual_time(test)


def test_a_retired_connection_is_probed_as_any(in_virtual_time: Run) -> None:
    async def test(caller: ActorCaller, network: Network) -> None:
        peer = Peer(network)
        reply = await begin(caller, network)
        caller.retire("age")
        await peer.asked()
        assert UNANSWERED in str(await outcome(reply))
        await settle()
        assert network.opened[0].closed
        assert not caller._all

    in_virtual_time(test)


def test_a_request_that_is_still_being_sent_fails_too(in_virtual_time: Run) -> None:
    async def test(caller: ActorCaller, network: Network) -> None:
        Peer(network)
        sent = await begin(caller, network)
        stuck = asyncio.Event()
        (client,) = caller._clients.values()
        client.add_ref()

        async def send() -> None:
            await stuck.wait()

        sending = asyncio.ensure_future(client.request(message(), send))
        assert UNANSWERED in str(await outcome(sent))
        await settle()
        assert network.opened[0].closed
        stuck.set()
        with pytest.raises(ServerClosed, match=UNANSWERED):
            await (await sending)

    in_virtual_time(test)
