"""Where commands write to that may be cut off: a pipe that nobody reads any more."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Callable

CUT_OFF = 128 + 13
"""The exit status of what SIGPIPE ends, as which shells know it."""


def until_closed(run: Callable[[], int]) -> int:
    """Its exit status; if it writes to who reads no more, it is over, and nobody hears of it.

    What the encoding of stdout does not have is written as ``?``.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    try:
        return run()
    except BrokenPipeError:
        # What is still to be written would be tried once more when Python ends.
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return CUT_OFF
