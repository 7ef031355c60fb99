from __future__ import annotations

import dataclasses
import logging
import resource
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xoscar_idle import config, values
from xoscar_idle.config import Settings, as_variable, variable
from xoscar_idle.gate import wanted

NAMES = [each.name for each in dataclasses.fields(Settings)]
WORDS = (
    "supervise",
    "supervise_dir",
    "capture_stderr",
    "call_timeout_except",
    "fault_errors",
    "restart_limit",
    "retry",
)
"""The settings that are no numbers."""

SWITCHES = [name for name in NAMES if name not in ("probe_timeout", *WORDS)]
"""The numbers that 0 switches off."""


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


@pytest.mark.parametrize(
    ("idle_timeout", "supervise", "is_wanted"),
    [
        ("", "observe", True),
        ("off", " OBSERVE ", True),
        ("off", "nonsense", True),
        ("off", "1", True),
        ("", "", False),
        ("", " OFF ", False),
        ("", "0", False),
        ("off", " 00 ", False),
        ("30", "off", True),
    ],
)
def test_so_does_that_of_supervision(idle_timeout: str, supervise: str, is_wanted: bool) -> None:
    environ = {"XOSCAR_IDLE_TIMEOUT": idle_timeout, "XOSCAR_SUPERVISE": supervise}
    assert wanted(environ) is is_wanted


@pytest.mark.parametrize(
    ("environ", "idle_timeout", "mode"),
    [
        ({"XOSCAR_SUPERVISE": "observe"}, 0, "observe"),
        ({"XOSCAR_SUPERVISE": "observe", "XOSCAR_IDLE_TIMEOUT": "off"}, 0, "observe"),
        ({"XOSCAR_SUPERVISE": "observe", "XOSCAR_IDLE_TIMEOUT": "5"}, 5, "observe"),
        ({"XOSCAR_SUPERVISE": "off"}, 30, "off"),
        ({"XOSCAR_SUPERVISE": "0"}, 30, "off"),
    ],
)
def test_who_asks_for_supervision_alone_gets_no_idle_closing(
    environ: dict[str, str], idle_timeout: float, mode: str
) -> None:
    settings = Settings.from_environment(environ)
    assert (settings.idle_timeout, settings.supervise) == (idle_timeout, mode)


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


@pytest.mark.parametrize(
    "value", [10**400, -(10**400), Decimal("1e400"), 10**5000, "9" * 5000], ids=values.shown
)
@pytest.mark.parametrize("name", SWITCHES)
def test_what_is_too_large_is_a_bad_value_like_any_other(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=rf"^{name} must be .* got .{{1,60}}$"):
        Settings().changed(**{name: value})


@pytest.mark.parametrize(
    "value",
    [
        "٣٠",
        "\uff11\uff12",
        "0x10",
        "1_000",
        "30s",
        "1,5",
        "30 40",
        "True",
        "None",
        b"30",
        1j,
        np.bool_(True),
        np.array([1, 2]),
    ],
)
@pytest.mark.parametrize("name", SWITCHES)
def test_what_is_no_number(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=rf"^{name} must be .* got"):
        Settings().changed(**{name: value})


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (" 30 ", 30),
        ("+2.5", 2.5),
        ("1e3", 1000),
        (np.int64(30), 30),
        (np.float32(2.5), 2.5),
        (Decimal("2.5"), 2.5),
        (Fraction(5, 2), 2.5),
        ("-0", 0),
        (-0.0, 0),
        (1e308, 1e308),
        ("off", 0),
        (" OFF ", 0),
    ],
)
def test_seconds_as_text_and_as_numbers(value: object, seconds: float) -> None:
    found = Settings().changed(connect_timeout=value).connect_timeout
    assert (type(found), found, str(found)) == (float, seconds, str(float(seconds)))
    if isinstance(value, str):
        assert Settings.from_environment({"XOSCAR_CONNECT_TIMEOUT": value}).connect_timeout == found


@pytest.mark.parametrize("value", [64, " 64 ", "064", np.int64(64), np.uint8(64)])
def test_counts_as_text_and_as_numbers(value: object) -> None:
    found = Settings().changed(max_connections=value).max_connections
    assert (type(found), found) == (int, 64)


@pytest.mark.parametrize("name", SWITCHES)
@pytest.mark.parametrize("value", ["off", "Off", "0"])
def test_off_is_off(name: str, value: str, caplog: pytest.LogCaptureFixture) -> None:
    assert getattr(Settings().changed(**{name: value}), name) == 0
    if name != "idle_timeout" or value == "0":
        assert getattr(Settings.from_environment({variable(name): value}), name) == 0
    assert not caplog.records


