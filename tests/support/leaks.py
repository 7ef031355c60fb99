"""What a test, and a run of chaos, must leave as it was."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import multiprocessing.forkserver
import multiprocessing.resource_tracker
import os
import threading
from collections import Counter

import psutil
import uvloop
from xoscar.backends.core import ActorCaller

from .waiting import eventually

# What a process has once and for all, from the first time that it is needed.
uvloop.new_event_loop().close()  # a pipe for signals
multiprocessing.resource_tracker.ensure_running()  # a child, for shared memory
multiprocessing.forkserver.ensure_running()  # a child, for children
ActorCaller._ensure_initialized()  # xoscar's thread that closes connections, with its loop

gc.collect()
gc.freeze()  # what has been imported is not looked through each time


def state() -> dict[str, Counter[str]]:
    """The descriptors, by kind, and the threads, children and tasks of this process."""
    gc.collect()
    descriptors: Counter[str] = Counter()
    for entry in os.scandir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # the one that scandir uses
            descriptors[os.readlink(entry.path).split(":")[0]] += 1
    return {
        "descriptors": descriptors,
        "threads": Counter(f"{each.name} {each.ident}" for each in threading.enumerate()),
        "children": Counter(f"{each.pid}" for each in psutil.Process().children()),
        "tasks": Counter(
            f"{each.get_name()} {each.get_coro()}"
            for each in gc.get_objects()
            if issubclass(type(each), asyncio.Task) and not each.done()
        ),
    }


def left_since(before: dict[str, Counter[str]]) -> dict[str, list[str]]:
    """What there is more than ``before``, as soon as it is nothing, or after the bound."""
    left: dict[str, list[str]] = {}

    def nothing() -> bool:
        now = state()
        more = {what: sorted((now[what] - before[what]).elements()) for what in now}
        left.clear()
        left.update({what: each for what, each in more.items() if each})
        return not left

    with contextlib.suppress(AssertionError):
        eventually(nothing)
    return left
