"""Numbers in what processes tell, of whatever version they are."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


def figure(told: Mapping[str, Any] | None, name: str) -> float | None:
    """A number that a process tells; None where it, or its version, does not."""
    return _number(None if told is None else told.get(name))


def by_reason(told: Mapping[str, Any] | None, name: str) -> dict[str, float]:
    """The numbers under a name, by what each of them is called there."""
    value = None if told is None else told.get(name)
    each = value.items() if isinstance(value, Mapping) else ()
    return {str(reason): n for reason, count in each if (n := _number(count)) is not None}


def total(told: Mapping[str, Any] | None, name: str) -> float | None:
    """The sum of these; None where they are not told."""
    if told is None or not isinstance(told.get(name), Mapping):
        return None
    return sum(by_reason(told, name).values())


def _number(value: object) -> float | None:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, int) else None
