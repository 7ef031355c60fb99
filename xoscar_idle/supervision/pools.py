"""The sub-pools of this process, for its program and for whoever looks at it."""

from __future__ import annotations

from ..patching import is_active
from .state import PoolInfo

# What knows them imports xoscar; where nothing else has done that, there are none.


def pools() -> list[PoolInfo]:
    """The sub-pools of the main pools in this process.

    It can be called from any thread, and anywhere; where xoscar is not extended there are none.
    """
    if not is_active():
        return []
    from . import supervisor

    return [info for each in supervisor.everywhere() for info in each.pools()]


def crashes() -> dict[str, int]:
    """How many sub-pools of this process have crashed so far, by cause."""
    if not is_active():
        return {}
    from . import supervisor

    return dict(supervisor.crashes)
