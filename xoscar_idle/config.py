"""What an operator can set, read once and validated once.

Environment variables are the primary way in, since they are what reaches every process of a
deployment. A bad variable costs one warning and falls back to its default; a bad argument raises.
"""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from . import values
from .gate import IDLE_TIMEOUT, idle_closing_wanted, supervision_wanted

logger = logging.getLogger("xoscar_idle")

ROOM = 1.5
"""How much longer than a client a server should wait, so that it is not the one that closes."""

REGISTERED_MEMORY_TIMEOUT = 600.0
"""Seconds. UCX and NIXL register memory anew on a new connection, so theirs live longer."""

AS_IDLE_TIMEOUT = f"that of {IDLE_TIMEOUT}"
AS_REGISTERED_MEMORY = f"{REGISTERED_MEMORY_TIMEOUT:g}, or {IDLE_TIMEOUT} where that is longer or 0"


HIDDEN = "********"
"""What is shown of a secret."""


def _setting(
    default: Any, parse: Callable[[object], Any], told: str | None = None, secret: bool = False
) -> Any:
    """A field of :class:`Settings`; ``told`` is its default in words, where they say more."""
    told = str(default) if told is None else told
    metadata = {"parse": parse, "told": told, "secret": secret}
    return field(default=default, repr=not secret, metadata=metadata)


