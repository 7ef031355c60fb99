"""What a value that an operator gives means: the text of a variable, or an argument.

Text and numbers mean the same. Whatever cannot work further down is refused here, with a ValueError
that continues the name of what is set: "must be ...".
"""

from __future__ import annotations

import math
import numbers
import operator
import os
import re
from collections.abc import Callable, Collection

from . import descriptors

SHORTEST = 0.001
"""Seconds. Anything shorter would be a check that never sleeps."""

LONGEST_KEEPALIVE = 32767.0
"""Seconds. ``MAX_TCP_KEEPIDLE`` and ``MAX_TCP_KEEPINTVL`` of Linux, in ``include/net/tcp.h``."""

MOST_CONNECTIONS = 2**31 - 1
"""A descriptor is a C int."""

MOST_REMEMBERED = 1_000_000
"""Some 300 MB."""

SHOWN = 40
"""Characters of a bad value that are told; it may be anything, and of any length."""

LONGEST_PATTERN = 200
"""Characters. No method has such a name."""

_SWITCH = {"on": True, "true": True, "yes": True, "off": False, "false": False, "no": False}

_PATTERN = re.compile(r"(?!\d)(?:[\w*?]|\[!?[\w-]+\])+")


def shown(value: object) -> str:
    """``value`` for a message: its ``repr``, shortened to some dozen characters."""
    if isinstance(value, (str, bytes)):
        value = value[: 2 * SHOWN]  # its repr would be as long as it is
    try:
        text = repr(value)
    except Exception:  # an int of thousands of digits, or what a stranger wrote
        text = f"<{type(value).__name__}>"
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 10]}...{text[-7:]}"


def seconds(value: object) -> float:
    """A finite number of seconds, zero or more.

    Raises
    ------
    ValueError
        It is none; the message says what it has to be.
    """
    number = _number(value)
    if not math.isfinite(number) or number < 0:
        raise ValueError("must be a finite number of seconds, zero or more")
    return abs(number)  # no -0


def positive_seconds(name: str, value: object) -> float:
    """The argument ``name``, a finite number of seconds above zero.

    Raises
    ------
    ValueError
        It is none; the message names the argument and the value.
    """
    try:
        if number := seconds(value):
            return number
        raise ValueError("must be above zero")
    except ValueError as error:
        raise ValueError(f"{name} {error}, got {shown(value)}") from None


def _number(value: object) -> float:
    if not _is_number(value):
        raise ValueError("must be a number of seconds")
    try:
        number = float(value)  # type: ignore[arg-type]
    except OverflowError:
        return math.inf
    except Exception:  # text that is no number, a complex number, an array
        raise ValueError("must be a number of seconds") from None
    # What is too small for a float is not 0, which has a meaning of its own.
    return number or (math.ulp(0.0) if _is_above_zero(value) else 0.0)


def _is_number(value: object) -> bool:
    if isinstance(value, str):
        # float() knows other digits than those of ASCII, and underscores, too.
        return value.isascii() and "_" not in value
    is_number = isinstance(value, numbers.Number) or hasattr(type(value), "__index__")
    return is_number and not _is_truth(value)


def _is_truth(value: object) -> bool:
    return type(value).__name__ in ("bool", "bool_")  # numpy's, which is no bool, too


def _is_above_zero(value: object) -> bool:
    if isinstance(value, str):
        return re.search("[1-9]", value.lower().partition("e")[0]) is not None
    return bool(value != 0)


def is_off(value: object) -> bool:
    """Whether it is the word ``off``."""
    return isinstance(value, str) and value.strip().lower() == "off"


def _is_zero(value: object) -> bool:
    return whole(value, 0) == 0


def duration(value: object) -> float:
    """Seconds for which a timer runs; 0 and ``off``: none."""
    number = 0.0 if is_off(value) else seconds(value)
    if 0 < number < SHORTEST:
        raise ValueError(f"must be 0 or at least {SHORTEST:g}")
    return number


