"""Asking a process over HTTP: at a URL, or at the path of a unix socket."""

from __future__ import annotations

import http.client
import json
import os
import socket
from collections.abc import Mapping
from urllib.parse import urlsplit

from ..config import variable
from ..logs import one_line
from .snapshot import Unobservable

TIMEOUT = 5.0
"""Seconds that connecting, and an answer, may take."""


def is_address(text: str) -> bool:
    """Whether it is one that can be asked over HTTP."""
    return text.startswith(("http://", "https://", "/"))


def ask(address: str, path: str, headers: Mapping[str, str]) -> bytes:
    """What is answered, for the token of the environment, if there is one.

    Raises
    ------
    Unobservable
        Nobody answers there, or whoever does refuses it.
    """
    sent = {"accept": "application/json", **headers}
    if token := os.environ.get(variable("health_token"), "").strip():
        sent["authorization"] = f"Bearer {token}"
    try:
        connection = _connection(address)
        try:
            connection.request("GET", f"{_prefix(address)}{path}", headers=sent)
            answer = connection.getresponse()
            status, told = answer.status, answer.read()
        finally:
            connection.close()
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise Unobservable(f"nobody answers at {address}: {one_line(error)}") from None
    if status in (401, 403):
        raise Unobservable(f"{address} refuses it: {_detail(told)} (XOSCAR_HEALTH_TOKEN)")
    return told


def _prefix(address: str) -> str:
    """What a proxy wants to have before the path."""
    return "" if address.startswith("/") else urlsplit(address).path.rstrip("/")


def _detail(told: bytes) -> str:
    try:
        return str(json.loads(told)["detail"])
    except (KeyError, TypeError, ValueError):
        return "it does not say why"


def _connection(address: str) -> http.client.HTTPConnection:
    if address.startswith("/"):
        return _OverUnixSocket(address)
    parts = urlsplit(address)
    if parts.scheme == "https":
        return http.client.HTTPSConnection(parts.netloc, timeout=TIMEOUT)
    return http.client.HTTPConnection(parts.netloc, timeout=TIMEOUT)


class _OverUnixSocket(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=TIMEOUT)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(TIMEOUT)
        self.sock.connect(self._path)
