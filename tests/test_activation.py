"""Putting the parts in xoscar's place, and taking them out again."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from xoscar.backends.context import IndigenActorContext
from xoscar.backends.core import ActorCaller
from xoscar.backends.pool import AbstractActorPool
from xoscar.backends.router import Router

import xoscar_idle
from xoscar_idle import activation, config, patching

from .support.environment import environment
from .support.processes import run

VARIABLE = "XOSCAR_IDLE_TIMEOUT"
SUPERVISE = "XOSCAR_SUPERVISE"
TARGETS = (ActorCaller, Router, IndigenActorContext)


@pytest.fixture(autouse=True)
def inactive_before_and_after(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in (VARIABLE, SUPERVISE):
        monkeypatch.delenv(name, raising=False)
    assert not xoscar_idle.is_active()
    before = [dict(vars(target)) for target in TARGETS]
    yield
    xoscar_idle.uninstall()
    assert [dict(vars(target)) for target in TARGETS] == before


def test_install_sets_the_variable_for_children_and_uninstall_restores_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert xoscar_idle.install(idle_timeout=12.5).idle_timeout == 12.5
    assert os.environ[VARIABLE] == "12.5"
    xoscar_idle.uninstall()
    assert VARIABLE not in os.environ
    monkeypatch.setenv(VARIABLE, "off")
    assert xoscar_idle.install().idle_timeout == 30
    assert os.environ[VARIABLE] == "30"
    xoscar_idle.uninstall()
    assert os.environ[VARIABLE] == "off"
    xoscar_idle.uninstall()


def test_second_install_changes_the_settings_and_patches_nothing_twice() -> None:
    xoscar_idle.install(idle_timeout=5)
    patched = [dict(vars(target)) for target in TARGETS]
    assert xoscar_idle.install().idle_timeout == 5
    assert xoscar_idle.install(idle_timeout=6).idle_timeout == 6
    assert [dict(vars(target)) for target in TARGETS] == patched


def test_argument_wins_over_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "3")
    assert xoscar_idle.install().idle_timeout == 3
    xoscar_idle.uninstall()
    assert xoscar_idle.install(idle_timeout=4).idle_timeout == 4


@pytest.mark.parametrize("changes", [{"idle_timeout": -1}, {"idle_timeuot": 1}])
def test_bad_argument_changes_nothing(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="idle_time"):
        xoscar_idle.install(**changes)
    assert not xoscar_idle.is_active()


def test_unknown_version_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda _: "0.13.0")
    with pytest.raises(xoscar_idle.UnsupportedXoscar, match=r"0\.13\.0.*<0\.13,>=0\.11"):
        xoscar_idle.install()
    monkeypatch.setenv(VARIABLE, "30")
    activation.activate_from_environment()
    assert not xoscar_idle.is_active()
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "0.13.0" in record.getMessage()


@pytest.mark.parametrize("version", ["0.11.0", "0.12.2", "0.12.2+3.g1234567.dirty", "0.12.3rc1"])
def test_known_versions(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda _: version)
    xoscar_idle.install()


@pytest.mark.parametrize(
    ("target", "name"),
    [(Router, "get_client"), (Router, "_create_client"), (IndigenActorContext, "copy_to_buffers")],
)
def test_changed_internals_are_left_alone(
    monkeypatch: pytest.MonkeyPatch, target: type, name: str
) -> None:
    def changed(self: Any, something: Any) -> None: ...

    monkeypatch.setattr(target, name, changed)
    with pytest.raises(xoscar_idle.UnsupportedXoscar, match=f"{target.__name__}.{name} is not"):
        xoscar_idle.install()
    assert not xoscar_idle.is_active()
    monkeypatch.undo()


def test_a_part_that_this_xoscar_cannot_have_is_off_and_the_others_are_not(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def changed(self: Any, something: Any) -> None: ...

    monkeypatch.setattr(AbstractActorPool, "handle_control_command", changed)
    xoscar_idle.install()
    assert xoscar_idle.is_active()
    assert AbstractActorPool.handle_control_command is changed
    (record,) = [r for r in caplog.records if r.levelno >= logging.WARNING]
    told = record.getMessage()
    assert told.startswith("telemetry is off with xoscar ")
    assert "AbstractActorPool.handle_control_command is not what xoscar" in told
    xoscar_idle.uninstall()
    assert AbstractActorPool.handle_control_command is changed


def test_what_fails_while_places_are_replaced_leaves_no_part_begun(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    connection, _, telemetry, _ = activation.parts()
    stopped: list[str] = []
    real = connection.stop

    def stop() -> None:
        stopped.append(connection.NAME)
        real()

    monkeypatch.setattr(connection, "stop", stop)

    def broken(_: Any) -> Any:
        raise OSError("broken")

    (place,) = telemetry.PLACES
    monkeypatch.setattr(telemetry, "PLACES", (dataclasses.replace(place, replace=broken),))
    with pytest.raises(OSError, match="broken"):
        xoscar_idle.install()
    assert stopped == [connection.NAME]
    assert not xoscar_idle.is_active()


def test_no_attribute_is_replaced_by_two_parts_and_each_row_has_a_reason() -> None:
    places = [place for part in activation.parts() for place in part.PLACES]
    assert len({place.path for place in places}) == len(places) > 10
    assert all(place.reason for place in places)


def test_variable_off_or_unset_activates_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    for value in ("off", "", " OFF"):
        monkeypatch.setenv(VARIABLE, value)
        activation.activate_from_environment()
        assert not xoscar_idle.is_active()


@pytest.mark.parametrize("idle_timeout", [None, "", "off", " OFF"])
def test_that_of_supervision_alone_activates_without_idle_closing(
    monkeypatch: pytest.MonkeyPatch, idle_timeout: str | None
) -> None:
    monkeypatch.setenv(SUPERVISE, " Observe ")
    if idle_timeout is not None:
        monkeypatch.setenv(VARIABLE, idle_timeout)
    activation.activate_from_environment()
    assert xoscar_idle.is_active()
    assert (config.current().idle_timeout, config.current().supervise) == (0, "observe")
    assert config.Settings.from_environment() == config.current(), "so it is in children"


@pytest.mark.parametrize("value", ["off", "", " OFF", "0"])
def test_supervision_that_is_off_activates_nothing(
    monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setattr(patching, "_prevented", "")
    monkeypatch.setenv(SUPERVISE, value)
    activation.activate_from_environment()
    assert not xoscar_idle.is_active()
    told = patching.why_inactive()
    assert told == f"{VARIABLE} is not set, or off, and so is {SUPERVISE}"


@pytest.mark.parametrize("value", ["1", "on", "acts", "obsevre"])
def test_a_bad_value_of_supervision_activates_with_its_default(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, value: str
) -> None:
    monkeypatch.setenv(SUPERVISE, value)
    activation.activate_from_environment()
    assert xoscar_idle.is_active()
    assert (config.current().idle_timeout, config.current().supervise) == (0, "off")
    (record,) = [r for r in caplog.records if r.levelno >= logging.WARNING]
    expected = f"{SUPERVISE}={value!r} is ignored: it must be off, observe or act; the default, off"
    assert record.getMessage().startswith(expected)


def test_supervision_in_code_holds_for_children(monkeypatch: pytest.MonkeyPatch) -> None:
    before = dict(os.environ)
    assert xoscar_idle.install(supervise="observe").idle_timeout == 30, "as for any install()"
    assert (os.environ[VARIABLE], os.environ[SUPERVISE]) == ("30", "observe")
    xoscar_idle.configure(supervise="off", supervise_dir=Path("/here"), capture_stderr=True)
    assert os.environ[SUPERVISE] == "off"
    assert os.environ["XOSCAR_SUPERVISE_DIR"] == "/here"
    assert os.environ["XOSCAR_CAPTURE_STDERR"] == "1"
    assert config.Settings.from_environment() == config.current()
    with pytest.raises(ValueError, match=r"^supervise must be off, observe or act, got 'acts'$"):
        xoscar_idle.configure(supervise="acts")
    assert os.environ[SUPERVISE] == config.current().supervise == "off"
    xoscar_idle.uninstall()
    assert dict(os.environ) == before


def test_bad_variable_activates_with_the_default(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(VARIABLE, "half a minute")
    activation.activate_from_environment()
    assert xoscar_idle.is_active()
    assert config.current().idle_timeout == 30
    (record,) = [r for r in caplog.records if r.levelno >= logging.WARNING]
    for part in (VARIABLE, "half a minute", "30"):
        assert part in record.getMessage()


@pytest.mark.integration
def test_a_process_in_which_activation_failed_tells_why() -> None:
    program = """
