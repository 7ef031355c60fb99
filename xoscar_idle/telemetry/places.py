"""The place of xoscar that telemetry takes."""

from __future__ import annotations

from ..patching import Place
from . import pool_query

PLACES = (
    Place(
        "xoscar.backends.pool:AbstractActorPool",
        "handle_control_command",
        "answers xoscar-idle, which asks over xoscar itself",
        pool_query.answer,
        ("self", "message"),
    ),
)

RELIED_ON: dict[str, tuple[str, ...] | None] = {}
"""What is used of xoscar without being replaced."""
