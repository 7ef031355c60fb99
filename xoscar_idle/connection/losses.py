"""Who can tell more of a pool that does not answer than the connection to it does.

Nobody does unless another part says so with :func:`tell`.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from .client import CallerClient

Spawn = Callable[[Coroutine[Any, Any, None]], object]
"""Lets a coroutine run in the background, as long as the connection's owner is there."""


class Witness(Protocol):
    """Knows of pools."""

    def met(self, client: CallerClient, spawn: Spawn) -> None:
        """A pool has answered on a new connection."""

    async def lost(self, client: CallerClient) -> BaseException | None:
        """What calls on a connection are to raise that has been lost; None: nothing is known."""

    async def refused(self, address: str) -> BaseException | None:
        """What calls are to raise whose connect has been refused; None: nothing is known."""

    async def recovered(
        self, address: str, timeout: float, held: Callable[[], int], via: str
    ) -> str | None:
        """Wait until a pool that is down has been recovered.

        Parameters
        ----------
        address
            Of the pool.
        timeout
            Seconds for which to wait.
        held
            How many calls wait here for it at present; told to its main pool.
        via
            The address that was called: its own, or that of a pool which passed the call on.

        Returns
        -------
        Its address, or that of its successor; None: nobody recovers it, as far as is known, or not
        within the timeout.
        """

    async def excused(self, client: CallerClient) -> str:
        """Why a pool that answers no probe is not given up; empty: it is."""


_witness: Witness | None = None


def tell(witness: Witness | None) -> None:
    """Ask ``witness`` from now on; None: nobody."""
    global _witness
    _witness = witness


def met(client: CallerClient, spawn: Spawn) -> None:
    """A pool has answered on a new connection."""
    if _witness is not None:
        _witness.met(client, spawn)


async def lost(client: CallerClient) -> BaseException | None:
    """See :meth:`Witness.lost`."""
    return None if _witness is None else await _witness.lost(client)


async def refused(address: str) -> BaseException | None:
    """See :meth:`Witness.refused`."""
    return None if _witness is None else await _witness.refused(address)


async def excused(client: CallerClient) -> str:
    """See :meth:`Witness.excused`."""
    return "" if _witness is None else await _witness.excused(client)


async def recovered(address: str, timeout: float, held: Callable[[], int], via: str) -> str | None:
    """See :meth:`Witness.recovered`."""
    return None if _witness is None else await _witness.recovered(address, timeout, held, via)
