from __future__ import annotations

import logging
import resource

import pytest

from xoscar_idle.config import Settings, wanted


@pytest.mark.parametrize(
    ("value", "is_wanted"),
    [
        (None, False),
        ("", False),
        ("off", False),
        (" OFF ", False),
        ("0", True),
        ("30", True),
        ("nonsense", True),
    ],
)
def test_the_variable_decides_on_activation(value: str | None, is_wanted: bool) -> None:
    assert wanted({} if value is None else {"XOSCAR_IDLE_TIMEOUT": value}) is is_wanted


def test_environment() -> None:
    assert Settings.from_environment({}).idle_timeout == 30
    assert Settings.from_environment({"XOSCAR_IDLE_TIMEOUT": " 2.5 "}).idle_timeout == 2.5
    assert Settings.from_environment({"XOSCAR_IDLE_TIMEOUT": "0"}).idle_timeout == 0


@pytest.mark.parametrize("value", ["thirty", "-1", "nan", "inf", "1e999", "30s"])
def test_bad_variable_costs_one_warning(value: str, caplog: pytest.LogCaptureFixture) -> None:
    settings = Settings.from_environment({"XOSCAR_IDLE_TIMEOUT": value})
    assert settings.idle_timeout == 30
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    for part in ("XOSCAR_IDLE_TIMEOUT", repr(value), "30.0"):
        assert part in record.getMessage()


@pytest.mark.parametrize("value", [-1, float("nan"), float("inf"), "soon", None, True, [1]])
def test_bad_argument_raises(value: object) -> None:
    with pytest.raises(ValueError, match=r"idle_timeout must be .* got"):
        Settings().changed(idle_timeout=value)


def test_unknown_setting_raises_and_names_the_known() -> None:
    with pytest.raises(ValueError, match=r"unknown setting 'idle_timout'; there are idle_timeout"):
        Settings().changed(idle_timout=3)


def test_every_setting_has_its_variable() -> None:
    environment = {
        "XOSCAR_IDLE_TIMEOUT": "1",
        "XOSCAR_IDLE_TIMEOUT_NIXL": "2",
        "XOSCAR_CONNECT_TIMEOUT": "3",
        "XOSCAR_MAX_CONNECTIONS": "64",
        "XOSCAR_MAX_CONNECTION_AGE": "3600",
    }
    assert Settings.from_environment(environment) == Settings(
        idle_timeout=1,
        idle_timeout_nixl=2,
        connect_timeout=3,
        max_connections=64,
        max_connection_age=3600,
    )


@pytest.mark.parametrize(
    ("settings", "transport", "timeout"),
    [
        (Settings(), "socket", 30),
        (Settings(), "nixl", 600),
        (Settings(idle_timeout=900), "ucx", 900),
        (Settings(idle_timeout=0), "ucx", 0),
        (Settings(idle_timeout_ucx=5), "ucx", 5),
        (Settings(idle_timeout_dummy=0), "dummy", 0),
        (Settings(idle_timeout=7), "some-other", 7),
    ],
)
def test_timeouts_by_transport(settings: Settings, transport: str, timeout: float) -> None:
    assert settings.idle_timeout_of(transport) == timeout


def test_auto_is_half_of_the_descriptors() -> None:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert Settings(max_connections="auto").max_connections == soft // 2
    assert (
        Settings.from_environment({"XOSCAR_MAX_CONNECTIONS": "auto"}).max_connections == soft // 2
    )


@pytest.mark.parametrize("value", [-1, 1.5, "many", None, True])
def test_bad_number_of_connections(value: object) -> None:
    with pytest.raises(ValueError, match=r"max_connections must be .* got"):
        Settings(max_connections=value)  # type: ignore[arg-type]
