"""Commands that go on until somebody ends them."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Coroutine
from typing import Any


def until_interrupted(show: Coroutine[Any, Any, int]) -> int:
    """Run it until it ends, or a signal says so: Ctrl-C is how to leave, and no error."""

    async def main() -> int:
        loop = asyncio.get_running_loop()
        task, received = loop.create_task(show), loop.create_future()

        def leave(number: int) -> None:
            if not received.done():
                received.set_result(number)

        for name in ("SIGINT", "SIGTERM", "SIGHUP"):
            with contextlib.suppress(AttributeError, NotImplementedError):  # Windows
                loop.add_signal_handler(getattr(signal, name), leave, getattr(signal, name))
        await asyncio.wait([task, received], return_when=asyncio.FIRST_COMPLETED)
        if not received.done():
            return task.result()
        # Once may not do: before Python 3.12 a wait_for, xoscar's too, can swallow it.
        while not task.done():
            task.cancel()
            await asyncio.wait([task], timeout=0.1)
        return 0 if received.result() == signal.SIGINT else 128 + received.result()

    try:
        return asyncio.run(main())
    except KeyboardInterrupt:  # Windows
        return 0
