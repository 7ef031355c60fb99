"""Whether calls can come to a process, judged from what its pools are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..supervision.state import PoolInfo, State


@dataclass(frozen=True)
class MainInfo:
    """A main pool at one moment, in values that JSON has."""

    address: str
    state: str
    """``healthy``, or ``busy`` where its event loop does not answer."""
    loop_lag: float
    """Seconds that its loop took to answer last, or has not answered now."""
    doing: str
    """The stack of its loop's thread while it is busy, the innermost call first."""


def reasons(
    mains: Sequence[MainInfo], pools: Sequence[PoolInfo], needed: int | None = None
) -> list[str]:
    """Why calls should not come; none: they can.

    Parameters
    ----------
    needed
        How many sub-pools have to serve. None: all of them.
    """
    found = [
        f"main pool {each.address} is busy: its event loop has not answered for "
        f"{each.loop_lag:.1f} s"
        for each in mains
        if each.state == State.BUSY
    ]
    if not mains:
        found.append("there is no main pool any more")
    serving = sum(each.serves for each in pools)
    if serving < (len(pools) if needed is None else needed):
        if needed is not None:
            found.append(f"{serving} of {len(pools)} sub-pools serve, {needed} are needed")
        found += [_told(each) for each in pools if not each.serves]
    return found


def _told(pool: PoolInfo) -> str:
    reason = pool.reason or pool.last_failure
    why = f": {reason}" if reason else ""
    return f"pool {pool.address} is {pool.state}{why}"


def status(pool: PoolInfo) -> str:
    """In vLLM's words: ``healthy``, ``unhealthy`` or ``dead``."""
    if pool.serves:
        return "healthy"
    return "dead" if pool.state == State.DEAD else "unhealthy"
