"""Our lines on stderr, with ``XOSCAR_IDLE_LOG=debug``, or once somebody wants them.

Without it there is nothing of ours: lines go to the handlers that the program has, and where it
has none, Python writes warnings to stderr. That shows no debug line of sub-pools, where nobody
sets a level, and nothing on a console whose handlers pass only loggers that they know.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from . import values

logger = logging.getLogger("xoscar_idle")

LOG = "XOSCAR_IDLE_LOG"

LEVELS = ("debug", "info", "warning", "error")

parsed = values.one_of("off", *LEVELS)
"""A level, or ``off``, of a text that an operator gives; raises ValueError."""

FORMAT = "%(asctime)s %(name)s[%(process)d] %(levelname)s %(message)s"
"""With the process: many of them write to one console."""


def counted(count: int, noun: str, plural: str | None = None) -> str:
    """So many of them, in words."""
    return f"{count} {noun if count == 1 else plural or noun + 's'}"


def one_line(error: BaseException) -> str:
    """What an error says, or else what it is, on one line."""
    try:
        text = str(error)
    except Exception:  # whoever wrote it
        text = ""
    return " ".join(text.split()) or type(error).__name__


def wanted(environ: Mapping[str, str] = os.environ) -> str | None:
    """From which level on the environment asks for lines; None: it does not ask.

    Raises
    ------
    ValueError
        The variable is set to something that is no level.
    """
    raw = environ.get(LOG, "").strip()
    if not raw or values.is_off(raw):
        return None
    if raw.lower() not in LEVELS:
        raise ValueError(f"{LOG}={values.shown(raw)} is ignored: it must be {', '.join(LEVELS)}")
    return raw.lower()


class Console(logging.StreamHandler):  # type: ignore[type-arg]
    """Writes to what is ``sys.stderr`` at the time, unless another handler writes it there.

    Lines go on to the program's handlers all the same, since a file of its own is to have them. So
    the doubling is prevented here, line by line: handlers come and go, and have filters.
    """

    def __init__(self, level: int) -> None:
        super().__init__()
        self.setLevel(level)
        self.setFormatter(logging.Formatter(FORMAT))

    def emit(self, record: logging.LogRecord) -> None:
        if sys.stderr is None or any(_shows(each, record) for each in _others()):
            return
        self.stream = sys.stderr
        super().emit(record)


def _others() -> Iterator[logging.Handler]:
    """The other handlers that lines of ours reach."""
    at: logging.Logger | None = logger
    while at is not None:
        yield from (each for each in at.handlers if not isinstance(each, Console))
        at = at.parent if at.propagate else None


def _shows(handler: logging.Handler, record: logging.LogRecord) -> bool:
    """Whether the handler writes the line to where ours would; one with filters may not.

    A filter is not asked: it may keep count, and say something else when it is asked again.
    """
    return (
        isinstance(handler, logging.StreamHandler)
        and handler.stream is not None
        and not handler.filters
        and record.levelno >= handler.level
        and _is_stderr(handler.stream)
    )


def _is_stderr(stream: Any) -> bool:
    """Whether it is stderr, or leads to the same terminal or file."""
    if stream in (sys.stderr, sys.__stderr__):
        return True
    try:
        return os.path.samestat(os.fstat(stream.fileno()), os.fstat(sys.stderr.fileno()))
    except (OSError, ValueError, AttributeError):  # no descriptor, or a closed one
        return False


_console: Console | None = None
_level_before: int | None = None


def start() -> None:
    """Write our lines to stderr, if the environment asks for it; a bad level costs one warning."""
    if _console is not None:
        return
    try:
        wish = wanted()
    except ValueError as error:
        logger.warning("%s", error)
        return
    if wish is not None:
        follow(wish)


def follow(wish: str) -> None:
    """Write those from the level ``wish`` on, of :data:`LEVELS`, from now on; ``off``: none."""
    global _console, _level_before
    if wish == "off":
        stop()
        return
    level: int = logging.getLevelName(wish.upper())
    own = logger.level if _level_before is None else _level_before  # that of the program
    above = logger.parent.getEffectiveLevel() if logger.parent else logging.NOTSET
    if (own or above) > level:  # never higher: that would take lines from the program
        _level_before = own
        logger.setLevel(level)
    elif _level_before is not None:
        _level_before = None
        logger.setLevel(own)
    if _console is None:
        _console = Console(level)
        logger.addHandler(_console)
    else:
        _console.setLevel(level)


def in_force() -> str:
    """From which level on they are written, of :data:`LEVELS`; ``off``: they are not."""
    return "off" if _console is None else logging.getLevelName(_console.level).lower()


def stop() -> None:
    """Write them no more."""
    global _console, _level_before
    if _console is None:
        return
    logger.removeHandler(_console)
    _console = None
    if _level_before is not None:
        logger.setLevel(_level_before)
        _level_before = None
