"""The beginning and the end of HTTP in a process."""

from __future__ import annotations

import logging
import sys

from .. import config
from ..locks import process_lock
from ..logs import one_line
from ..patching import Place
from ..supervision import beat, supervisor

__all__ = ["NAME", "PLACES", "RELIED_ON", "after_fork", "apply", "start", "stop"]

logger = logging.getLogger("xoscar_idle")

NAME = "HTTP"

PLACES: tuple[Place, ...] = ()

RELIED_ON: dict[str, tuple[str, ...] | None] = {}

_lock = process_lock()
_warned: set[str] = set()


def start() -> None:
    """Serve as soon as there is a main pool."""
    supervisor.tell_of_main_pools(_follow)
    _follow()


def apply(before: config.Settings) -> None:
    """The settings in force have changed."""
    _follow()


def stop() -> None:
    """Serve no more."""
    supervisor.tell_no_more(_follow)
    _of_server("end")


def after_fork() -> None:
    """In a forked child: the server is the parent's."""
    _of_server("after_fork")


def _of_server(name: str) -> None:
    """Call what there is only where something has been served: nothing is imported for it."""
    # Another thread may be importing it just now.
    function = getattr(sys.modules.get(f"{__package__}.server"), name, None)
    if function is not None:
        function()


def _follow() -> None:
    """Serve where the settings say, if there is something to tell."""
    address = config.current().health_address
    # A sub-pool inherits the address of its main pool, be there pools of its own in it or not.
    if address is None or beat.is_subpool() or not supervisor.running():
        if address is None:
            _of_server("end")
        return
    try:
        from . import server  # it imports what is optional, and takes a while

        with _lock:  # whoever changes it meanwhile comes after this
            server.follow(config.current().health_address)
    except ImportError as error:
        _warn(address, f"{one_line(error)}: pip install 'xoscar-idle[http]'")
    except OSError as error:
        _warn(address, f"{one_line(error)}; each process with main pools needs one of its own")
    except Exception as error:
        _warn(address, one_line(error))


def _warn(address: str, why: str) -> None:
    if why not in _warned:
        _warned.add(why)
        logger.warning("nothing is told over HTTP at XOSCAR_HEALTH_ADDRESS=%s: %s", address, why)
