"""Locks that a forked child finds free."""

from __future__ import annotations

import os
import threading

_made: list[threading.RLock] = []


def process_lock() -> threading.RLock:
    """A lock of the whole process, to be kept for its life.

    A thread that holds it when another one forks does not exist in the child, where nobody would
    ever let go of it. It is reentrant, since a finalizer may run wherever memory is allocated, in
    the middle of what holds the lock, too.
    """
    made = threading.RLock()
    _made.append(made)
    return made


def _renew() -> None:
    for lock in _made:
        if not lock._is_owned():  # type: ignore[attr-defined]  # else it is held here rightly
            lock._at_fork_reinit()  # type: ignore[attr-defined]


# One for all, and before those of whoever imports this: what they do in a child takes the locks.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew)
