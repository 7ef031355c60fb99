"""What an operator can set, read once and validated once.

Environment variables are the primary way in, since they are what reaches every process of a
deployment. A bad variable costs one warning and falls back to its default; a bad argument raises.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

logger = logging.getLogger("xoscar_idle")

IDLE_TIMEOUT = "XOSCAR_IDLE_TIMEOUT"

ROOM = 1.5
"""How much longer than a client a server should wait, so that it is not the one that closes."""

REGISTERED_MEMORY_TIMEOUT = 600.0
"""Seconds. UCX and NIXL register memory anew on a new connection, so theirs live longer."""


def seconds(value: object) -> float:
    """A finite number of seconds, zero or more; raises ValueError that says what is wrong."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise ValueError("must be a number of seconds")
    try:
        number = float(value)
    except ValueError:
        raise ValueError("must be a number of seconds") from None
    if not math.isfinite(number) or number < 0:
        raise ValueError("must be a finite number of seconds, zero or more")
    return number


def _seconds_or_default(value: object) -> float | None:
    return None if value is None else seconds(value)


def _positive_seconds(value: object) -> float:
    number = seconds(value)
    if not number:
        raise ValueError("must be above zero")
    return number


def _connections(value: object) -> int:
    """A number of connections; ``auto`` is half of the descriptors that this process may have."""
    if value == "auto":
        if sys.platform == "win32":
            return 0
        import resource

        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        return 0 if limit == resource.RLIM_INFINITY else max(1, limit // 2)
    if isinstance(value, str) and value.isdecimal():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError("must be a whole number of connections, zero or more, or 'auto'")
    return value


def _setting(default: Any, parse: Callable[[object], Any]) -> Any:
    return field(default=default, metadata={"parse": parse})


@dataclass(frozen=True)
class Settings:
    """The settings of this process. Times are in seconds; 0 disables what a setting governs.

    The variable of a setting is ``XOSCAR_`` and its name in capitals.
    """

    idle_timeout: float = _setting(30.0, seconds)
    """Close a connection after this long without a request in flight."""

    idle_timeout_socket: float | None = _setting(None, _seconds_or_default)
    """The same for TCP alone. None: as ``idle_timeout``."""

    idle_timeout_unixsocket: float | None = _setting(None, _seconds_or_default)
    """The same for unix sockets."""

    idle_timeout_dummy: float | None = _setting(None, _seconds_or_default)
    """The same for connections within a process."""

    idle_timeout_ucx: float | None = _setting(None, _seconds_or_default)
    """The same for UCX. None: 600, or ``idle_timeout`` where that is 0 or longer."""

    idle_timeout_nixl: float | None = _setting(None, _seconds_or_default)
    """The same for NIXL. None: as for UCX."""

    connect_timeout: float = _setting(8.0, seconds)
    """Give a connect up after this long."""

    max_connections: int = _setting(0, _connections)
    """Soft cap for the process: the least recently used idle connection makes room. ``"auto"`` is
    half of the soft limit of descriptors, read when the settings are made. 0: none."""

    max_connection_age: float = _setting(0.0, seconds)
    """Replace a connection after this long, or up to a tenth earlier. 0: never."""

    keepalive_interval: float | None = _setting(None, _seconds_or_default)
    """Let TCP remind the network of a quiet connection this often, on both sides; whole seconds,
    at least 1. None: a third of ``idle_timeout``, at most 30. 0: as xoscar does."""

    server_idle_timeout: float = _setting(0.0, seconds)
    """Close an accepted connection after this long without a request in process. To be well above
    the ``idle_timeout`` of all clients."""

    call_timeout: float = _setting(0.0, seconds)
    """Default deadline of a call of an actor's method."""

    probe_interval: float = _setting(0.0, seconds)
    """While requests are in flight and nothing has come for this long, ask for a sign of life."""

    probe_timeout: float = _setting(10.0, _positive_seconds)
    """How long the answer to that may take before the requests fail."""

    def __post_init__(self) -> None:
        for each in dataclasses.fields(self):
            value = getattr(self, each.name)
            try:
                object.__setattr__(self, each.name, each.metadata["parse"](value))
            except ValueError as error:
                raise ValueError(f"{each.name} {error}, got {value!r}") from None
        if 0 < self.server_idle_timeout < ROOM * self.idle_timeout_of("socket"):
            logger.warning(
                "server_idle_timeout=%g should be at least %g times the idle timeout of clients, "
                "here %g: a server that closes first makes calls fail",
                self.server_idle_timeout,
                ROOM,
                self.idle_timeout_of("socket"),
            )

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ) -> Settings:
        """Read the variables; one that is bad is named in a warning, and its default holds."""
        return cls(**cls.given_in(environ))

    @classmethod
    def given_in(cls, environ: Mapping[str, str]) -> dict[str, Any]:
        """The settings that the variables give; one that is bad is named in a warning."""
        values: dict[str, Any] = {}
        for each in dataclasses.fields(cls):
            raw = environ.get(variable(each.name), "").strip()
            if not raw or raw.lower() == "off":
                continue
            try:
                values[each.name] = each.metadata["parse"](raw)
            except ValueError as error:
                logger.warning(
                    "%s=%r is ignored: it %s; the default, %s, is used",
                    variable(each.name),
                    raw,
                    error,
                    "that of XOSCAR_IDLE_TIMEOUT" if each.default is None else each.default,
                )
        return values

    def changed(self, **changes: object) -> Settings:
        """These settings with ``changes``; raises ValueError for a bad value or unknown name."""
        known = [each.name for each in dataclasses.fields(self)]
        for name in changes:
            if name not in known:
                raise ValueError(f"unknown setting {name!r}; there are {', '.join(known)}")
        return dataclasses.replace(self, **changes)  # type: ignore[arg-type]

    def idle_timeout_of(self, transport: str) -> float:
        """The idle timeout of a transport: ``socket``, ``unixsocket``, ``dummy``, ``ucx``..."""
        own: float | None = getattr(self, f"idle_timeout_{transport}", None)
        if own is not None:
            return own
        if transport in ("ucx", "nixl") and self.idle_timeout:
            return max(self.idle_timeout, REGISTERED_MEMORY_TIMEOUT)
        return self.idle_timeout

    @property
    def keepalive(self) -> float:
        """The keepalive interval in force; 0: none of ours."""
        if self.keepalive_interval is not None:
            return self.keepalive_interval
        return min(30.0, self.idle_timeout / 3) if self.idle_timeout else 30.0


def variable(name: str) -> str:
    """The environment variable of a setting."""
    return f"XOSCAR_{name.upper()}"


def wanted(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether the environment asks for activation: the variable is set, and not to ``off``."""
    return environ.get(IDLE_TIMEOUT, "").strip().lower() not in ("", "off")


_current = Settings()
_origins: dict[str, str] = {}


def current() -> Settings:
    """The settings in force."""
    return _current


def use(settings: Settings, origin: str = "code", names: Iterable[str] = ()) -> None:
    """Put ``settings`` in force for this process; those in ``names`` are from ``origin``."""
    global _current
    _current = settings
    _origins.update(dict.fromkeys(names, origin))


def reset() -> None:
    """Forget what was set."""
    _origins.clear()
    use(Settings())


def origins() -> dict[str, str]:
    """Where each setting in force came from: ``code``, ``environment`` or ``default``."""
    return {each.name: _origins.get(each.name, "default") for each in dataclasses.fields(Settings)}
