from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, NoReturn

import pytest

import xoscar_idle
from xoscar_idle import config, patching
from xoscar_idle.connection.caller import ActorCaller
from xoscar_idle.connection.cap import Cap

from .support import leaks
from .support.memory import Network, VirtualTimeLoop

Run = Callable[[Callable[..., Coroutine[Any, Any, None]]], None]


@pytest.fixture(autouse=True)
def leak_guard(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An integration test leaves descriptors, threads, children and tasks as they were.

    Any other starts no process: ``make quick`` runs it.
    """
    if request.node.get_closest_marker("integration") is None:
        monkeypatch.setattr(subprocess, "Popen", _unmarked)
        yield
        return
    before = leaks.state()
    yield
    assert not leaks.left_since(before)


def _unmarked(*_: object, **__: object) -> NoReturn:
    pytest.fail("a test that starts a process is to be marked: integration")


@pytest.fixture
def active() -> Iterator[None]:
    """What the test installs is uninstalled."""
    yield
    xoscar_idle.uninstall()


@pytest.fixture
def idle_timeout() -> float:
    """The timeout of tests in virtual time, in seconds."""
    return 30.0


@pytest.fixture
def settings(idle_timeout: float) -> config.Settings:
    """The settings of tests in virtual time."""
    return config.Settings(idle_timeout=idle_timeout)


@pytest.fixture
def virtual_time(
    settings: config.Settings, monkeypatch: pytest.MonkeyPatch
) -> Iterator[VirtualTimeLoop]:
    """A loop in virtual time, with the settings in force."""
    monkeypatch.setattr(patching, "why_inactive", lambda: "")
    before = config.current()
    config.use(settings)
    loop = VirtualTimeLoop()
    yield loop
    config.use(before)
    if not loop.is_closed():
        loop.close()


@pytest.fixture
def in_virtual_time(virtual_time: VirtualTimeLoop) -> Run:
    """Run ``test(caller, network)`` in virtual time, with the invariants checked all along."""

    def run(test: Callable[..., Coroutine[Any, Any, None]]) -> None:
        errors: list[Any] = []
        virtual_time.set_exception_handler(lambda _, context: errors.append(context))

        async def main() -> None:
            caller = ActorCaller(clock=virtual_time.time, cap=Cap(config.current().max_connections))
            try:
                await asyncio.wait_for(test(caller, Network()), 1e6)
                caller._validate()
            finally:
                await caller.stop()
            assert asyncio.all_tasks() == {asyncio.current_task()}
            caller._validate()

        virtual_time.run_until_complete(main())
        virtual_time.close()
        assert not errors

    return run


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