def positive_duration(value: object) -> float:
    """Seconds for which a timer runs that cannot be switched off."""
    if is_off(value):
        raise ValueError("cannot be switched off: it must be a number of seconds above zero")
    number = duration(value)
    if not number:
        raise ValueError("must be above zero")
    return number


def duration_or_default(value: object) -> float | None:
    """The same as :func:`duration`; None: as something else says."""
    return None if value is None else duration(value)


def keepalive(value: object) -> float | None:
    """Seconds that the kernel takes for TCP keepalive; 0 and ``off``: none; None: the default."""
    number = duration_or_default(value)
    if number and not 1 <= number <= LONGEST_KEEPALIVE:
        raise ValueError(f"must be 0, or from 1 to {LONGEST_KEEPALIVE:g}, which Linux accepts")
    return number


def is_auto(value: object) -> bool:
    """Whether it is the word ``auto``."""
    return isinstance(value, str) and value.strip().lower() == "auto"


def connections(value: object) -> int:
    """A number of connections; ``auto`` is half of the descriptors that this process may have."""
    if is_off(value):
        return 0
    if is_auto(value):
        return _half_of_descriptors()
    count = whole(value)
    if count is None:
        raise ValueError(
            f"must be a whole number of connections from 0 to {MOST_CONNECTIONS}, or 'auto'"
        )
    return count


def remembered(value: object) -> int:
    """How many things to remember, in memory."""
    count = 0 if is_off(value) else whole(value, MOST_REMEMBERED)
    if count is None:
        raise ValueError(f"must be a whole number from 0 to {MOST_REMEMBERED}")
    return count


def whole(value: object, most: int = MOST_CONNECTIONS) -> int | None:
    """A whole number from 0 to ``most``, in ASCII digits if it is text; None if it is none."""
    if isinstance(value, str):
        digits = value.strip()
        if not (digits.isascii() and digits.isdecimal()):
            return None
        digits = digits.lstrip("0") or "0"
        if len(digits) > len(str(most)):  # int() refuses thousands of digits
            return None
        value = int(digits)
    try:
        count = -1 if _is_truth(value) else operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        return None
    return count if 0 <= count <= most else None


