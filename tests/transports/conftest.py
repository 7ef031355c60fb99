from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

import xoscar_idle


@pytest.fixture(autouse=True)
def without_hardware(monkeypatch: pytest.MonkeyPatch) -> None:
    """UCX goes over TCP, unless somebody who has better hardware says otherwise."""
    monkeypatch.setenv("UCX_TLS", os.environ.get("UCX_TLS", "tcp,self"))
    # Who comes back listens where the killed one did; the kernel may keep its sockets for a minute.
    monkeypatch.setenv("UCX_CM_REUSEADDR", "y")


@pytest.fixture(autouse=True)
def active() -> Iterator[None]:
    """Idle closing in this process and in the pools that it starts."""
    xoscar_idle.install(idle_timeout=600)
    yield
    xoscar_idle.uninstall()
