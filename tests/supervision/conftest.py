from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

import xoscar_idle


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """In this process, and in those that it starts."""
    monkeypatch.setenv("XOSCAR_IDLE_TIMEOUT", "600")
    xoscar_idle.install(idle_timeout=600)
    yield
    xoscar_idle.uninstall()


@pytest.fixture
def acting(package: None, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Supervised, also with other settings, in this process and those that it starts."""

    def set_(**settings: object) -> None:
        for name, value in settings.items():
            monkeypatch.setenv(f"XOSCAR_{name.upper()}", str(value))
        xoscar_idle.configure(**settings)

    set_(supervise="act")
    return set_
