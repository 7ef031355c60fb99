"""What an address has to look like for a connection to be opened to it."""

from __future__ import annotations

from urllib.parse import urlparse

from xoscar.backends.communication import get_client_type

from ..values import shown
from .transports import transport

MAX_PORT = 65535


def check(address: object) -> str:
    """``address``, if it is one.

    Raises
    ------
    ValueError
        It is not; says what is wrong, and names it.
    """
    if not isinstance(address, str):
        raise ValueError(f"address must be a string like 'host:port', got {shown(address)}")
    if problem := _problem(address):
        raise ValueError(f"address must {problem}, got {shown(address)}")
    return address


def _problem(address: str) -> str | None:
    try:
        if address.startswith("://"):
            raise ValueError
        get_client_type(address)
    except (ValueError, TypeError):  # xoscar's own error fails in telling of itself
        return "be host:port, or begin with the name of a transport of xoscar"
    rest = address.partition("://")[2] or address
    kind = transport(address)
    if kind == "dummy":
        return None
    if kind == "unixsocket":
        number = urlparse(address).path.lstrip("/")
        return None if _decimal(number) else "be unixsocket:///number"
    host, colon, port = rest.rpartition(":")
    if not colon:
        return "end with :port"
    if not (_decimal(port) and len(port) <= len(str(MAX_PORT)) and 0 < int(port) <= MAX_PORT):
        return f"end with a port from 1 to {MAX_PORT}"
    try:
        valid = bool(host.encode("idna")) and "\0" not in host
    except UnicodeError:
        valid = False
    return None if valid else "begin with the name or the number of a host"


def _decimal(text: str) -> bool:
    return text.isascii() and text.isdecimal()