import importlib.metadata, os
importlib.metadata.version = lambda name: "0.13.0"
import xoscar, xoscar_idle.telemetry.snapshot
print(xoscar_idle.telemetry.snapshot.ask(os.getpid()).note)
xoscar_idle.uninstall()
print(xoscar_idle.telemetry.snapshot.ask(os.getpid()))
"""
    note, asked_later = python(program, **{VARIABLE: "5", "XOSCAR_IDLE_MONITOR": "1"}).splitlines()
    assert note.startswith("xoscar-idle is not active in it: xoscar 0.13.0 was left as it is: ")
    assert asked_later == "None"


def test_children_get_what_is_set_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XOSCAR_KEEPALIVE_INTERVAL", "7")
    before = dict(os.environ)
    xoscar_idle.install(
        idle_timeout=1 / 3,
        keepalive_interval=None,
        max_connections="AUTO",
        connect_timeout="off",
        call_timeout_except=["load", "launch_*"],
    )
    assert "XOSCAR_KEEPALIVE_INTERVAL" not in os.environ
    given = {
        name: os.environ[f"XOSCAR_{name}"]
        for name in ("IDLE_TIMEOUT", "MAX_CONNECTIONS", "CONNECT_TIMEOUT", "CALL_TIMEOUT_EXCEPT")
    }
    assert given == {
        "IDLE_TIMEOUT": "0.3333333333333333",
        "MAX_CONNECTIONS": "auto",
        "CONNECT_TIMEOUT": "0",
        "CALL_TIMEOUT_EXCEPT": "load,launch_*",
    }
    assert config.Settings.from_environment() == config.current()
    xoscar_idle.uninstall()
    assert dict(os.environ) == before


@pytest.mark.integration
def test_lines_of_ours_are_shown_where_the_variable_asks_for_them() -> None:
    program = "import xoscar, xoscar_idle; xoscar_idle.configure(idle_timeout=7)"
    env = environment(**{VARIABLE: "5", "XOSCAR_IDLE_LOG": "info"})
    done = run(sys.executable, "-c", program, env=env)
    first, second = done.stderr.splitlines()
    assert "INFO active with Settings(idle_timeout=5" in first
    assert "INFO reconfigured with Settings(idle_timeout=7" in second


def python(program: str, **settings: str) -> str:
    return run(sys.executable, "-c", program, env=environment(**settings)).stdout.strip()


@pytest.mark.integration
def test_by_variable_alone() -> None:
    program = (
        "import xoscar.backends.router, xoscar_idle as i;"
        "print(i.is_active(), i.settings().idle_timeout, i.settings().supervise)"
    )
    assert python(program, XOSCAR_IDLE_TIMEOUT="9") == "True 9.0 off"
    assert python(program, XOSCAR_SUPERVISE="observe") == "True 0.0 observe"
    both_off = {VARIABLE: "off", SUPERVISE: "0"}
    assert python(program) == python(program, **both_off) == "False 30.0 off"


@pytest.mark.integration
def test_install_before_xoscar_is_imported_with_the_variable_set() -> None:
    program = (
        "import xoscar_idle as i; s = i.install(idle_timeout=4); import xoscar;"
        "from xoscar.backends.core import ActorCaller;"
        "i.uninstall(); print(s.idle_timeout, 'call' in vars(ActorCaller))"
    )
    assert python(program, XOSCAR_IDLE_TIMEOUT="9") == "4.0 False"


@pytest.mark.integration
def test_by_command() -> None:
    child = f"import xoscar, xoscar_idle as i, os; print(i.is_active(), os.environ['{VARIABLE}'])"
    for options, expected in ([], "True 30"), (["--idle-timeout", "2.5"], "True 2.5"):
        command = [sys.executable, "-m", "xoscar_idle", "run", *options, "--", sys.executable]
        program = f"import subprocess; subprocess.run({[*command, '-c', child]!r}, check=True)"
        assert python(program) == expected


@pytest.mark.integration
@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (["--idle-timeout", "soon", "--", "true"], 2, "idle_timeout must be a number of seconds"),
        (["--", "no-such-command"], 127, "no-such-command cannot be run: No such file"),
        ([], 2, "Missing argument"),
    ],
)
def test_bad_command_line(arguments: list[str], status: int, says: str) -> None:
    done = run(sys.executable, "-m", "xoscar_idle", "run", *arguments, status=status)
    assert says in done.stderr
    assert "Traceback" not in done.stderr
