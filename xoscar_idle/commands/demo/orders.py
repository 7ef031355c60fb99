"""What a child of the demonstration is told by its parent, and tells it."""

from __future__ import annotations

import asyncio
import json
import os
import queue
import sys
import threading
from typing import Any

from .process import end_group


class Orders:
    """The orders as they come in. This process ends with them: the parent has gone."""

    def __init__(self) -> None:
        self._lines = queue.SimpleQueue[str]()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for line in sys.stdin:
            self._lines.put(line)
        end_group(os.getpid())
        os._exit(0)

    async def next(self) -> Any:
        return json.loads(await asyncio.to_thread(self._lines.get))


def report(kind: str, value: object) -> None:
    print(json.dumps([kind, value]), flush=True)
