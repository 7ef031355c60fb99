"""Child processes that take orders: an object in a process of its own, its methods the orders.

A child ends when its standard input does, so none outlives its parent, whatever ends that.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from typing import Any

import psutil

from xoscar_idle import descriptors
from xoscar_idle.config import unset_everywhere
from xoscar_idle.gate import IDLE_TIMEOUT


def idle_closing(timeout: float) -> dict[str, str]:
    """The environment of a process with xoscar-idle."""
    return {IDLE_TIMEOUT: f"{timeout:g}"}


def raise_descriptor_limit() -> int:
    """Let this process have as many descriptors as it may; returns how many."""
    _, hard = descriptors.limits()
    most = 1 << 20 if hard is None else hard
    descriptors.allow(most)
    return most


def quiet() -> None:
    """Let nobody be told what is measured here, nor how connections to ended peers broke off."""
    # It warns of every tenth connection from the hundredth on.
    logging.getLogger("xoscar.backends.core").setLevel(logging.ERROR)
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)


_start = partial(subprocess.Popen, text=True)


class Child:
    """The object that ``maker`` (``module:Class``) makes in a process of its own.

    Of xoscar's variables it has those in ``environment`` alone, so that sides differ in nothing
    else.
    """

    def __init__(
        self,
        maker: str,
        environment: dict[str, str] | None = None,
        loop: str = "asyncio",
        start: Callable[..., subprocess.Popen[str]] = _start,
    ) -> None:
        inherited = unset_everywhere(os.environ)
        self.maker = maker
        self.process = start(
            [sys.executable, "-m", "benchmarks.processes", maker, loop],
            env=inherited | (environment or {}),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # an interrupt is for the parent, which then ends its children
        )
        self._answers: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            for line in lines:
                self._answers.put(line)
        self._answers.put("")

    def order(self, method: str, *arguments: Any) -> None:
        """Let it begin; :meth:`answer` waits for what the method returns."""
        assert self.process.stdin is not None
        print(json.dumps([method, arguments]), file=self.process.stdin, flush=True)

    def answer(self, timeout: float = 120.0) -> Any:
        try:
            line = self._answers.get(timeout=timeout)
        except queue.Empty:
            raise RuntimeError(f"{self.maker} has not answered within {timeout:g} s") from None
        if not line:
            raise RuntimeError(f"{self.maker} ended with exit status {self.process.wait()}")
        return json.loads(line)

    def ask(self, method: str, *arguments: Any, timeout: float = 120.0) -> Any:
        self.order(method, *arguments)
        return self.answer(timeout)

    @property
    def busy(self) -> bool:
        """Whether there is no answer yet."""
        return self._answers.empty()

    def descriptors(self) -> int:
        return descriptors.count(psutil.Process(self.process.pid))

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.kill()  # it has nothing to put in order
        self.process.wait()
        self._reader.join()


@contextlib.contextmanager
def children(*makers: Callable[[], Child]) -> Iterator[list[Child]]:
    """Several children at once."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(make()) for make in makers]


async def _serve(maker: str) -> None:
    raise_descriptor_limit()
    quiet()
    if os.environ.get(IDLE_TIMEOUT):
        import xoscar_idle

        xoscar_idle.install()  # a checkout that is not installed has no .pth file
    # Libraries in C print to descriptor 1, too: NIXL does. Only answers are to go there.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    module, _, name = maker.partition(":")
    served = getattr(import_module(module), name)()
    loop = asyncio.get_running_loop()
    orders: asyncio.Queue[str] = asyncio.Queue()

    def read() -> None:
        for line in sys.stdin:
            loop.call_soon_threadsafe(orders.put_nowait, line)
        os._exit(0)

    threading.Thread(target=read, daemon=True).start()
    while True:
        method, arguments = json.loads(await orders.get())
        answer = await getattr(served, method)(*arguments)
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    if sys.argv[2] == "uvloop":
        import uvloop

        uvloop.install()
    asyncio.run(_serve(sys.argv[1]))
