from __future__ import annotations

from collections.abc import Iterator

import pytest

import xoscar_idle


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """In this process, and in those that it starts."""
    monkeypatch.setenv("XOSCAR_IDLE_TIMEOUT", "600")
    xoscar_idle.install(idle_timeout=600)
    yield
    xoscar_idle.uninstall()
