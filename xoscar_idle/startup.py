"""Activation without a change of code: waits for the program to import ``xoscar``.

``xoscar_idle.pth`` imports this module whenever Python starts with ``XOSCAR_IDLE_TIMEOUT`` or
``XOSCAR_SUPERVISE`` set, also for programs that have nothing to do with xoscar. It therefore
imports next to nothing.
"""

from __future__ import annotations

import sys

from . import gate
from .import_hook import HalfImported, ImportHook, warn

UNABLE = "xoscar_idle could not be activated; xoscar runs without it"


def activate() -> None:
    """Activate by environment; a failure is logged and spares the program's import.

    The import of xoscar may have been ours, of a module that needs it. Then that module is half
    imported, and what activation imports would be built upon the half: it waits for the whole.
    """
    while True:
        begun = _ours.begun
        if _ours.put_off(activate):
            return
        try:
            with _ours:
                from xoscar_idle.activation import activate_from_environment

                activate_from_environment()
            break
        except Exception:
            # Another thread may have imported one of ours meanwhile, which waits for xoscar, whose
            # import waits for us: Python then lets one of the two go on with half a module. Once
            # more, when it is whole.
            if _ours.begun == begun + 1:
                warn(UNABLE)
                break
    _ours.disarm()


def start() -> None:
    """Activate now if ``xoscar`` is imported already, or else once it will be."""
    if not gate.wanted():
        return
    _ours.arm()
    if "xoscar" in sys.modules:
        activate()
    else:
        _xoscar.arm()


def disarm() -> None:
    """Do not activate, whatever is imported: for the command, which looks at others."""
    _xoscar.disarm()
    _ours.disarm()


_ours = HalfImported("xoscar_idle")
_xoscar = ImportHook("xoscar", activate, UNABLE)
start()
