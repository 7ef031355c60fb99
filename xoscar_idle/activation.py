"""Extending xoscar in this process, part by part, and leaving it as it was."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from . import changes as outside
from . import config, gate, logs, patching, side_channel, side_thread
from .config import Settings
from .locks import process_lock
from .patching import Place, UnsupportedXoscar, is_active

logger = logging.getLogger("xoscar_idle")

PATIENCE = 0.5
"""Seconds for which a change from outside waits for one from within that is under way."""


class Part(Protocol):
    """A capability: a package's ``lifecycle`` module. More is not known of it here."""

    @property
    def NAME(self) -> str:
        """What it is called in messages."""

    @property
    def PLACES(self) -> tuple[Place, ...]:
        """What it replaces of xoscar; no attribute is replaced by two parts."""

    @property
    def RELIED_ON(self) -> Mapping[str, tuple[str, ...] | None]:
        """What it uses besides."""

    def start(self) -> None:
        """Its places have been taken."""

    def apply(self, before: Settings) -> None:
        """The settings in force have changed."""

    def stop(self) -> None:
        """All places are xoscar's again."""

    def after_fork(self) -> None:
        """This is a forked child."""


_lock = process_lock()
_known: tuple[Part, ...] = ()
"""Those that have been imported, each above those before it; the first is what it is all about."""
_started: list[Part] = []
_environment_before: dict[str, str | None] = {}


def parts() -> tuple[Part, ...]:
    """All parts, in the order in which they start. It imports xoscar."""
    global _known
    from .connection import lifecycle as connections
    from .http import lifecycle as http
    from .supervision import lifecycle as supervision
    from .telemetry import lifecycle as telemetry

    _known = (connections, supervision, telemetry, http)
    return _known


def install(**changes: Any) -> Settings:
    """Extend xoscar in this process and in those it starts from now on.

    It may be called before or after xoscar is imported and pools are made. Called again, it
    changes the settings that are given.

    Parameters
    ----------
    **changes
        Fields of :class:`~xoscar_idle.config.Settings`, which win over the environment, where
        all others come from: ``install(idle_timeout=10)``. The variables of those given are set,
        for child processes.

    Returns
    -------
    Settings
        The settings in force.

    Raises
    ------
    ValueError
        A setting is unknown or its value is bad.
    UnsupportedXoscar
        This xoscar is not one that is known; nothing has been changed.
    """
    import xoscar  # noqa: F401  # may activate by environment, so before the look whether active

    # Nothing of ours is imported under the lock: another thread that just imports it activates by
    # environment at its end, and would wait for the lock while we wait for the import. And what we
    # import may activate, too.
    all_parts = parts()
    outside.offer(_change)
    with _lock:
        if is_active():
            return configure(**changes)
        logs.start()  # first: it is to show what the rest has to say
        given = Settings.given_in(os.environ)
        chosen = Settings(**given).changed(**changes)
        usable = _usable(all_parts)
        config.use(chosen, "environment", given)
        config.use(chosen, "code", changes)
        _export({gate.IDLE_TIMEOUT: config.as_variable("idle_timeout", chosen.idle_timeout)})
        _export_changes(changes)
        try:
            for part in usable:
                _started.append(part)  # first: what is half replaced is stopped, too
                patching.replace(part.PLACES)
            for part in usable:
                part.start()
        except BaseException:
            uninstall()
            raise
        logger.info("active with %s", chosen)
        return chosen


def _usable(all_parts: Iterable[Part]) -> list[Part]:
    """The parts that this xoscar can have; without the first there is none."""
    usable: list[Part] = []
    version = patching.version()
    for part in all_parts:
        try:
            patching.check_version(version)
            patching.check(part.PLACES, part.RELIED_ON)
        except UnsupportedXoscar as error:
            found = f"xoscar {version}"
            if not usable:
                raise UnsupportedXoscar(f"{found} was left as it is: {error}") from None
            logger.warning("%s is off with %s: %s", part.NAME, found, error)
        else:
            usable.append(part)
    return usable


def configure(**changes: Any) -> Settings:
    """Change settings while running, for the connections that are open, too.

    Parameters and errors are those of :func:`install`.

    Raises
    ------
    RuntimeError
        xoscar is not extended in this process.
    """
    with _lock:
        if not is_active():
            raise RuntimeError("xoscar_idle is not active here: call install() first")
        return _configure(changes, "code")


def _configure(changes: dict[str, Any], origin: str) -> Settings:
    before = config.current()
    chosen = before.changed(**changes)
    if changes:
        config.use(chosen, origin, changes)
        _export_changes(changes)
        for part in _started:
            part.apply(before)
        logger.info("reconfigured with %s", chosen)
    return chosen


def _change(changes: Mapping[str, Any], level: str | None) -> tuple[Settings, Settings]:
    """What an operator wants, see :data:`.changes.Change`; in the side thread.

    The lock is not waited for as long as it takes: uninstall() holds it, and waits for this thread.
    """
    if not _lock.acquire(timeout=PATIENCE):
        raise outside.NotNow("its program just changes something itself: try again")
    try:
        if not is_active():
            raise outside.NotNow(outside.inactive())
        before = config.current()
        after = _configure(dict(changes), "operator")
        if level is not None:
            _export({logs.LOG: level})
            logs.follow(level)
        return before, after
    finally:
        _lock.release()


def uninstall() -> None:
    """Put everything back; our connections close as soon as nobody uses them."""
    with _lock:
        side_channel.stop()  # there is one, too, where activation has failed
        logs.stop()
        patching.restore()
        while _started:
            _started.pop().stop()
        config.reset()
        for name, value in _environment_before.items():
            _set_variable(name, value)
        _environment_before.clear()


def _after_fork() -> None:
    for part in _known:
        part.after_fork()
    side_thread.after_fork()
    side_channel.after_fork()  # last: its thread looks at what the others have put in order


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _export_changes(changes: dict[str, Any]) -> None:
    _export({config.variable(name): config.as_variable(name, changes[name]) for name in changes})


def _export(variables: dict[str, str | None]) -> None:
    """Set environment variables, None: to nothing, for child processes, until uninstall()."""
    for name, value in variables.items():
        _environment_before.setdefault(name, os.environ.get(name))
        _set_variable(name, value)


def _set_variable(name: str, value: str | None) -> None:
    if value is None:
        os.environ.pop(name, None)
    else:
        os.environ[name] = value


def activate_from_environment() -> None:
    """Extend xoscar if the environment asks for it; an unknown xoscar is left alone.

    Raises
    ------
    Exception
        What prevented it; :func:`.patching.why_inactive` tells it from then on.
    """
    if not gate.wanted():
        return
    try:
        install()
    except Exception as error:
        from .telemetry import snapshot

        patching.prevented_by(error)
        snapshot.offer()  # it tells what prevented it
        if not isinstance(error, UnsupportedXoscar):
            raise
        logger.warning("%s", error)


def check() -> None:
    """Raise :class:`UnsupportedXoscar` unless this xoscar is one that can be extended."""
    _usable(parts())
