"""Putting the parts in xoscar's place, and taking them out again.

Every place that is replaced stands in one table, :data:`PLACES`; nothing is patched elsewhere.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import inspect
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from packaging.specifiers import SpecifierSet

from . import config
from .config import IDLE_TIMEOUT, Settings

logger = logging.getLogger("xoscar_idle")

SUPPORTED = SpecifierSet(">=0.11,<0.13")
"""The versions of xoscar whose internals are known."""


class UnsupportedXoscar(RuntimeError):
    """This xoscar is not one that can be extended; it has been left as it is."""


@dataclass(frozen=True)
class Place:
    """An attribute of xoscar that is replaced.

    ``replace`` is given what is there (None where nothing is) and returns what shall be.
    ``parameters`` are those of the replaced function in the supported versions.
    """

    owner: str
    name: str
    reason: str
    replace: Callable[[Any], Any]
    parameters: tuple[str, ...] | None = None


def _places() -> list[Place]:
    # Imported here: `import xoscar_idle` must not import xoscar.
    from .connections import accepted, deadlines, frames, leases, preexisting, registry, routing
    from .telemetry import pool_query

    def call(
        self: Any,
        router: Any,
        dest_address: str,
        message: Any,
        wait: bool = True,
        proxy_addresses: list[str] | None = None,
    ) -> Any:
        caller = registry.here(self)
        return caller.call(router, dest_address, message, wait, proxy_addresses)

    def call_with_client(self: Any, client: Any, message: Any, wait: bool = True) -> Any:
        caller = preexisting.holder(self, client) or registry.here(self)
        return caller.call_with_client(client, message, wait)

    def call_send_buffers(self: Any, client: Any, *args: Any, **kwargs: Any) -> Any:
        caller = preexisting.holder(self, client) or registry.here(self)
        return caller.call_send_buffers(client, *args, **kwargs)

    def cancel_tasks(self: Any) -> None:
        for caller in registry.of_this_thread(self):
            if not caller.loop.is_closed():
                caller.cancel_tasks()

    def attribute(self: Any, name: str) -> Any:
        return getattr(registry.here(self), name)

    caller = "xoscar.backends.core:ActorCaller"
    router = "xoscar.backends.router:Router"
    context = "xoscar.backends.context:IndigenActorContext"
    pool = "xoscar.backends.pool:AbstractActorPool"
    main_pool = "xoscar.backends.pool:MainActorPoolBase"
    return [
        Place(
            caller,
            "__getattr__",
            "all calls go to our ActorCaller of the thread and the loop",
            lambda _: attribute,
            ("self", "item"),
        ),
        Place(caller, "call", "the same, without the cost of a failed look-up", lambda _: call),
        Place(
            caller,
            "call_with_client",
            "a transfer begun before install() goes on where it began",
            lambda _: call_with_client,
        ),
        Place(caller, "call_send_buffers", "the same over UCX", lambda _: call_send_buffers),
        Place(
            caller,
            "cancel_tasks",
            "a context's destructor calls it, on any loop or none",
            lambda _: cancel_tasks,
        ),
        Place(
            router,
            "get_client",
            "opens a connection each time and keeps none",
            lambda _: routing.get_client,
            ("self", "external_address", "from_who", "cached", "proxy_addresses", "kw"),
        ),
        Place(
            router,
            "get_client_via_type",
            "the same for one transport",
            lambda _: routing.get_client_via_type,
            ("self", "external_address", "client_type", "from_who", "cached", "kw"),
        ),
        Place(
            context,
            "copy_to_buffers",
            "holds a lease on the connection for the whole transfer",
            leases.leased,
            ("self", "local_buffers", "remote_buffer_refs", "block_size"),
        ),
        Place(
            context,
            "copy_to_fileobjs",
            "the same for file objects",
            leases.leased,
            ("self", "local_fileobjs", "remote_fileobj_refs", "block_size"),
        ),
        Place(
            pool,
            "on_new_channel",
            "keeps accepted connections alive, and closes those that stay idle",
            accepted.serve,
            ("self", "channel"),
        ),
        Place(
            "xoscar.backends.communication.socket:_BaseSocketServer",
            "channel_class",
            "accepted connections tell whether a message is being received",
            lambda _: frames.AcceptedChannel,
        ),
        Place(
            pool,
            "process_message",
            "tells which accepted connections have a request in process",
            accepted.process,
            ("self", "message", "channel"),
        ),
        Place(
            pool,
            "handle_control_command",
            "answers xoscar-idle top and stats, which ask over xoscar itself",
            pool_query.answer,
            ("self", "message"),
        ),
        Place(
            main_pool,
            "monitor_sub_pools",
            "outlives the deadline of whoever made the pool",
            deadlines.without,
            ("self",),
        ),
        Place(
            "xoscar.backends.core:ActorCallerThreadLocal",
            "_listen_client",
            "what xoscar was connecting at install() is drained, too",
            preexisting.listen,
            ("self", "client"),
        ),
    ]


# What the parts use of xoscar without replacing it.
_RELIED_ON = {
    "xoscar.backends.router:Router._resolve_address": (
        "self",
        "external_address",
        "proxy_addresses",
    ),
    "xoscar.backends.router:Router._create_client": ("self", "client_type", "address", "kw"),
    "xoscar.backends.router:Router._get_client_type_to_addresses": ("self", "external_address"),
    "xoscar.backends.router:Router._local_mapping": None,
    "xoscar.backends.router:Router._mapping": None,
    "xoscar.backends.router:Router._proxy_config": None,
    "xoscar.backends.core:ActorCaller._thread_local": None,
    "xoscar.backends.core:ActorCallerThreadLocal.call": (
        "self",
        "router",
        "dest_address",
        "message",
        "wait",
        "proxy_addresses",
    ),
    "xoscar.backends.core:ActorCallerThreadLocal._clients": None,
    "xoscar.backends.core:ActorCallerThreadLocal._client_to_message_futures": None,
    "xoscar.backends.communication.socket:SocketChannel.send": ("self", "message"),
    "xoscar.backends.communication.socket:SocketChannel.recv": ("self",),
    "xoscar.backends.communication.socket:SocketChannel.reader": None,
    "xoscar.backends.communication.socket:SocketChannel.writer": None,
    "xoscar.backends.communication.socket:SocketChannel._send_lock": None,
    "xoscar.backends.communication.socket:_BaseSocketServer._channels": None,
    "xoscar.backends.communication.socket:_BaseSocketServer.channel_class": None,
    "xoscar.backends.communication.dummy:DummyChannel._closed": None,
    "xoscar.backends.communication.dummy:DummyClient._task": None,
}

_lock = threading.RLock()
_replaced: list[tuple[Any, str, Any]] = []  # owner, name, what was there (None: nothing)
_environment_before: dict[str, str | None] = {}
_prevented = ""  # what an activation by environment failed with


def is_active() -> bool:
    """Whether xoscar is extended in this process."""
    return bool(_replaced)


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
    from . import logs
    from .connections import accepted, preexisting, registry
    from .telemetry import metrics, monitor

    places = _places()
    with _lock:
        if is_active():
            return configure(**changes)
        logs.start()  # first: it is to show what the rest has to say
        given = Settings.given_in(os.environ)
        chosen = Settings(**given).changed(**changes)
        _check(places)
        config.use(chosen, "environment", given)
        _put_in_force(chosen, changes)
        _export({IDLE_TIMEOUT: config.as_variable("idle_timeout", chosen.idle_timeout)})
        _export_changes(changes)
        try:
            for place in places:
                owner = _find(place.owner)
                before = owner.__dict__.get(place.name)
                setattr(owner, place.name, place.replace(before))
                _replaced.append((owner, place.name, before))
            registry.watch_loops()
            for caller in registry.everywhere():
                with contextlib.suppress(RuntimeError):  # its loop has just been closed
                    caller.loop.call_soon_threadsafe(caller.resume)
            preexisting.drain()
            accepted.adopt()
            metrics.arm()
            monitor.start()
        except BaseException:
            uninstall()
            raise
        logger.info("active with %s", chosen)
        return chosen


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
        before = config.current()
        chosen = before.changed(**changes)
        if changes:
            from .connections import accepted, preexisting, registry

            _put_in_force(chosen, changes)
            _export_changes(changes)
            for caller in registry.everywhere():
                with contextlib.suppress(RuntimeError):  # its loop has just been closed
                    caller.loop.call_soon_threadsafe(caller.apply_settings)
            accepted.apply_settings()
            if chosen.idle_timeout and not before.idle_timeout:
                preexisting.drain()  # what xoscar had open has been left so far
            logger.info("reconfigured with %s", chosen)
        return chosen


def uninstall() -> None:
    """Put everything back; our connections close as soon as nobody uses them."""
    from . import logs
    from .telemetry import monitor  # not under the lock, as in install()

    with _lock:
        monitor.stop()
        logs.stop()
        if not is_active() and not _environment_before:
            return
        from .connections import accepted, cap, preexisting, registry
        from .telemetry import metrics

        metrics.disarm()
        preexisting.stop()
        while _replaced:
            owner, name, before = _replaced.pop()
            if before is None:
                delattr(owner, name)
            else:
                setattr(owner, name, before)
        registry.unwatch_loops()
        for caller in registry.everywhere():
            with contextlib.suppress(RuntimeError):  # its loop has just been closed
                caller.loop.call_soon_threadsafe(caller.retire, "stop")
        config.reset()
        cap.process.limit = 0
        accepted.forget()
        for name, value in _environment_before.items():
            _set_variable(name, value)
        _environment_before.clear()


def _put_in_force(chosen: Settings, given: Iterable[str]) -> None:
    from .connections import cap

    config.use(chosen, "code", given)
    cap.process.limit = chosen.max_connections


def _export_changes(changes: dict[str, Any]) -> None:
    _export({config.variable(name): config.as_variable(name, changes[name]) for name in changes})


def _forked() -> None:
    global _lock
    _lock = threading.RLock()  # the thread that held it may not exist here


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)


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
        What prevented it; :func:`why_inactive` tells it from then on.
    """
    global _prevented
    if not config.wanted():
        return
    try:
        install()
    except Exception as error:
        from .telemetry import monitor

        _prevented = " ".join(f"{error}".split()) or type(error).__name__
        monitor.start()  # it tells what prevented it
        if not isinstance(error, UnsupportedXoscar):
            raise
        logger.warning("%s", error)