@dataclass(frozen=True)
class Settings:
    """The settings of this process. Times are in seconds; 0, or ``"off"``, disables what a
    setting governs. Numbers may be given as text, as in the variables.

    The variable of a setting is ``XOSCAR_`` and its name in capitals.
    """

    idle_timeout: float = _setting(30.0, values.duration)
    """Close a connection after this long without a request in flight."""

    idle_timeout_socket: float | None = _setting(None, values.duration_or_default, AS_IDLE_TIMEOUT)
    """The same for TCP alone. None: as ``idle_timeout``."""

    idle_timeout_unixsocket: float | None = _setting(
        None, values.duration_or_default, AS_IDLE_TIMEOUT
    )
    """The same for unix sockets."""

    idle_timeout_dummy: float | None = _setting(None, values.duration_or_default, AS_IDLE_TIMEOUT)
    """The same for connections within a process."""

    idle_timeout_ucx: float | None = _setting(
        None, values.duration_or_default, AS_REGISTERED_MEMORY
    )
    """The same for UCX. None: 600, or ``idle_timeout`` where that is 0 or longer."""

    idle_timeout_nixl: float | None = _setting(
        None, values.duration_or_default, AS_REGISTERED_MEMORY
    )
    """The same for NIXL. None: as for UCX."""

    connect_timeout: float = _setting(8.0, values.duration)
    """Give a connect up after this long."""

    max_connections: int = _setting(0, values.connections)
    """Soft cap for the process: the least recently used idle connection makes room. ``"auto"`` is
    half of the soft limit of descriptors, read when the settings are made. 0: none."""

    max_connection_age: float = _setting(0.0, values.duration)
    """Replace a connection after this long, or up to a tenth earlier. 0: never."""

    keepalive_interval: float | None = _setting(
        None, values.keepalive, f"a third of {IDLE_TIMEOUT}, at most 30"
    )
    """Let TCP remind the network of a quiet connection this often, on both sides; rounded to
    whole seconds, from 1 to 32767. None: a third of ``idle_timeout``, at most 30. 0: as xoscar
    does."""

    server_idle_timeout: float = _setting(0.0, values.duration)
    """Close an accepted connection after this long without a request in process. To be well above
    the ``idle_timeout`` of all clients."""

    call_timeout: float = _setting(0.0, values.duration)
    """Default deadline of a call of an actor's method."""

    call_timeout_except: tuple[str, ...] = _setting((), values.patterns, "no method")
    """The methods to which ``call_timeout`` does not apply: names, or shell patterns of them
    (``fnmatch``), in a text with commas or in a list."""

    probe_interval: float = _setting(0.0, values.duration)
    """While requests are in flight and nothing has come for this long, ask for a sign of life."""

    probe_timeout: float = _setting(10.0, values.positive_duration)
    """How long the answer to that may take before the requests fail."""

    history: int = _setting(1000, values.remembered)
    """How many of the things that happened last to connections the process remembers, for
    ``xoscar-idle events``. 0: none."""

    call_metrics: str = _setting("total", values.one_of("off", "total", "method"))
    """Count how long calls wait for their replies: all together, or by method, of which the first
    fifty of a process are told apart. ``"off"``: not at all."""

    supervise: str = _setting("off", values.one_of("off", "observe", "act"))
    """``"observe"``: follow what the sub-pools of a main pool do, and tell it. ``"act"``: also
    restart what hangs, and what dies within a budget. Set alone in the environment, either
    activates without idle closing."""

    supervise_dir: str | None = _setting(None, values.directory, "a private directory of the user")
    """Where crash records and captured logs are. None: ``xoscar-idle`` in the user's own
    directory for state."""

    capture_stderr: bool = _setting(False, values.switch, "0")
    """Let the stderr of sub-pools go to a file, too, whose end is told when they crash."""

    hang_timeout: float = _setting(0.0, values.duration)
    """A sub-pool that is busy for this long, or has a request in process for this long while
    nothing else ends either, is unhealthy. With ``supervise="act"`` one that is unhealthy for this
    long, for whatever reason, is restarted. 0: never."""

    start_timeout: float = _setting(120.0, values.duration)
    """With ``supervise="act"``: how long the process of a sub-pool may take to start."""

    restart_limit: str = _setting("3/60", values.limit)
    """With ``supervise="act"``: more failures of a sub-pool than so many in so many seconds, or
    five without a stable run between them, and it is degraded. ``"off"``: it never is."""

    restart_cooldown: float = _setting(60.0, values.duration)
    """How long a degraded sub-pool is left before it is tried once; twice as long after each try
    that fails, up to 600. 0: until somebody asks for it."""

    recovery_timeout: float = _setting(0.0, values.duration)
    """How long a call waits for a sub-pool that is being recovered, if it has not been executed or
    ``retry`` allows for it. 0: it fails at once."""

    retry: tuple[str, ...] = _setting((values.UNSENT,), values.retried, values.UNSENT)
    """Which calls wait: ``"unsent"``, which have never been executed, and always do; and methods
    that may be executed twice: names, or shell patterns of them, with commas or in a list."""

    fault_errors: tuple[str, ...] = _setting((), values.error_patterns, "none")
    """Errors of actors' methods after which their sub-pool is unhealthy: shell patterns
    (``fnmatch``) of the type's name, the text, or ``type: text``, with commas or in a list."""

    health_address: str | None = _setting(None, values.server_address, "none")
    """Where a process with main pools answers over HTTP how they are, and takes instructions:
    ``host:port``, or the path of a unix socket. It needs the extra ``http``."""

    health_token: str | None = _setting(None, values.token, "none", secret=True)
    """What whoever gives instructions over HTTP has to know, and whoever asks from elsewhere."""

    exit_on_degraded: bool = _setting(False, values.switch, "0")
    """With ``supervise="act"``: end the process of a main pool when one of its sub-pools is
    degraded, so that whoever started it takes over."""

    watchdog: bool = _setting(False, values.switch, "0")
    """Let the event loop of a main pool tell systemd that it is there: READY, and WATCHDOG as
    often as the unit asks for it."""

    def __post_init__(self) -> None:
        for each in dataclasses.fields(self):
            object.__setattr__(self, each.name, _parsed(each, getattr(self, each.name)))

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ) -> Settings:
        """Read the variables; one that is bad is named in a warning, and its default holds."""
        return cls(**cls.given_in(environ))

    @classmethod
    def given_in(cls, environ: Mapping[str, str]) -> dict[str, Any]:
        """The settings that the variables give; one that is bad is named in a warning."""
        given: dict[str, Any] = {}
        if supervision_wanted(environ) and not idle_closing_wanted(environ):
            given["idle_timeout"] = 0.0  # it is not what was asked for
        for each in dataclasses.fields(cls):
            raw = environ.get(variable(each.name), "").strip()
            # Of activation by variable, "off" is all that it says: install() has the default.
            if not raw or (variable(each.name) == IDLE_TIMEOUT and values.is_off(raw)):
                continue
            try:
                given[each.name] = each.metadata["parse"](raw)
            except ValueError as error:
                logger.warning(
                    "%s=%s is ignored: it %s; the default, %s, is used",
                    variable(each.name),
                    _shown(each, raw),
                    error,
                    each.metadata["told"],
                )
        return given

    def changed(self, **changes: object) -> Settings:
        """These settings with ``changes``; raises ValueError for a bad value or unknown name."""
        known = [each.name for each in dataclasses.fields(self)]
        for name in changes:
            if name not in known:
                raise ValueError(
                    f"unknown setting {values.shown(name)}; there are {', '.join(known)}"
                )
        return dataclasses.replace(self, **changes)  # type: ignore[arg-type]

    def idle_timeout_of(self, transport: str) -> float:
        """The idle timeout of a transport: ``socket``, ``unixsocket``, ``dummy``, ``ucx``..."""
        own: float | None = getattr(self, f"idle_timeout_{transport}", None)
        if own is not None:
            return own
        if transport in ("ucx", "nixl") and self.idle_timeout:
            return max(self.idle_timeout, REGISTERED_MEMORY_TIMEOUT)
        return self.idle_timeout

    def without_secrets(self) -> Settings:
        """These, for whoever looks at them."""
        hidden: dict[str, Any] = {
            each.name: HIDDEN
            for each in dataclasses.fields(self)
            if each.metadata["secret"] and getattr(self, each.name) is not None
        }
        return dataclasses.replace(self, **hidden)

    @property
    def keepalive(self) -> float:
        """The keepalive interval in force; 0: none of ours."""
        if self.keepalive_interval is not None:
            return self.keepalive_interval
        return min(30.0, self.idle_timeout / 3) if self.idle_timeout else 30.0


