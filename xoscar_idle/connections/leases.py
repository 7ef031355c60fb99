"""A transfer uses one connection for many requests: it holds a lease for its whole length."""

from __future__ import annotations

import functools
from collections.abc import Callable, Coroutine
from typing import Any

from .caller import leases

_Transfer = Callable[..., Coroutine[Any, Any, None]]


def leased(transfer: _Transfer) -> _Transfer:
    """``transfer``, with what it gets from ``get_client`` referenced until it returns.

    Meant for ``copy_to_buffers`` and ``copy_to_fileobjs`` of xoscar's context: between two blocks
    no request is in flight, and reading the next one from a file may take its time.
    """

    @functools.wraps(transfer)
    async def with_leases(*args: Any, **kwargs: Any) -> None:
        with leases():
            await transfer(*args, **kwargs)

    return with_leases