def why_inactive() -> str:
    """Why xoscar is not extended in this process, in a few words; empty if it is."""
    if is_active():
        return ""
    if _prevented:
        return _prevented
    if not config.wanted():
        return f"{IDLE_TIMEOUT} is not set, or off"
    if "xoscar" not in sys.modules:
        return "xoscar has not been imported yet"
    return "it was not activated, or uninstall() was called"


def check() -> None:
    """Raise :class:`UnsupportedXoscar` unless this xoscar is one that can be extended."""
    _check(_places())


def _find(path: str) -> Any:
    """The object at ``module:attribute.attribute``."""
    module, _, attributes = path.partition(":")
    found: Any = importlib.import_module(module)
    for attribute in attributes.split("."):
        found = inspect.getattr_static(found, attribute)
    return found


def _check(places: list[Place]) -> None:
    """Raise :class:`UnsupportedXoscar` unless this xoscar is one that is known."""
    try:
        version = importlib.metadata.version("xoscar")
    except importlib.metadata.PackageNotFoundError:
        version = "of unknown version"
    if version not in SUPPORTED and not SUPPORTED.contains(version, prereleases=True):
        raise UnsupportedXoscar(
            f"xoscar {version} was left as it is: xoscar-idle supports {SUPPORTED}; "
            "install a supported version, or a newer xoscar-idle"
        )
    expected = {f"{p.owner}.{p.name}": p.parameters for p in places if p.parameters} | _RELIED_ON
    for path, parameters in expected.items():
        try:
            found = _find(path)
            same = parameters is None or tuple(inspect.signature(found).parameters) == parameters
        except (ImportError, AttributeError, TypeError, ValueError):
            same = False
        if not same:
            raise UnsupportedXoscar(
                f"xoscar {version} was left as it is: {path} is not what xoscar {SUPPORTED} has; "
                "install an unmodified xoscar of a supported version"
            )
