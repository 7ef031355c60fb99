"""A module that sub-pools load when they start, and that can spoil each of their starts.

Its directory, ``FRAGILE_DIR``, has the file ``starts``, a line for each process that has loaded it,
and as long as it is to be spoilt the file ``bad``: seconds that loading takes, and seconds for
which the process lives then.
"""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

VARIABLE = "FRAGILE_DIR"
EXIT_CODE = 3


def spoil(directory: Path, load: float, live: float) -> None:
    """Let all that start from now on load for so long, and die so long after that."""
    written = directory / "bad.new"
    written.write_text(f"{load} {live}")
    written.rename(directory / "bad")


def repair(directory: Path) -> None:
    """Let them live."""
    (directory / "bad").unlink()


def starts(directory: Path, main: int) -> list[float]:
    """When sub-pools have loaded it, in monotonic time; ``main`` is the process of the main pool,
    which does so, too."""
    lines = [line.split() for line in (directory / "starts").read_text().splitlines()]
    return [float(when) for pid, when in lines if int(pid) != main]


def _load(directory: Path) -> None:
    with open(directory / "starts", "a") as file:
        file.write(f"{os.getpid()} {time.monotonic()}\n")
    try:
        load, live = map(float, (directory / "bad").read_text().split())
    except FileNotFoundError:
        return
    time.sleep(load)
    if not live:
        os._exit(EXIT_CODE)
    timer = threading.Timer(live, os._exit, (EXIT_CODE,))
    timer.daemon = True
    timer.start()


if VARIABLE in os.environ:
    _load(Path(os.environ[VARIABLE]))
