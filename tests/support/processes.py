"""Child processes of tests: run to their end, or started, talked to and ended."""

from __future__ import annotations

import contextlib
import subprocess
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil

from .environment import environment
from .waiting import BOUND

ROOT = Path(__file__).parents[2]


@contextlib.contextmanager
def started(
    *command: str | Path,
    env: Mapping[str, str] | None = None,
    orderly: bool = False,
    **popen: Any,
) -> Iterator[subprocess.Popen[str]]:
    """A process with pipes to its stdin and stdout; in the end, nothing that it started is left.

    Parameters
    ----------
    env
        By default without a setting of xoscar or of ours.
    orderly
        It ends with its stdin, and is given the time for it; others are killed.
    popen
        For :class:`subprocess.Popen`.
    """
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    process = subprocess.Popen(
        command,
        env=environment() if env is None else env,
        text=True,
        **{"cwd": ROOT, **pipes, **popen},
    )
    try:
        yield process
        if orderly:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.communicate(timeout=BOUND)
    finally:
        end(process)


def end(process: subprocess.Popen[str]) -> None:
    """Kill a process and all that it started, whatever state they are in."""
    if process.poll() is None:
        with contextlib.suppress(psutil.NoSuchProcess):
            for child in psutil.Process(process.pid).children(recursive=True):
                with contextlib.suppress(psutil.NoSuchProcess):
                    child.kill()
        process.kill()
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream is not None:
            with contextlib.suppress(BrokenPipeError):
                stream.close()
    process.wait()


def run(
    *command: str | Path,
    status: int | None = 0,
    input: str = "",
    timeout: float = BOUND,
    **options: Any,
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, which has this exit status; None: any.

    ``options`` are those of :func:`started`.
    """
    with started(*command, **{"stderr": subprocess.PIPE, **options}) as process:
        output, errors = process.communicate(input, timeout)
    done = subprocess.CompletedProcess(command, process.returncode, output, errors)
    assert status in (None, done.returncode), f"exit status {done.returncode}:\n{output}{errors}"
    return done


def lives(pid: int) -> bool:
    """Whether that is a process which has not ended."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


def line(process: subprocess.Popen[str]) -> str:
    """The next line that it prints, without its end; one that prints none is killed."""
    assert process.stdout is not None
    guard = threading.Timer(BOUND, process.kill)
    guard.start()
    try:
        read = process.stdout.readline()
    finally:
        guard.cancel()
        guard.join()
    assert read, f"it ended with exit status {process.wait()}"
    return read.rstrip("\n")


def tell(process: subprocess.Popen[str], *words: object) -> None:
    """Give it a line."""
    assert process.stdin is not None
    print(*words, file=process.stdin, flush=True)
