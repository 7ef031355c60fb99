"""Which variables ask for activation. Every start of Python with one of them set imports this."""

from __future__ import annotations

import os

TYPE_CHECKING = False  # typing's own costs more to import than this whole module
if TYPE_CHECKING:
    from collections.abc import Mapping

IDLE_TIMEOUT = "XOSCAR_IDLE_TIMEOUT"


def wanted(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether the environment asks for activation: the variable is set, and not to ``off``."""
    return environ.get(IDLE_TIMEOUT, "").strip().lower() not in ("", "off")
