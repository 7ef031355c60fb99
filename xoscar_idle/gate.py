"""Which variables ask for activation. Every start of Python with one of them set imports this."""

from __future__ import annotations

import os

TYPE_CHECKING = False  # typing's own costs more to import than this whole module
if TYPE_CHECKING:
    from collections.abc import Mapping

IDLE_TIMEOUT = "XOSCAR_IDLE_TIMEOUT"
SUPERVISE = "XOSCAR_SUPERVISE"


def wanted(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether the environment asks for activation: one of the two is set, and not to ``off``."""
    return idle_closing_wanted(environ) or supervision_wanted(environ)


def idle_closing_wanted(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether the environment asks for idle closing."""
    return _asks(environ, IDLE_TIMEOUT)


def supervision_wanted(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether the environment asks for supervision; ``0`` is ``off`` here, too."""
    return _asks(environ, SUPERVISE) and environ[SUPERVISE].strip().strip("0") != ""


def _asks(environ: Mapping[str, str], name: str) -> bool:
    return environ.get(name, "").strip().lower() not in ("", "off")
