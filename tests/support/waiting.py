"""Waiting for something to happen, never for time to pass."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import TypeVar

BOUND = 60.0
"""Seconds; what has not happened by then never will, however busy the machine is."""

T = TypeVar("T")


def eventually(condition: Callable[[], T]) -> T:
    """What the condition returns as soon as that is true.

    Raises
    ------
    AssertionError
        It has not been within the bound.
    """
    for pause in _pauses():
        if found := condition():
            return found
        time.sleep(pause)
    raise AssertionError(f"not within {BOUND:g} s")


async def eventually_here(condition: Callable[[], T]) -> T:
    """The same while this loop goes on running."""
    for pause in _pauses():
        if found := condition():
            return found
        await asyncio.sleep(pause)
    raise AssertionError(f"not within {BOUND:g} s")


async def eventually_told(question: Callable[[], Awaitable[T]]) -> T:
    """The same of what has to be asked for."""
    for pause in _pauses():
        if answer := await question():
            return answer
        await asyncio.sleep(pause)
    raise AssertionError(f"not within {BOUND:g} s")


async def bounded(awaitable: Awaitable[T]) -> T:
    """Its result, within the bound."""
    return await asyncio.wait_for(awaitable, BOUND)


def _pauses() -> Iterator[float]:
    end = time.monotonic() + BOUND
    while time.monotonic() < end:
        yield 0.02
