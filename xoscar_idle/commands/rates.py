"""What happened between two looks, per second."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

from ..telemetry.snapshot import Snapshot
from .figures import figure, total


@dataclass(frozen=True)
class Look:
    """Processes at one moment."""

    snapshots: Sequence[Snapshot] = ()
    when: float = 0.0
    """In seconds, by a clock that nobody sets."""


@dataclass(frozen=True)
class Rates:
    """Of one process, each per second; None: not known."""

    opened: float | None = None
    closed: float | None = None
    calls: float | None = None


def rates(before: Look | None, now: Look) -> Mapping[Hashable, Rates]:
    """Those of each process that both looks have seen, by :func:`identity`."""
    if before is None or now.when <= before.when:
        return {}
    seconds = now.when - before.when
    earlier = {identity(each): each.statistics for each in before.snapshots}
    return {
        key: Rates(
            _rate(figure(then, "opened"), figure(each.statistics, "opened"), seconds),
            _rate(total(then, "closed"), total(each.statistics, "closed"), seconds),
            _rate(figure(then, "calls"), figure(each.statistics, "calls"), seconds),
        )
        for each in now.snapshots
        if (key := identity(each)) is not None and (then := earlier.get(key)) is not None
    }


def identity(one: Snapshot) -> Hashable:
    """What tells a process apart from all others, as far as is known; None: nothing does."""
    return one.process or (None if one.pid is None else (one.pid, one.address))


def _rate(before: float | None, now: float | None, seconds: float) -> float | None:
    if before is None or now is None or now < before:  # another process has got its number
        return None
    return (now - before) / seconds
