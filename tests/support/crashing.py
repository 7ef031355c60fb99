"""Pools whose actors die in all ways, and what their callers read of it."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import re
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import uvloop
import xoscar as xo

from .endpoints import ELSEWHERE, HOST
from .environment import environment
from .processes import line, started
from .waiting import bounded, eventually_told

T = TypeVar("T")


def _abort() -> None:
    os.write(2, b"the last words\n")
    os.abort()


_WAYS: dict[str, tuple[Callable[[], object], str, int]] = {
    "kill": (
        lambda: os.kill(os.getpid(), signal.SIGKILL),
        r"was killed by SIGKILL {age} after its start, {with_}: sender unknown",
        -signal.SIGKILL,
    ),
    "exit 7": (lambda: os._exit(7), "exited with code 7 {age} after its start, {with_}", 7),
    "exit 0": (lambda: os._exit(0), "exited with code 0 {age} after its start, {with_}", 0),
    "segfault": (
        lambda: ctypes.string_at(0),
        "was killed by SIGSEGV {age} after its start, {with_}\n"
        "Fatal Python error: Segmentation fault\n(.|\n)*in die\n(.|\n)*",
        -signal.SIGSEGV,
    ),
    "abort": (
        _abort,
        "was killed by SIGABRT {age} after its start, {with_}\n"
        "Fatal Python error: Aborted\n(.|\n)*in die\n(.|\n)*",
        -signal.SIGABRT,
    ),
}

WAYS = list(_WAYS)
"""How a victim can die; each is what :meth:`Victim.die` takes."""


def exit_code(way: str) -> int:
    """That of a process which died so; negative for a signal, as in subprocess."""
    return _WAYS[way][2]


def tells(text: str, address: str, pid: int, way: str, requests: int) -> bool:
    """Whether ``text`` is what callers are to read of a death with so many requests in process."""
    age = r"[\d.]+ s"
    with_ = f"with {requests} requests? in process \\([^)]*[^\n]*\\)"
    ending = _WAYS[way][1].replace("{age}", age).replace("{with_}", with_)
    return bool(re.fullmatch(rf"pool {re.escape(address)} \(pid {pid}\) {ending}", text))


class Victim(xo.StatelessActor):  # type: ignore[misc]
    """Dies when it is told to, and calls others of its kind."""

    def __init__(self) -> None:
        super().__init__()
        self._held = 0

    def pid(self) -> int:
        return os.getpid()

    def die(self, way: str) -> None:
        _WAYS[way][0]()

    async def hold(self) -> None:
        """In process for ever."""
        self._held += 1
        await asyncio.Event().wait()

    async def wait(self, seconds: float) -> int:
        """In process for so long; the process."""
        await asyncio.sleep(seconds)
        return os.getpid()

    async def until(self, path: str) -> int:
        """In process until that file is there; the process."""
        while not os.path.exists(path):  # noqa: ASYNC110, ASYNC240
            await asyncio.sleep(0.01)
        return os.getpid()

    def held(self) -> int:
        return self._held

    async def relay(self, address: str, method: str, *args: Any) -> Any:
        """Call another victim from here; what that raises goes on to the caller."""
        return await getattr(await victim(address), method)(*args)

    def block(self, seconds: float) -> None:
        """The loop of its process answers nobody meanwhile."""
        time.sleep(seconds)

    def grow(self) -> None:
        """Take all memory that there is."""
        taken = []
        while True:
            taken.append(b"x" * (16 << 20))

    def fork_and_crash(self) -> int:
        """The exit status of a forked child that crashes."""
        if not (child := os.fork()):
            signal.alarm(30)
            ctypes.string_at(0)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


class Recording(Victim):
    """Writes down what it executes."""

    def __init__(self, log: str = os.devnull) -> None:
        super().__init__()
        self._log = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    async def execute(self, name: str) -> str:
        os.write(self._log, f"{name}\n".encode())
        await asyncio.sleep(0.001)
        return name


class Slow(Victim):
    """From its second creation on, it is only there when a file is."""

    def __init__(self, directory: str) -> None:
        super().__init__()
        self._begun, self._go_on = Path(directory, "begun"), Path(directory, "go on")

    async def __post_create__(self) -> None:
        if self._begun.exists():
            self._begun.with_name("again").touch()
            while not self._go_on.exists():  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        self._begun.touch()


class Failing(Victim):
    """Cannot be created while that file is there."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self._path = path

    async def __post_create__(self) -> None:
        if os.path.exists(self._path):  # noqa: ASYNC240
            raise ValueError("there is that file")