def test_what_cannot_be_off(caplog: pytest.LogCaptureFixture) -> None:
    assert Settings.from_environment({"XOSCAR_PROBE_TIMEOUT": "off"}).probe_timeout == 10
    (record,) = caplog.records
    assert "XOSCAR_PROBE_TIMEOUT='off' is ignored: it cannot be switched" in record.getMessage()
    with pytest.raises(ValueError, match="probe_timeout cannot be switched off"):
        Settings().changed(probe_timeout="off")


@pytest.mark.parametrize("name", [n for n in SWITCHES if n != "max_connections"])
@pytest.mark.parametrize(
    "value",
    [1e-9, 5e-324, 0.0009, "1e-400", Decimal("1e-400"), Fraction(1, 10**400)],
    ids=values.shown,
)
def test_a_time_too_short_for_a_timer(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=rf"^{name} must be 0 or at least 0.001, got"):
        Settings().changed(**{name: value})


@pytest.mark.parametrize("value", [0.5, 32767.5, 32768, 3000000000])
def test_a_keepalive_that_the_kernel_refuses(value: float) -> None:
    with pytest.raises(ValueError, match="must be 0, or from 1 to 32767, which Linux accepts"):
        Settings(keepalive_interval=value)


def test_the_longest_keepalive() -> None:
    assert Settings(keepalive_interval=32767).keepalive == 32767


@pytest.mark.parametrize(
    ("name", "holds"),
    [
        ("idle_timeout_socket", "the default, that of XOSCAR_IDLE_TIMEOUT, is used"),
        ("idle_timeout_ucx", "600, or XOSCAR_IDLE_TIMEOUT where that is longer or 0, is used"),
        ("idle_timeout_nixl", "600, or XOSCAR_IDLE_TIMEOUT where that is longer or 0, is used"),
        ("keepalive_interval", "a third of XOSCAR_IDLE_TIMEOUT, at most 30, is used"),
        ("call_timeout_except", "the default, no method, is used"),
        ("supervise", "it must be off, observe or act; the default, off, is used"),
        ("supervise_dir", "the default, a private directory of the user, is used"),
        ("capture_stderr", "it must be 1 or 0; the default, 0, is used"),
        ("restart_limit", "like 3/60; or off; the default, 3/60, is used"),
        ("retry", "the default, unsent, is used"),
        ("connect_timeout", "the default, 8.0, is used"),
    ],
)
def test_a_bad_variable_says_what_holds(
    name: str, holds: str, caplog: pytest.LogCaptureFixture
) -> None:
    found = Settings.from_environment({"XOSCAR_IDLE_TIMEOUT": "30", variable(name): "-"})
    assert found == Settings()
    (record,) = caplog.records
    assert holds in record.getMessage()


@pytest.mark.parametrize(
    "value", ["9" * 5000, "ä" * 5000, "'\"\n" * 5000, "\x00" * 5000], ids=values.shown
)
@pytest.mark.parametrize("name", NAMES)
def test_no_value_is_told_whole(name: str, value: str, caplog: pytest.LogCaptureFixture) -> None:
    Settings.from_environment({variable(name): value})
    for record in caplog.records:
        assert len(record.getMessage()) < 400
        assert "\n" not in record.getMessage()


@pytest.mark.parametrize(
    ("value", "stored"),
    [
        ("", ()),
        ("off", ()),
        ("launch_*,load", ("launch_*", "load")),
        (" launch_* , load ", ("launch_*", "load")),
        (["launch_*", "load"], ("launch_*", "load")),
        (("a?", "[!b]c", "[x-z]*"), ("a?", "[!b]c", "[x-z]*")),
        ({"load": 1}, ("load",)),
        ((), ()),
    ],
)
def test_patterns_of_methods(value: object, stored: tuple[str, ...]) -> None:
    assert Settings().changed(call_timeout_except=value).call_timeout_except == stored
    if isinstance(value, str):
        environment = {"XOSCAR_CALL_TIMEOUT_EXCEPT": value}
        assert Settings.from_environment(environment).call_timeout_except == stored


@pytest.mark.parametrize(
    "value", ["a,,b", ",", "a,", "load model", "30", "[a", "a.b", "a;b", None, 3, [3], [""], b"a"]
)
def test_bad_patterns_of_methods(value: object) -> None:
    with pytest.raises(ValueError, match=r"^call_timeout_except must be names of methods.* got"):
        Settings().changed(call_timeout_except=value)


@pytest.mark.parametrize(
    ("value", "stored"),
    [
        ("", ()),
        ("off", ()),
        (["OFF"], ()),
        ("0", ()),
        (["0"], ()),
        (0, ()),
        ((), ()),
        ("CUDA error*, *EngineDeadError*", ("CUDA error*", "*EngineDeadError*")),
        (["RuntimeError: device [0-7] lost", "?"], None),
        (["RuntimeError: device [0-7] lost"], ("RuntimeError: device [0-7] lost",)),
        ("30,0x10", ("30", "0x10")),
    ],
)
def test_patterns_of_errors(value: object, stored: tuple[str, ...] | None) -> None:
    if stored is None:
        with pytest.raises(ValueError, match=r"every error matches; '\?' is none, got"):
            Settings().changed(fault_errors=value)
    else:
        assert Settings().changed(fault_errors=value).fault_errors == stored


