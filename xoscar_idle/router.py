"""Address mapping: which address a call really goes to, and opening a connection to it.

The functions take xoscar's own ``Router`` as their first argument. Those named like one of its
methods replace it there; they open a new connection each time and keep nothing, so that
:class:`~xoscar_idle.caller.ActorCaller` alone holds connections.
"""

from __future__ import annotations

import asyncio
from typing import Any

from xoscar.backends.communication import get_client_type
from xoscar.backends.communication.socket import SocketClient

from .config import seconds
from .wire import Client


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
        return seconds(value)
    except ValueError as error:
        raise ValueError(f"extra_conf[{setting!r}] {error}, got {value!r}") from None


async def connect(router: Any, route: str, timeout: float | None = None, **kw: Any) -> Client:
    """Open a connection to ``route`` with the router's ``comm_config``.

    Raises
    ------
    ConnectionError
        It took longer than ``timeout`` seconds. None: the transport's own limit holds.
    """
    client_type = get_client_type(route)
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
