"""The beginning and the end of idle closing in a process."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from .. import config
from . import accepted, bounds, cap, history, hosted, preexisting, registry
from .caller import ActorCaller
from .places import PLACES, RELIED_ON

__all__ = ["NAME", "PLACES", "RELIED_ON", "after_fork", "apply", "start", "stop"]

NAME = "idle closing"


def start() -> None:
    """The places have been taken: let the settings in force hold for what is open already."""
    cap.process.limit = config.current().max_connections
    history.apply()
    registry.watch_loops()
    _on_each_loop(ActorCaller.resume)
    preexisting.drain()
    accepted.adopt()


def apply(before: config.Settings) -> None:
    """Let the settings in force, which were ``before``, hold for what is open."""
    chosen = config.current()
    cap.process.limit = chosen.max_connections
    history.apply()
    _on_each_loop(ActorCaller.apply_settings)
    accepted.apply_settings()
    if chosen.idle_timeout and not before.idle_timeout:
        preexisting.drain()  # what xoscar had open has been left so far


def stop() -> None:
    """The places are xoscar's again: close our connections as soon as nobody uses them."""
    preexisting.stop()
    registry.unwatch_loops()
    _on_each_loop(lambda caller: caller.retire("stop"))
    cap.process.limit = 0
    accepted.forget()


def after_fork() -> None:
    """In a forked child: what there is belongs to the parent."""
    cap.after_fork()
    bounds.after_fork()
    history.after_fork()
    accepted.after_fork()
    hosted.after_fork()
    registry.after_fork()


def _on_each_loop(act: Callable[[ActorCaller], None]) -> None:
    for caller in registry.everywhere():
        with contextlib.suppress(RuntimeError):  # its loop has just been closed
            caller.loop.call_soon_threadsafe(act, caller)
