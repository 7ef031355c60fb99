"""Close the idle connections of xoscar programs, and tell what their sub-pools died of.

With the package installed and ``XOSCAR_IDLE_TIMEOUT`` set, every Python process that imports
xoscar closes connections that nobody has used for that many seconds, and opens them again on the
next call. The same in code: ``xoscar_idle.install(idle_timeout=30)``. ``XOSCAR_SUPERVISE=observe``
follows what sub-pools do, ``act`` also restarts what hangs; set alone, it activates without idle
closing.
"""

from __future__ import annotations

TYPE_CHECKING = False  # importing typing would cost each start of Python some milliseconds
if TYPE_CHECKING:
    from .activation import configure, install, uninstall
    from .config import Settings
    from .config import current as settings
    from .connection.deadlines import CallTimeout, deadline
    from .connection.probe import ping
    from .connection.statistics import (
        AcceptedInfo,
        ConnectionInfo,
        Statistics,
        accepted,
        connections,
        statistics,
    )
    from .patching import UnsupportedXoscar, is_active
    from .supervision.crash import PoolCrashed, PoolUnavailable
    from .supervision.instructions import Applied, InstructionFailed, InstructionRefused
    from .supervision.pools import pools
    from .supervision.state import PoolInfo
    from .supervision.steering import apply

__version__ = "0.2.0"

__all__ = [
    "AcceptedInfo",
    "Applied",
    "CallTimeout",
    "ConnectionInfo",
    "InstructionFailed",
    "InstructionRefused",
    "PoolCrashed",
    "PoolInfo",
    "PoolUnavailable",
    "Settings",
    "Statistics",
    "UnsupportedXoscar",
    "accepted",
    "apply",
    "configure",
    "connections",
    "deadline",
    "install",
    "is_active",
    "ping",
    "pools",
    "settings",
    "statistics",
    "uninstall",
]

# Where the public names live. They are imported on first use: the package itself is imported at
# every Python start with the variable set, xoscar or not.
_HOMES = {
    "AcceptedInfo": "connection.statistics:AcceptedInfo",
    "Applied": "supervision.instructions:Applied",
    "CallTimeout": "connection.deadlines:CallTimeout",
    "ConnectionInfo": "connection.statistics:ConnectionInfo",
    "InstructionFailed": "supervision.instructions:InstructionFailed",
    "InstructionRefused": "supervision.instructions:InstructionRefused",
    "PoolCrashed": "supervision.crash:PoolCrashed",
    "PoolInfo": "supervision.state:PoolInfo",
    "PoolUnavailable": "supervision.crash:PoolUnavailable",
    "Settings": "config:Settings",
    "Statistics": "connection.statistics:Statistics",
    "UnsupportedXoscar": "patching:UnsupportedXoscar",
    "accepted": "connection.statistics:accepted",
    "apply": "supervision.steering:apply",
    "configure": "activation:configure",
    "connections": "connection.statistics:connections",
    "deadline": "connection.deadlines:deadline",
    "install": "activation:install",
    "is_active": "patching:is_active",
    "ping": "connection.probe:ping",
    "pools": "supervision.pools:pools",
    "settings": "config:current",
    "statistics": "connection.statistics:statistics",
    "uninstall": "activation:uninstall",
}

_NEED_XOSCAR = (
    "connection.deadlines",
    "connection.probe",
    "supervision.crash",
    "supervision.steering",
)


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    module, _, attribute = _HOMES[name].partition(":")
    if module in _NEED_XOSCAR:
        # Whole, and before anything of ours is locked: another thread may be importing it.
        import_module("xoscar")
    found: object = getattr(import_module(f"{__name__}.{module}"), attribute)
    return found
