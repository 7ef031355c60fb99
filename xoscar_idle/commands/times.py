"""Times as an operator gives them, and as they are shown.

Unix time is the one side of it; the other is the wall clock of a zone, None being that of this
machine. ``now`` and the zone are always arguments.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import date, datetime, time, timedelta, timezone, tzinfo

from ..values import shown

REMEDY = (
    "give a time of day like 3:12 or 03:12:30, a date like 2026-05-01T03:12, or an age like 90s, "
    "10m or 1h30m"
)

UNKNOWN = "?" * 12
"""What is shown of a time that this machine does not know."""

_CLOCK = r"(\d{1,2}):(\d{2})(?::(\d{2})(?:[.,](\d{1,6}))?)?"
_OF_DAY = re.compile(_CLOCK, re.ASCII)
_DATE = re.compile(
    rf"(\d{{4}})-(\d{{2}})-(\d{{2}})(?:[T ]{_CLOCK})?\s?(Z|[+-]\d{{2}}:?\d{{2}})?", re.ASCII
)
_AGE = re.compile(r"(?:\d{1,9}(?:\.\d{1,9})?[smhd])+", re.ASCII)
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def since(text: str, now: float, zone: tzinfo | None = None) -> float:
    """From when on; see :func:`until`. What the clock shows twice is the first of both.

    Raises
    ------
    ValueError
        It is no time; the message names the value, and what would be one.
    """
    return _parsed(text, now, zone, min)


def until(text: str, now: float, zone: tzinfo | None = None, after: float | None = None) -> float:
    """Until when: a time of day, a date with one, or an age.

    A time of day is the last such time that is not in the future; where that would be before
    ``after``, the first one after it. When clocks are put back they show some times twice: here
    that is the second one. What they never show, being put forward, counts from the hour before
    for :func:`since`, and to the hour after here, so that nothing of it is left out.

    Raises
    ------
    ValueError
        It is no time; the message names the value, and what would be one.
    """
    found = _parsed(text, now, zone, max)
    if after is not None and found < after and (of_day := _time_of_day(text)) is not None:
        begin = datetime.fromtimestamp(after, zone).date()
        later = [_at(begin + timedelta(days), of_day, zone, max) for days in (0, 1)]
        found = next((each for each in later if each > after), found)
    return found


def clock(when: float, zone: tzinfo | None = None) -> str:
    """Like ``03:12:05.123``."""
    try:
        at = datetime.fromtimestamp(when, zone)
    except (OSError, OverflowError, ValueError):
        return UNKNOWN
    return f"{at:%H:%M:%S}.{at.microsecond // 1000:03}"


def day(when: float, zone: tzinfo | None = None) -> str:
    """Like ``2026-05-01``; empty: it is none that this machine knows."""
    try:
        return f"{datetime.fromtimestamp(when, zone):%Y-%m-%d}"
    except (OSError, OverflowError, ValueError):
        return ""


def brief(when: float, now: float, zone: tzinfo | None = None) -> str:
    """To the second, with the day where it is another one than now."""
    text = clock(when, zone).partition(".")[0]
    at = day(when, zone)
    return text if at in ("", day(now, zone)) else f"{at} {text}"


Either = Callable[[float, float], float]
"""Which of the two that a wall clock can mean where it is put back or forward."""


def _parsed(text: str, now: float, zone: tzinfo | None, either: Either) -> float:
    given = text.strip()
    try:
        if (of_day := _time_of_day(given)) is not None:
            return _last(of_day, now, zone, either)
        if found := _DATE.fullmatch(given):
            on = date(*map(int, found.groups()[:3]))
            return _at(on, _time(found.groups()[3:7]), _zone(found[8]) or zone, either)
        if _AGE.fullmatch(given):
            parts = re.findall(r"([\d.]+)([smhd])", given)
            return now - sum(float(count) * _SECONDS[unit] for count, unit in parts)
    except (OSError, OverflowError, ValueError):  # there is no such hour or day
        pass
    raise ValueError(f"{shown(text)} is no time: {REMEDY}")


def _time_of_day(text: str) -> time | None:
    found = _OF_DAY.fullmatch(text.strip())
    return _time(found.groups()) if found else None


def _time(parts: tuple[str | None, ...]) -> time:
    hour, minute, second, fraction = parts
    micro = (fraction or "").ljust(6, "0")
    return time(int(hour or 0), int(minute or 0), int(second or 0), int(micro))


def _zone(text: str | None) -> tzinfo | None:
    if text is None:
        return None
    if text == "Z":
        return timezone.utc
    sign = -1 if text[0] == "-" else 1
    return timezone(sign * timedelta(hours=int(text[1:3]), minutes=int(text[-2:])))


def _last(of_day: time, now: float, zone: tzinfo | None, either: Either) -> float:
    """The last such time that is not in the future."""
    shows = datetime.fromtimestamp(now, zone).replace(tzinfo=None)
    for days in range(3):  # that of today may be in the future in either sense
        on = shows.date() - timedelta(days)
        first, second = _both(on, of_day, zone)
        if first > second:  # never shown: it is past when a later time is shown
            past = [first, second] if datetime.combine(on, of_day) <= shows else []
        else:
            past = [each for each in (first, second) if each <= now]
        if past:
            return either(past[0], past[-1])
    raise ValueError("there is none")


def _at(on: date, of_day: time, zone: tzinfo | None, either: Either) -> float:
    return either(*_both(on, of_day, zone))


def _both(on: date, of_day: time, zone: tzinfo | None) -> tuple[float, float]:
    """What a wall clock can mean; twice the same, unless it is put back or forward then."""
    first, second = (
        datetime.combine(on, of_day.replace(fold=fold), zone).timestamp() for fold in (0, 1)
    )
    return first, second