def variable(name: str) -> str:
    """The environment variable of a setting."""
    return f"XOSCAR_{name.upper()}"


def unset_everywhere(environ: Mapping[str, str]) -> dict[str, str]:
    """``environ`` without any variable of xoscar or of ours."""
    return {name: value for name, value in environ.items() if not name.startswith("XOSCAR_")}


def as_variable(name: str, value: object) -> str | None:
    """The variable of the setting ``name`` for child processes, so that it means ``value`` there.

    Returns
    -------
    str or None
        None: the variable is to be removed, since ``value`` is what holds without it.

    Raises
    ------
    ValueError
        There is no such setting, or ``value`` is bad.
    """
    known = {each.name: each for each in dataclasses.fields(Settings)}
    if name not in known:
        raise ValueError(f"unknown setting {values.shown(name)}; there are {', '.join(known)}")
    parsed = _parsed(known[name], value)
    if values.is_auto(value) and isinstance(parsed, int):
        return "auto"  # half of what the child may have
    if parsed is None or parsed == ():
        return None
    if isinstance(parsed, tuple):
        return ",".join(parsed)
    if isinstance(parsed, str):
        return parsed
    if isinstance(parsed, bool):
        return f"{parsed:d}"
    return f"{parsed!r}".removesuffix(".0")


def _parsed(setting: dataclasses.Field[Any], value: object) -> Any:
    try:
        return setting.metadata["parse"](value)
    except ValueError as error:
        raise ValueError(f"{setting.name} {error}, got {_shown(setting, value)}") from None


def _shown(setting: dataclasses.Field[Any], value: object) -> str:
    return HIDDEN if setting.metadata["secret"] else values.shown(value)


_current = Settings()
_origins: dict[str, str] = {}


def current() -> Settings:
    """The settings in force."""
    return _current


def _advice(settings: Settings) -> list[str]:
    """What there is to say of settings that are each good, but not together."""
    found = []
    client_timeout = settings.idle_timeout_of("socket")
    if 0 < settings.server_idle_timeout < ROOM * client_timeout:
        found.append(
            f"server_idle_timeout={settings.server_idle_timeout:g} should be at least {ROOM:g} "
            f"times the idle timeout of clients, here {client_timeout:g}: a server that closes "
            "first makes calls fail"
        )
    if settings.exit_on_degraded and settings.supervise != "act":
        found.append(
            "exit_on_degraded does nothing without supervise=act: no sub-pool is ever degraded"
        )
    return found


def use(settings: Settings, origin: str = "code", names: Iterable[str] = ()) -> None:
    """Put ``settings`` in force for this process; those in ``names`` are from ``origin``."""
    global _current
    before = _advice(_current)
    for advice in _advice(settings):
        if advice not in before:
            logger.warning("%s", advice)
    _current = settings
    _origins.update(dict.fromkeys(names, origin))


def reset() -> None:
    """Forget what was set."""
    _origins.clear()
    use(Settings())


def origins() -> dict[str, str]:
    """Where each setting in force came from: ``operator``, ``code``, ``environment`` or
    ``default``."""
    return {each.name: _origins.get(each.name, "default") for each in dataclasses.fields(Settings)}
