"""Asking a pool for a sign of life, on a connection of its own."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Iterable
from functools import partial
from typing import Any

from xoscar.backends.router import Router

from .. import config, values
from ..periodic import spawn
from . import addresses, counters, history, losses, routing, transports
from .client import CallerClient, Reply, State
from .deadlines import clear as clear_deadline
from .exchange import Exchange

logger = logging.getLogger("xoscar_idle")


async def ping(address: str, timeout: float = 5.0) -> float:
    """Ask the pool at ``address`` for a sign of life; also where xoscar is not extended.

    Any answer of its event loop is one; a pool whose loop is blocked, by a long synchronous
    method say, gives none. Behind a proxy it is the proxy that answers.

    Parameters
    ----------
    address
        Of a pool: ``host:port``, or with the name of another transport in front.
    timeout
        Seconds, above 0.

    Returns
    -------
    float
        The seconds that connecting and the answer took.

    Raises
    ------
    ValueError
        ``address`` or ``timeout`` is none; nothing has been opened.
    TimeoutError
        There was no answer within ``timeout`` seconds.
    ConnectionError
        Nobody listens there, the connection was closed, or what answers is no pool.
    """
    limit = values.positive_seconds("timeout", timeout)
    if not isinstance(address, str):
        addresses.check(address)
    router = Router.get_instance_or_empty()
    route = addresses.check(routing.resolve(router, address))
    loop = asyncio.get_running_loop()
    started = loop.time()
    # In a task of its own, where the caller's deadline can be cleared.
    asking = spawn(loop, _ask(router, route))
    try:
        await asyncio.wait_for(asking, limit)
    except asyncio.TimeoutError:
        raise TimeoutError(f"{address} gave no sign of life in {limit:g} s") from None
    return loop.time() - started


async def _ask(router: Any, route: str) -> None:
    clear_deadline()
    exchange = Exchange(router, route)
    try:
        await exchange.open()
    except Exception as error:
        if isinstance(error, (ConnectionError, TimeoutError)) and error.errno is not None:
            raise  # of the kernel, and names the address
        raise ConnectionError(f"cannot connect to {route}: {error}") from error
    try:
        await exchange.sign_of_life()
    except ConnectionError as error:
        raise ConnectionError(f"no answer of {route}: {error}") from None
    except Exception as error:
        raise ConnectionError(f"{route} does not speak as a pool does: {error}") from error
    finally:
        exchange.close()


class Prober:
    """Watches connections on which requests wait, and asks the peers of those that are silent.

    Silence counts from when nothing arrived any more, or from when the oldest request was seen to
    wait, whichever is later. Only requests that wait when a probe begins are at its mercy.
    """

    def __init__(self) -> None:
        # For connections with requests in flight: how much had arrived, the oldest request, and
        # since when both are so.
        self._silent: dict[CallerClient, tuple[int, Reply, float]] = {}
        self._probes: dict[CallerClient, asyncio.Task[None]] = {}

    def tasks(self) -> list[asyncio.Task[None]]:
        """The probes under way."""
        return list(self._probes.values())

    def next_expiry(self, now: float) -> float:
        """When to look again, while there are connections."""
        interval = config.current().probe_interval
        return now + interval / 4 if interval else math.inf

    def sweep(self, now: float, clients: Iterable[CallerClient]) -> None:
        """Probe those that have been silent for the interval."""
        interval = config.current().probe_interval
        before, self._silent = self._silent, {}
        if not interval:
            return
        for client in clients:
            asked = client.waiting()
            if not asked or not transports.holds_descriptor(client.route):
                continue
            arrivals, oldest, since = before.get(client, (-1, None, now))
            if arrivals != client.arrivals or oldest is not asked[0]:
                since = now
            self._silent[client] = client.arrivals, asked[0], since
            if now - since >= interval and client not in self._probes:
                task = spawn(client.loop, self._probe(client, asked))
                self._probes[client] = task
                task.add_done_callback(partial(self._probed, client))

    def _probed(self, client: CallerClient, task: asyncio.Task[None]) -> None:
        del self._probes[client]

    async def _probe(self, client: CallerClient, asked: list[Reply]) -> None:
        arrivals, timeout = client.arrivals, config.current().probe_timeout
        counters.count("probes")
        try:
            await asyncio.wait_for(_ask(client.router, client.route), timeout)
        except asyncio.TimeoutError:
            if excuse := await losses.excused(client):
                logger.debug("no answer to a probe of %s: %s", client.address, excuse)
                history.note("probe", client.address, f"no answer: {excuse}")
                self._silent.pop(client, None)
                return
            why = f"it did not answer a probe within {timeout:g} s"
        except Exception as error:
            why = f"a probe failed: {error}"
        else:
            self._silent.pop(client, None)
            return
        counters.count("probes_failed")
        history.note("probe", client.address, why)
        if client.arrivals == arrivals and client.state in (State.OPEN, State.RETIRED):
            logger.warning("%s shows no sign of life: %s", client.address, why)
            client.give_up(why, asked)