def gated(pool: Any) -> asyncio.Event:
    """Let recoveries of a main pool wait for that."""
    own, go_on = pool.recover_sub_pool, asyncio.Event()

    async def recover(address: str) -> None:
        await go_on.wait()
        await own(address)

    pool.recover_sub_pool = recover
    return go_on


async def victim(address: str) -> Any:
    """That of the pool at ``address``; one of that name elsewhere would be found in its place."""
    return await xo.actor_ref(address=address, uid=address)


async def create(address: str) -> Any:
    """A new one there."""
    return await xo.create_actor(Victim, uid=address, address=address)


async def revived(address: str) -> Any:
    """The victim there, as soon as it answers."""
    return await eventually_told(lambda: _answering(address))


async def _answering(address: str) -> Any:
    with contextlib.suppress(OSError, xo.ServerClosed, xo.ActorNotExist):
        found = await victim(address)
        await found.pid()
        return found
    return None


async def error_of(call: Coroutine[Any, Any, Any] | asyncio.Future[Any]) -> BaseException:
    """What a call raises, within the bound."""
    (error,) = await bounded(asyncio.gather(call, return_exceptions=True))
    assert isinstance(error, BaseException), error
    return error


def knows_main_of(address: str) -> bool:
    """Whether this process has learnt whose pool that is."""
    from xoscar_idle.connection import losses

    return address in losses._witness._known  # type: ignore[union-attr]


def run(main: Coroutine[Any, Any, T], on_uvloop: bool = False) -> T:
    """``asyncio.run``, or the same on uvloop."""
    if not on_uvloop:
        return asyncio.run(main)
    policy = asyncio.get_event_loop_policy()
    asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
    try:
        return asyncio.run(main)
    finally:
        asyncio.set_event_loop_policy(policy)


@contextlib.asynccontextmanager
async def pool(n_process: int = 1, **options: Any) -> AsyncIterator[Any]:
    """A main pool in this process, with a victim in each sub-pool."""
    made = await xo.create_actor_pool(HOST, n_process=n_process, **options)
    async with made:
        for address in sub_pools(made):
            await create(address)
        yield made


def sub_pools(pool: Any) -> list[str]:
    """The addresses of its sub-pools."""
    return list(pool.sub_processes)


@dataclass(frozen=True)
class Host:
    """A process with a main pool; each of its processes has a victim, which is recovered."""

    pid: int
    main: str
    first: str = ""
    second: str = ""


@contextlib.contextmanager
def host(
    on_uvloop: bool = False, n_process: int = 2, cgroup: Path | None = None, **settings: str
) -> Iterator[Host]:
    """One with these variables, and no other; in a cgroup, if need be."""
    enter = ("sh", "-c", 'echo $$ > "$0" && exec "$@"', cgroup / "cgroup.procs") if cgroup else ()
    with started(
        *enter,
        *(sys.executable, "-m", "tests.support.crashing"),
        *("uvloop" if on_uvloop else "asyncio", f"{n_process}"),
        orderly=True,
        env=environment(**settings),
    ) as process:
        yield Host(process.pid, *line(process).split())


async def _host(on_uvloop: bool, n_process: int) -> None:
    pool = await xo.create_actor_pool(ELSEWHERE, n_process=n_process, use_uvloop=on_uvloop)
    addresses = pool._config.get_external_addresses()
    for address in addresses:
        await create(address)
    print(*addresses, flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    await pool.stop()


if __name__ == "__main__":
    # Its actors are found by the name of their module, which is not that of a main program.
    from tests.support import crashing

    run(crashing._host(sys.argv[1] == "uvloop", int(sys.argv[2])), sys.argv[1] == "uvloop")
