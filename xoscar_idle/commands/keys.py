"""Single keys of the terminal, while something is shown on it."""

from __future__ import annotations

import asyncio
import codecs
import contextlib
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator

try:
    import termios
except ImportError:  # Windows
    AVAILABLE = False
else:
    AVAILABLE = True

_NAMES = {
    "\r": "enter",
    "\n": "enter",
    "\x1b": "escape",
    "\x7f": "backspace",
    "\b": "backspace",
    "\x1b[A": "up",
    "\x1bOA": "up",
    "\x1b[B": "down",
    "\x1bOB": "down",
    "\x1b[5~": "page up",
    "\x1b[6~": "page down",
    "\x1b[H": "home",
    "\x1bOH": "home",
    "\x1b[1~": "home",
    "\x1b[F": "end",
    "\x1bOF": "end",
    "\x1b[4~": "end",
}

_KEY = re.compile(r"\x1b\[[0-9;]*[A-Za-z~]|\x1bO[A-Za-z]|.", re.DOTALL)


def names(text: str) -> list[str]:
    """The keys that a terminal tells with ``text``: a name of each that has one, or its character.

    Those that have neither are left out.
    """
    keys = (_NAMES.get(key, key) for key in _KEY.findall(text))
    return [key for key in keys if key.isprintable()]


@contextlib.contextmanager
def pressed(then: Callable[[str], None]) -> Iterator[bool]:
    """Call ``then``, on the running loop, with each key that is pressed in the block.

    After a stop of the process it is ``resume``.

    Yields whether there are keys: not where stdin is no terminal, or that of somebody else. The
    terminal is as it was after the block, whatever ends it.
    """
    if not AVAILABLE or sys.stdin is None or not sys.stdin.isatty():
        yield False
        return
    fd = sys.stdin.fileno()
    if not _in_foreground(fd):  # to change a terminal from there stops the process
        yield False
        return
    before = termios.tcgetattr(fd)
    loop = asyncio.get_running_loop()
    decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def read() -> None:
        data = b""
        if _in_foreground(fd):
            with contextlib.suppress(OSError):
                data = os.read(fd, 1024)
        if not data:
            loop.remove_reader(fd)
        for each in names(decoder.decode(data)):
            then(each)

    def listen() -> None:
        if _in_foreground(fd):
            _take_single_keys(fd)
            loop.add_reader(fd, read)

    def resume() -> None:
        listen()
        then("resume")

    # After a stop and "fg": a shell has had the terminal meanwhile.
    loop.add_signal_handler(signal.SIGCONT, resume)
    try:
        listen()
        yield True
    finally:
        loop.remove_signal_handler(signal.SIGCONT)
        loop.remove_reader(fd)
        if _in_foreground(fd):
            with contextlib.suppress(termios.error):  # it has been closed
                termios.tcsetattr(fd, termios.TCSADRAIN, before)


def _in_foreground(fd: int) -> bool:
    try:
        return os.tcgetpgrp(fd) == os.getpgrp()
    except OSError:
        return False


def _take_single_keys(fd: int) -> None:
    """Neither wait for the end of a line, nor show what is typed; Ctrl-C goes on to be a signal."""
    mode = termios.tcgetattr(fd)
    mode[3] &= ~(termios.ICANON | termios.ECHO)
    mode[6][termios.VMIN], mode[6][termios.VTIME] = 1, 0
    termios.tcsetattr(fd, termios.TCSADRAIN, mode)
