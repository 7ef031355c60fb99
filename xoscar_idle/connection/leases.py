"""Leases: what a block gets from ``get_client`` is referenced until the block ends."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Coroutine, Iterator
from contextvars import ContextVar
from typing import Any

from .client import CallerClient

_Transfer = Callable[..., Coroutine[Any, Any, None]]

_leases: ContextVar[contextlib.ExitStack | None] = ContextVar("xoscar_idle_leases", default=None)


@contextlib.contextmanager
def leases() -> Iterator[None]:
    """Keep each connection that ``get_client`` hands out referenced until the block ends."""
    with contextlib.ExitStack() as stack:
        token = _leases.set(stack)
        try:
            yield
        finally:
            with contextlib.suppress(ValueError):  # garbage of a closed loop, in no context of it
                _leases.reset(token)


def let(client: CallerClient) -> None:
    """Give a reference back when the block of :func:`leases` ends; without one at once."""
    stack = _leases.get()
    if stack is None:
        client.de_ref()
    else:
        stack.callback(client.de_ref)


def leased(transfer: _Transfer) -> _Transfer:
    """``transfer`` within :func:`leases`.

    Meant for ``copy_to_buffers`` and ``copy_to_fileobjs`` of xoscar's context: between two blocks
    no request is in flight, and reading the next one from a file may take its time.
    """

    @functools.wraps(transfer)
    async def with_leases(*args: Any, **kwargs: Any) -> None:
        with leases():
            await transfer(*args, **kwargs)

    return with_leases