@pytest.mark.parametrize(
    "value",
    [
        *("a,,b", ",", "a,", "*", "a,?*", "a\nb", "\ud800", "ä" * 201),
        *(["a,b"], [3], [""], None, 3, True, b"a", np.array("a")),
    ],
    ids=values.shown,
)
def test_bad_patterns_of_errors(value: object) -> None:
    with pytest.raises(ValueError, match=r"^fault_errors must be patterns of errors.* got"):
        Settings().changed(fault_errors=value)


@pytest.mark.parametrize(
    ("value", "mode"),
    [
        ("observe", "observe"),
        (" OBSERVE\n", "observe"),
        ("Act", "act"),
        ("off", "off"),
        ("0", "off"),
        (0, "off"),
    ],
)
def test_what_is_supervised(value: object, mode: str) -> None:
    assert Settings().changed(supervise=value).supervise == mode


@pytest.mark.parametrize("value", ["1", "on", "acts", "", 1, True, False, None, b"off", []])
def test_no_such_supervision(value: object) -> None:
    with pytest.raises(ValueError, match=r"^supervise must be off, observe or act, got"):
        Settings().changed(supervise=value)


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        ("3/60", "3/60"),
        (" 03/60.0 ", "3/60"),
        ("0/0.5", "0/0.5"),
        ("10/1e3", "10/1000"),
        ("off", "off"),
        ("0", "off"),
        (0, "off"),
    ],
)
def test_a_limit(value: object, kept: str) -> None:
    assert Settings().changed(restart_limit=value).restart_limit == kept
    if kept != "off":
        times, period = values.times_per(kept)
        assert f"{times}/{period:g}" == kept


@pytest.mark.parametrize(
    "value",
    ["3", "x/60", "0/0", "-1/60", "3/", "/60", "3/60/60", "3/inf", "1.5/60", "", 3, None, ()],
)
def test_no_limit(value: object) -> None:
    with pytest.raises(ValueError, match=r"^restart_limit must be a whole number of times, a sl"):
        Settings().changed(restart_limit=value)


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        ("unsent", ("unsent",)),
        ("off", ("unsent",)),
        ((), ("unsent",)),
        ("*", ("unsent", "*")),
        (" rerank , unsent,create_*", ("unsent", "rerank", "create_*")),
        (["rerank"], ("unsent", "rerank")),
    ],
)
def test_what_is_tried_again(value: object, kept: tuple[str, ...]) -> None:
    assert Settings().changed(retry=value).retry == kept


@pytest.mark.parametrize("value", ["1", " ON ", "True", "yes", "01", 1, np.int8(1), np.bool_(True)])
def test_a_switch(value: object) -> None:
    assert Settings().changed(capture_stderr=value).capture_stderr is True
    assert Settings.from_environment({"XOSCAR_CAPTURE_STDERR": "No"}).capture_stderr is False
    assert Settings().changed(capture_stderr=False).capture_stderr is False


@pytest.mark.parametrize("value", ["2", "", "y", "1.0", 2, -1, 1.0, None, [1], np.array([1, 1])])
def test_no_switch(value: object) -> None:
    with pytest.raises(ValueError, match=r"^capture_stderr must be 1 or 0, got"):
        Settings().changed(capture_stderr=value)


def test_a_directory_need_not_be_there() -> None:
    for path in ("/no/such place", " /no/such place\n", Path("/no/such place")):
        assert Settings().changed(supervise_dir=path).supervise_dir == "/no/such place"
    assert Settings().changed(supervise_dir=None).supervise_dir is None


@pytest.mark.parametrize("value", ["", "here", "~/here", "/a\0b", "/\ud800", b"/a", 3, True, []])
def test_no_directory(value: object) -> None:
    with pytest.raises(ValueError, match=r"^supervise_dir must be the absolute path of a dir.*got"):
        Settings().changed(supervise_dir=value)


@pytest.mark.parametrize("value", ["off", " OFF", "0", 0])
def test_no_directory_at_all(value: object) -> None:
    with pytest.raises(ValueError, match=r"^supervise_dir cannot be switched off: it m"):
        Settings().changed(supervise_dir=value)


