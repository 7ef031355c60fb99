"""An actor that makes its process ill, in each of the ways that are told apart."""

from __future__ import annotations

import ctypes
import faulthandler
import os
import signal
import time
from typing import Any, NoReturn

import xoscar as xo

import xoscar_idle
from xoscar_idle.supervision import beat

from .hosting import Worker


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