def _half_of_descriptors() -> int:
    limit, _ = descriptors.limits()
    return 0 if limit is None else max(1, limit // 2)


def patterns(value: object) -> tuple[str, ...]:
    """Names of methods, or shell patterns of them: text with commas, or a collection of texts."""
    return tuple(map(_pattern, _texts(value, "names of methods")))


UNSENT = "unsent"
"""Among the methods that may be called again: what has never been executed may in any case."""


def retried(value: object) -> tuple[str, ...]:
    """Methods that may be executed twice, as :func:`patterns`, behind :data:`UNSENT`."""
    return UNSENT, *(each for each in patterns(value) if each != UNSENT)


def error_patterns(value: object) -> tuple[str, ...]:
    """Shell patterns of errors: text with commas, or a collection of texts. 0 and ``off``: none."""
    given = [] if _is_zero(value) else _texts(value, "patterns of errors")
    return () if len(given) == 1 and _is_zero(given[0]) else tuple(map(_error, given))


def _texts(value: object, what: str) -> list[object]:
    """Those of a text with commas, or of a collection; ``off`` alone is none, as in a variable."""
    given: list[object] | None
    if isinstance(value, str):
        given = [*value.split(",")] if value.strip() else []
    else:
        given = _listed(value)
    if given is None:
        raise ValueError(f"must be {what}: text with commas, or a list of texts")
    return [] if len(given) == 1 and is_off(given[0]) else given


def _listed(value: object) -> list[object] | None:
    if isinstance(value, (bytes, bytearray, memoryview)) or not isinstance(value, Collection):
        return None
    try:
        return list(value)
    except Exception:  # an array without dimensions
        return None


def _pattern(value: object) -> str:
    pattern = value.strip() if isinstance(value, str) else ""
    letters = re.sub(r"\W", "", pattern)
    is_one = _PATTERN.fullmatch(pattern) and f"_{letters}".isidentifier()
    if not is_one or len(pattern) > LONGEST_PATTERN:
        raise ValueError(
            "must be names of methods or patterns of them, of letters, digits, _ and the "
            f"wildcards * ? [ ], with commas between; {shown(value)} is none"
        )
    return pattern


def _error(value: object) -> str:
    pattern = value.strip() if isinstance(value, str) else ""
    is_one = pattern.strip("*? ") and pattern.isprintable() and "," not in pattern
    if not is_one or len(pattern) > LONGEST_PATTERN:
        raise ValueError(
            "must be patterns of errors with commas between, ? for a comma within one, and none "
            f"that every error matches; {shown(value)} is none"
        )
    return pattern


def one_of(*words: str) -> Callable[[object], str]:
    """A parser of one of ``words``, in small or capital letters; 0 is ``off``."""

    def word(value: object) -> str:
        given = value.strip().lower() if isinstance(value, str) else ""
        if _is_zero(value):
            given = "off"
        if given not in words:
            raise ValueError(f"must be {', '.join(words[:-1])} or {words[-1]}")
        return given

    return word


def limit(value: object) -> str:
    """So many times in so many seconds, ``3/60``, in its shortest form; ``off``: without limit."""
    if is_off(value) or _is_zero(value):
        return "off"
    try:
        times, per = times_per(value if isinstance(value, str) else "")
    except ValueError:
        raise ValueError(
            "must be a whole number of times, a slash and the seconds, from 0.001 on, in which "
            "they may be, like 3/60; or off"
        ) from None
    return f"{times}/{per!r}".removesuffix(".0")


def times_per(limit: str) -> tuple[int, float]:
    """The two numbers of a limit that is not ``off``."""
    given, slash, per = limit.partition("/")
    times, period = whole(given), seconds(per)
    if times is None or not slash or period < SHORTEST:
        raise ValueError("it is none")
    return times, period


def switch(value: object) -> bool:
    """On or off: ``1`` and ``0``, the words, or a truth value."""
    if _is_truth(value):
        return bool(value)
    word = value.strip().lower() if isinstance(value, str) else ""
    number = _SWITCH.get(word, whole(value, 1))
    if number is None:
        raise ValueError("must be 1 or 0")
    return bool(number)


def directory(value: object) -> str | None:
    """The absolute path of a directory, which need not be there; None: the default."""
    if value is None:
        return None
    path = os.fspath(value) if isinstance(value, (str, os.PathLike)) else ""
    path = path.strip() if isinstance(path, str) else ""
    if is_off(path) or _is_zero(value):
        raise ValueError("cannot be switched off: it must be the absolute path of a directory")
    if not os.path.isabs(path) or "\0" in path or not _is_encodable(path):
        raise ValueError("must be the absolute path of a directory")
    return path


def _is_encodable(path: str) -> bool:
    try:
        os.fsencode(path)
    except UnicodeEncodeError:  # half a character
        return False
    return True


def server_address(value: object) -> str | None:
    """Where a server listens: ``host:port``, or the absolute path of a socket; ``off``: nowhere."""
    if value is None or is_off(value) or _is_zero(value):
        return None
    text = os.fspath(value) if isinstance(value, (str, os.PathLike)) else ""
    text = text.strip() if isinstance(text, str) else ""
    if os.path.isabs(text) and "\0" not in text and _is_encodable(text):
        return text
    host, _, port = text.rpartition(":")
    if (
        re.fullmatch(r"\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+", host) is None
        or whole(port, 65535) is None
    ):
        raise ValueError("must be host:port, or the absolute path of a socket; off: none")
    return f"{host}:{whole(port)}"


SHORTEST_TOKEN = 8
"""Characters. A shorter one would be guessed."""


def token(value: object) -> str | None:
    """A secret that a header of HTTP can carry; None: there is none."""
    if value is None or is_off(value) or _is_zero(value):
        return None
    text = value.strip() if isinstance(value, str) else ""
    if re.fullmatch(r"[!-~]+", text) is None or not SHORTEST_TOKEN <= len(text) <= 1000:
        raise ValueError(
            f"must be {SHORTEST_TOKEN} to 1000 visible characters of ASCII, without blanks"
        )
    return text