def test_an_advice_is_given_once(caplog: pytest.LogCaptureFixture) -> None:
    try:
        for connect_timeout in (3, 3, 4):
            config.use(Settings(server_idle_timeout=5, connect_timeout=connect_timeout))
        (record,) = caplog.records
        assert "server_idle_timeout=5 should be at least 1.5 times" in record.getMessage()
        config.use(Settings(server_idle_timeout=6))
        assert len(caplog.records) == 2, "another value is another matter"
    finally:
        config.reset()
    assert len(caplog.records) == 2


TIMES = st.one_of(
    st.just(0),
    st.just("off"),
    st.integers(1, 32767),
    st.floats(1, 32767),
    st.floats(1, 32767, width=32).map(np.float32),
    st.decimals(1, 32767),
    st.fractions(1, 32767),
    st.floats(1, 32767).map(lambda value: f" {value!r} "),
)
COUNTS = st.one_of(
    st.just("auto"), st.just(" AUTO "), st.just("off"), st.integers(0, 2**31 - 1).map(np.int64)
)
METHODS = st.lists(st.from_regex(r"[a-z_][a-z0-9_*?]*", fullmatch=True) | st.just("off"))
ERRORS = st.lists(
    st.text(
        st.characters(min_codepoint=32, max_codepoint=126, exclude_characters=","), max_size=20
    ).filter(lambda text: text.strip("*? "))
    | st.sampled_from(["off", "0"])
)
DIRECTORIES = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])).map(
    "/{}".format
)


@settings(deadline=None)
@given(st.data())
def test_a_child_parses_the_same_setting(data: Any) -> None:
    """What an argument means here, its variable means in a child."""
    name = data.draw(st.sampled_from(NAMES))
    value: object
    if name == "max_connections":
        value = data.draw(COUNTS)
    elif name == "call_timeout_except" or name == "retry":
        value = data.draw(st.one_of(METHODS, METHODS.map(tuple), METHODS.map(", ".join)))
    elif name == "restart_limit":
        value = data.draw(st.sampled_from(["off", 0, "0", "3/60", "0/0.5", " 10/1e3 ", "1/60.0"]))
    elif name == "fault_errors":
        value = data.draw(st.one_of(ERRORS, ERRORS.map(tuple), ERRORS.map(", ".join)))
    elif name == "supervise":
        value = data.draw(st.sampled_from(["off", "observe", " Observe ", "act", "0", 0]))
    elif name == "supervise_dir":
        value = data.draw(st.one_of(st.none(), DIRECTORIES, DIRECTORIES.map(Path)))
    elif name == "capture_stderr":
        value = data.draw(st.sampled_from([True, False, "1", "off", 1, np.int64(0)]))
    elif name == "probe_timeout":
        value = data.draw(TIMES.filter(lambda each: each not in (0, "off")))
    elif getattr(Settings(), name) is None:
        value = data.draw(st.one_of(st.none(), TIMES))
    else:
        value = data.draw(TIMES)
    text = as_variable(name, value)
    assert text is None or text == text.strip() != ""
    environ = {"XOSCAR_IDLE_TIMEOUT": "30"} | ({} if text is None else {variable(name): text})
    assert Settings.from_environment(environ) == Settings().changed(**{name: value})


def test_variables_for_children() -> None:
    assert as_variable("idle_timeout", 30) == "30"
    assert as_variable("idle_timeout", "off") == "0", "active there, too"
    assert as_variable("keepalive_interval", None) is None
    assert as_variable("max_connections", " AUTO ") == "auto"
    assert as_variable("call_timeout_except", ["launch_*", "load"]) == "launch_*,load"
    assert as_variable("call_timeout_except", ["auto"]) == "auto"
    assert as_variable("call_timeout_except", []) is None
    assert as_variable("supervise", " OBSERVE ") == "observe"
    assert as_variable("supervise", 0) == "off"
    assert as_variable("supervise_dir", Path("/here")) == "/here"
    assert as_variable("supervise_dir", None) is None
    assert as_variable("capture_stderr", True) == "1"
    assert as_variable("capture_stderr", "off") == "0"
    assert as_variable("fault_errors", ["CUDA error*", "off"]) == "CUDA error*,off"
    assert as_variable("fault_errors", "off") is None
    with pytest.raises(ValueError, match="unknown setting 'x'; there are idle_timeout"):
        as_variable("x", 1)
    with pytest.raises(ValueError, match=r"idle_timeout must be .* got None"):
        as_variable("idle_timeout", None)


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
    given: Any = "auto"
    assert Settings(max_connections=given).max_connections == soft // 2
    assert (
        Settings.from_environment({"XOSCAR_MAX_CONNECTIONS": "auto"}).max_connections == soft // 2
    )


@pytest.mark.parametrize("value", [-1, 1.5, "many", None, True])
def test_bad_number_of_connections(value: object) -> None:
    with pytest.raises(ValueError, match=r"max_connections must be .* got"):
        Settings(max_connections=value)  # type: ignore[arg-type]
