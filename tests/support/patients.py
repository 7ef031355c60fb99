"""An actor that makes its process ill, in each of the ways that are told apart."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import faulthandler
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import psutil
import xoscar as xo

import xoscar_idle
from xoscar_idle.supervision import beat

from .hosting import Worker
from .waiting import BOUND, eventually


class Patient(Worker):
    """Does to its process whatever it is told to."""

    def __init__(self, error: BaseException | None = None) -> None:
        super().__init__()
        self.taken: list[int] = []
        if error is not None:
            raise error

    def block(self, until: str) -> None:
        """Block the event loop until there is that file; there is one that says when it does."""
        with open(f"{until}.begun", "w"):
            pass
        while not os.path.exists(until):
            time.sleep(0.01)

    def hold_gil(self, fifo: str) -> None:
        """Wait in C, without letting others run, until there is something to read."""
        descriptor = os.open(fifo, os.O_RDWR)  # which waits for nobody
        ctypes.PyDLL(None).read(descriptor, ctypes.create_string_buffer(1), 1)
        os.close(descriptor)

    async def fail(self, error: BaseException) -> NoReturn:
        raise error

    async def ask(self, address: str, error: BaseException) -> None:
        """Let the patient there fail."""
        await (await patient(address)).fail(error)

    def pools(self) -> list[dict[str, Any]]:
        """The sub-pools of this process."""
        return [vars(each) for each in xoscar_idle.pools()]

    def replace(self) -> NoReturn:
        """Another program takes the place of this one in its process."""
        os.execvp("sleep", ["sleep", "600"])

    def take_signals(self, *numbers: int) -> None:
        """Handle them, or else all real-time signals, as a program may."""
        for number in numbers or range(signal.SIGRTMIN, signal.SIGRTMAX + 1):
            signal.signal(number, lambda number, _: self.taken.append(number))

    def signals_taken(self) -> list[int]:
        return self.taken

    def handles_faults(self) -> bool:
        return faulthandler.is_enabled()

    def fork(self, number: int) -> int:
        """A child takes a signal, raises it once more if it survives, and how it ended."""
        if not (child := os.fork()):
            try:
                page = beat._page
                os.kill(os.getpid(), number)
                signal.raise_signal(signal.SIGSEGV if page is None else signal.SIGABRT)
            finally:
                os._exit(1)
        return os.waitpid(child, 0)[1]


async def patient(address: str) -> Any:
    """The patient of the pool at ``address``, made if need be."""
    # Under a name of its own: a sub-pool that has no actor of a name tells of its main pool's.
    uid = f"patient {address}"
    try:
        return await xo.actor_ref(address=address, uid=uid)
    except xo.ActorNotExist:
        return await xo.create_actor(Patient, uid=uid, address=address)


@contextlib.contextmanager
def blocked(address: str, place: Path) -> Iterator[None]:
    """The event loop of the pool there is blocked, by its patient, with ``place`` for files."""
    end, begun = place / "end", place / "end.begun"

    async def block() -> None:
        await (await patient(address)).block(f"{end}")

    blocking = threading.Thread(target=asyncio.run, args=(block(),), daemon=True)
    blocking.start()
    try:
        eventually(begun.exists)
        yield
    finally:
        end.touch()
        blocking.join(BOUND)


@contextlib.contextmanager
def stopped(pid: int) -> Iterator[None]:
    """The process is, and goes on afterwards."""
    os.kill(pid, signal.SIGSTOP)
    eventually(lambda: psutil.Process(pid).status() == psutil.STATUS_STOPPED)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)
