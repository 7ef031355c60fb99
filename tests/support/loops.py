"""A loop that is asked from another thread, and answers when a test says so."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class AskedLoop:
    """Stands in for an event loop where nothing but ``call_soon_threadsafe`` is needed."""

    def __init__(self) -> None:
        self.asked: list[Callable[[], None]] = []
        self.closed = False

    def is_closed(self) -> bool:
        return self.closed

    def call_soon_threadsafe(self, callback: Callable[..., None], *args: Any) -> None:
        if self.closed:
            raise RuntimeError("Event loop is closed")
        self.asked.append(lambda: callback(*args))

    def answer(self) -> bool:
        """Whatever it has been asked; whether there was something."""
        asked, self.asked = self.asked, []
        for each in asked:
            each()
        return bool(asked)
