"""Address mapping: which address a call really goes to, and opening a connection to it.

The functions take xoscar's own ``Router`` as their first argument. Those named like one of its
methods replace it there; they open a new connection each time and keep nothing, so that
:class:`~xoscar_idle.connection.caller.ActorCaller` alone holds connections.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Any

from xoscar.backends.communication import get_client_type
from xoscar.backends.communication.socket import SocketClient

from ..values import duration, shown
from . import transports
from .transports import Client


def resolve(router: Any, external_address: str, proxy_addresses: list[str] | None = None) -> str:
    """The route of a call: the internal address, else the proxy's, else the address itself."""
    if not (
        proxy_addresses
        or router._proxy_config
        or external_address in router._local_mapping
        or external_address in router._mapping
    ):
        return external_address  # as most are; xoscar finds that out by an exception
    route: str = router._resolve_address(external_address, proxy_addresses)
    return route


def resolve_via_type(router: Any, external_address: str, client_type: type[Client]) -> str:
    """The route to ``external_address`` over the transport of ``client_type``.

    Raises
    ------
    ValueError
        The address is not served over that transport.
    """
    routes: dict[type[Client], str] = router._get_client_type_to_addresses(external_address)
    if client_type not in routes:
        raise ValueError(f"Client type({client_type}) is not supported for {external_address}")
    return routes[client_type]


def known_as(router: Any, route: str) -> str:
    """The address that is mapped to ``route``, if there is one; else the route itself."""
    for mapping in (router._mapping, router._local_mapping):
        for external, internal in list(mapping.items()):
            if internal == route:
                return str(external)
    return route


def override(router: Any, setting: str) -> float | None:
    """A setting in the ``extra_conf`` of the pool that made the router; it wins over ours.

    Raises
    ------
    ValueError
        It is no number of seconds.
    """
    value = router._comm_config.get(setting)
    if value is None:
        return None
    try:
        return duration(value)
    except ValueError as error:
        raise ValueError(f"extra_conf[{setting!r}] {error}, got {shown(value)}") from None


async def connect(router: Any, route: str, timeout: float | None = None, **kw: Any) -> Client:
    """Open a connection to ``route`` with the router's ``comm_config``.

    Raises
    ------
    ConnectionError
        It took longer than ``timeout`` seconds. None: the transport's own limit holds.
    """
    client_type = get_client_type(route)
    with loose(route):
        if timeout is None or issubclass(client_type, SocketClient):
            if timeout is not None:  # it has a limit of its own, and takes another
                kw.setdefault("config", {"connect_timeout": timeout or None})
            client: Client = await router._create_client(client_type, route, **kw)
            return client
        try:
            client = await asyncio.wait_for(
                router._create_client(client_type, route, **kw), timeout or None
            )
        except asyncio.TimeoutError:
            raise ConnectionError("connect timeout") from None
        return client


_loose: list[str] = []


@contextlib.contextmanager
def loose(route: str) -> Iterator[None]:
    """In this block there may be a connection to ``route`` that no ActorCaller holds."""
    _loose.append(route)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):  # this is a forked child
            _loose.remove(route)


def disown_too(route: str) -> None:
    """In a forked child: there may be a connection of the parent to ``route``."""
    _loose.append(route)


def disown_loose() -> None:
    """In a forked child: the connections in all :func:`loose` blocks are the parent's."""
    routes = set(_loose)
    _loose.clear()
    if routes:
        transports.disown_to(routes)


async def get_client(
    self: Any,
    external_address: str,
    from_who: Any = None,
    cached: bool = True,
    proxy_addresses: list[str] | None = None,
    **kw: Any,
) -> Client:
    """Open a connection to where ``external_address`` is mapped; the caller is to close it."""
    return await connect(self, resolve(self, external_address, proxy_addresses), **kw)


async def get_client_via_type(
    self: Any,
    external_address: str,
    client_type: type[Client],
    from_who: Any = None,
    cached: bool = True,
    **kw: Any,
) -> Client:
    """Open a connection over the transport of ``client_type``; the caller is to close it."""
    return await connect(self, resolve_via_type(self, external_address, client_type), **kw)
