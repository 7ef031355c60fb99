"""Who may ask what over HTTP: decided from what a request says of itself."""

from __future__ import annotations

import hmac
import ipaddress
from dataclasses import dataclass
from urllib.parse import parse_qsl, unquote, urlsplit

PAGE = "/"
"""The page is the same for everybody, and tells nothing by itself."""

READING = ("GET", "HEAD", "OPTIONS")

OF_TOKENS = ("token", "access_token", "api_key", "authorization")
"""How parameters of an address are called in which people put a token."""


@dataclass(frozen=True)
class Door:
    """Where the server listens."""

    host: str
    """As it is written in the setting; empty: it is a unix socket."""
    is_local: bool
    """Whether only this machine can reach it."""
    token: str | None
    """What whoever steers has to know; None: nobody may."""


@dataclass(frozen=True)
class Asked:
    """What a request says of itself; None: it does not have that header."""

    method: str
    path: str
    query: str = ""
    host: str | None = None
    origin: str | None = None
    authorization: str | None = None


@dataclass(frozen=True)
class Verdict:
    """Whether the request is answered: with ``status`` and ``text``, where it is not."""

    status: int = 0
    text: str = ""
    authorized: bool = False
    """Whether it has the token: it may also read what programs have printed."""

    @property
    def refused(self) -> bool:
        """Whether it is."""
        return bool(self.status)


def judge(asked: Asked, door: Door) -> Verdict:
    """Whether ``asked`` may come in at ``door``."""
    if _has_token(asked, door.token):
        return Verdict(
            400, "a token in an address is logged by whoever passes it on: send it as a header"
        )
    authorized = door.token is not None and _is_right(asked.authorization, door.token)
    if asked.authorization is not None and door.token is not None and not authorized:
        return Verdict(401, "that token is not the one of XOSCAR_HEALTH_TOKEN")
    if asked.origin is not None and not _is_same(asked.origin, asked.host):
        return Verdict(403, "requests from pages of other sites are refused")
    if not authorized and not _is_known(asked.host, door):
        # The name of another site may lead here, whose page would then read what is told here.
        return Verdict(403, "it is not known by that name: use its address, or send the token")
    if authorized or (asked.path == PAGE and asked.method in READING):
        return Verdict(authorized=authorized)
    if asked.method not in READING and door.token is None:
        return Verdict(403, "nobody may give instructions here: XOSCAR_HEALTH_TOKEN is not set")
    if asked.method not in READING or not door.is_local:
        return Verdict(401, "the token is needed: Authorization: Bearer TOKEN")
    return Verdict()


def _has_token(asked: Asked, token: str | None) -> bool:
    if any(name.lower() in OF_TOKENS for name, _ in parse_qsl(asked.query, keep_blank_values=True)):
        return True
    return token is not None and token in unquote(f"{asked.path}?{asked.query}")


def _is_right(authorization: str | None, token: str) -> bool:
    scheme, _, given = (authorization or "").partition(" ")
    ours, theirs = token.encode(), given.strip().encode(errors="replace")
    return scheme.lower() == "bearer" and hmac.compare_digest(ours, theirs)


def _is_same(origin: str, host: str | None) -> bool:
    """Whether a page of ``origin`` was fetched from where it now asks."""
    try:
        return host is not None and urlsplit(origin).netloc.lower() == host.strip().lower()
    except ValueError:
        return False


def _is_known(host: str | None, door: Door) -> bool:
    """Whether ``host`` is no name that somebody else may have given to this address."""
    if host is None or not door.host:  # no browser
        return True
    name = _name(host)
    if name in ("localhost", door.host.lower().strip("[]")):
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _name(host: str) -> str:
    """Without the port, in small letters."""
    host = host.strip().lower()
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.rpartition(":")[0] if host.count(":") == 1 else host
