from __future__ import annotations

import dataclasses
import json
import logging
import resource
import subprocess
import sys
import tempfile
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

from .support.environment import environment
from .support.processes import line, run, started
from .support.waiting import BOUND

NAMES = [each.name for each in dataclasses.fields(Settings)]
WORDS = (
    "call_metrics",
    "supervise",
    "supervise_dir",
    "capture_stderr",
    "call_timeout_except",
    "fault_errors",
    "restart_limit",
    "retry",
    "health_address",
    "health_token",
    "exit_on_degraded",
    "watchdog",
)
"""The settings that are no numbers."""

SWITCHES = [name for name in NAMES if name not in ("probe_timeout", *WORDS)]
"""The numbers that 0 switches off."""

COUNTED = ("max_connections", "history")
"""Those that are no times."""


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


@pytest.mark.parametrize("name", [n for n in SWITCHES if n not in COUNTED])
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
        ("health_address", "absolute path of a socket; off: none; the default, none, is used"),
        ("health_token", "characters of ASCII, without blanks; the default, none, is used"),
        ("exit_on_degraded", "it must be 1 or 0; the default, 0, is used"),
        ("watchdog", "it must be 1 or 0; the default, 0, is used"),
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


ON_OR_OFF = ("capture_stderr", "exit_on_degraded", "watchdog")


@pytest.mark.parametrize("name", ON_OR_OFF)
@pytest.mark.parametrize("value", ["1", " ON ", "True", "yes", "01", 1, np.int8(1), np.bool_(True)])
def test_a_switch(name: str, value: object) -> None:
    assert getattr(Settings().changed(**{name: value}), name) is True
    assert getattr(Settings.from_environment({variable(name): "No"}), name) is False
    assert getattr(Settings().changed(**{name: False}), name) is False


@pytest.mark.parametrize("name", ON_OR_OFF)
@pytest.mark.parametrize("value", ["2", "", "y", "1.0", 2, -1, 1.0, None, [1], np.array([1, 1])])
def test_no_switch(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=rf"^{name} must be 1 or 0, got"):
        Settings().changed(**{name: value})


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


@pytest.mark.parametrize(
    ("value", "stored"),
    [
        *((value, None) for value in (None, "off", " OFF ", "0", 0)),
        ("127.0.0.1:9998", "127.0.0.1:9998"),
        (" 127.0.0.1:09998\n", "127.0.0.1:9998"),
        ("localhost:0", "localhost:0"),
        ("[::1]:65535", "[::1]:65535"),
        ("node-1.example.com:80", "node-1.example.com:80"),
        ("/run/xoscar/health.sock", "/run/xoscar/health.sock"),
        (Path("/run/a b:1"), "/run/a b:1"),
    ],
)
def test_where_a_server_listens(value: object, stored: str | None) -> None:
    assert Settings().changed(health_address=value).health_address == stored


@pytest.mark.parametrize(
    "value",
    [
        *("", "9998", ":9998", "localhost", "localhost:", "localhost:http", "localhost:65536"),
        *("localhost:-1", "localhost:1.0", "http://localhost:9998", "localhost:9998/", "::1:80"),
        *("[::1]", "user@localhost:80", "local host:80", "*:80", "./health.sock", "~/health.sock"),
        *("/a\0b", "/\ud800", "localhost:٣٠", "hôte:80", "a\nb:80"),
        *(b"localhost:80", 9998, True, ("localhost", 80), ["localhost:80"]),
    ],
    ids=values.shown,
)
def test_where_no_server_can_listen(value: object) -> None:
    with pytest.raises(ValueError, match=r"^health_address must be host:port, or the abs.* got"):
        Settings().changed(health_address=value)


SECRET = "sesame-0123456789"


@pytest.mark.parametrize(
    ("value", "stored"),
    [
        *((value, None) for value in (None, "off", " OFF ", "0", 0)),
        (SECRET, SECRET),
        (f" {SECRET}\n", SECRET),
        ("!" * 8, "!" * 8),
        ("~" * 1000, "~" * 1000),
        ("Bearer,'\"\\$`", "Bearer,'\"\\$`"),
    ],
)
def test_a_secret(value: object, stored: str | None) -> None:
    assert Settings().changed(health_token=value).health_token == stored


BAD_SECRETS = [
    "",
    "secret7",
    "sesame open now",
    "sesame\nopen",
    "sesame\x7fopen",
    "sésame-ouvre-toi",
]


@pytest.mark.parametrize(
    "value",
    [*BAD_SECRETS, "x" * 1001, SECRET.encode(), 12345678, True, [SECRET], (SECRET,), {SECRET: 1}],
    ids=range(len(BAD_SECRETS) + 7),
)
def test_a_bad_secret_is_not_told(value: object, caplog: pytest.LogCaptureFixture) -> None:
    """Neither in the error nor in the warning: it may be the right one with a blank too much."""
    text = r"health_token must be 8 to 1000 visible characters of ASCII, without blanks, got \*{8}"
    with pytest.raises(ValueError, match=rf"^{text}$"):
        Settings().changed(health_token=value)
    with pytest.raises(ValueError, match=rf"^{text}$"):
        as_variable("health_token", value)
    if isinstance(value, str) and value:
        assert Settings.from_environment({"XOSCAR_HEALTH_TOKEN": value}) == Settings()
        (record,) = caplog.records
        assert record.getMessage().startswith("XOSCAR_HEALTH_TOKEN=******** is ignored: it must")
        assert value not in record.getMessage()
        assert repr(value)[1:-1] not in record.getMessage()


def test_a_secret_is_not_shown() -> None:
    given = Settings(health_token=SECRET, idle_timeout=7)
    for each in (given, given.without_secrets()):
        for shown in (repr(each), str(each), f"{each}"):
            assert SECRET not in shown
            assert "idle_timeout=7" in shown
    hidden = given.without_secrets()
    assert SECRET not in repr(dataclasses.asdict(hidden))
    assert hidden.health_token == config.HIDDEN
    assert dataclasses.replace(hidden, health_token=None) == dataclasses.replace(
        given, health_token=None
    )
    assert Settings().without_secrets() == Settings(), "that there is none is no secret"
    assert given.health_token == SECRET
    assert given != Settings(idle_timeout=7), "another secret is another setting"


def test_which_settings_are_secret() -> None:
    assert [each.name for each in dataclasses.fields(Settings) if each.metadata["secret"]] == [
        "health_token"
    ]


INSTALLS = """
import json, logging, os, subprocess, sys
import xoscar_idle

secret, other = sys.argv[1:]
show = [sys.executable, "-c", "import os; print(os.environ.get('XOSCAR_HEALTH_TOKEN'))"]

def child():
    return subprocess.check_output(show, text=True).strip()

settings = xoscar_idle.install(idle_timeout=5, health_token=secret)
assert settings.health_token == xoscar_idle.settings().health_token == secret
seen = [child()]
told = [repr(settings), str(xoscar_idle.settings()), repr(xoscar_idle.statistics())]
told += [repr(vars(xoscar_idle.statistics().settings))]
told += [repr(xoscar_idle.configure(health_token=other))]
seen += [child()]
told += [repr(vars(xoscar_idle.statistics().settings))]
for bad in (f"{secret} ä", "short"):
    try:
        xoscar_idle.configure(health_token=bad)
    except ValueError as error:
        told += [repr(error)]
seen += [child()]
xoscar_idle.uninstall()
seen += [child()]
print(json.dumps({"seen": seen, "told": told}))
"""


@pytest.mark.integration
@pytest.mark.parametrize("variable", ["", "of the environment"])
def test_a_secret_is_for_children_and_for_nobody_else(variable: str) -> None:
    """What is logged of all that happens has none of it either."""
    before = f"sesame-{variable.replace(' ', '-')}" if variable else "None"
    given = {"XOSCAR_HEALTH_TOKEN": before} if variable else {}
    other = "another-0123456789"
    done = run(
        *(sys.executable, "-c", INSTALLS, SECRET, other),
        env=environment(**given, XOSCAR_IDLE_LOG="debug"),
    )
    found = json.loads(done.stdout)
    assert found["seen"] == [SECRET, other, other, before]
    assert "active with Settings(idle_timeout=5" in done.stderr
    told = " ".join([*found["told"], done.stderr])
    assert not [each for each in (SECRET, other, before) if each in told and each != "None"]
    assert "'health_token': '********'" in told


LIVES = """
import sys
import xoscar
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.mark.integration
@pytest.mark.parametrize("secret", [SECRET, f"{SECRET} with a blank", "short77"])
def test_no_command_tells_a_secret(secret: str) -> None:
    """Of a new process and of one that runs; a good one and those that cannot be one."""
    with tempfile.TemporaryDirectory() as directory:  # a path that is short enough
        variables = {"XOSCAR_IDLE_TIMEOUT": "5", "XOSCAR_IDLE_MONITOR": directory}
        env = environment(**variables, XOSCAR_HEALTH_TOKEN=secret)
        command = (sys.executable, "-m", "xoscar_idle")
        with started(sys.executable, "-c", LIVES, env=env, stderr=subprocess.PIPE) as process:
            assert line(process) == "ready"
            for arguments in (
                *(["doctor"], ["doctor", "--json"], ["doctor", f"{process.pid}"]),
                *(["doctor", "--json", f"{process.pid}"], ["stats", f"{process.pid}"]),
                *(["stats", "--json", f"{process.pid}"], ["stats", "--json"]),
            ):
                done = run(*command, *arguments, env=env, status=None)
                assert secret not in done.stdout + done.stderr, arguments
                assert SECRET not in done.stdout + done.stderr, arguments
                assert "Traceback" not in done.stderr
                if "--json" in arguments:
                    assert "health_token" in done.stdout, arguments
                    assert config.HIDDEN in done.stdout or secret != SECRET, "there is one"
            _, errors = process.communicate(timeout=BOUND)
            assert secret not in errors
            assert SECRET not in errors
            assert ("XOSCAR_HEALTH_TOKEN=******** is ignored" in errors) == (secret != SECRET)


@pytest.mark.parametrize("supervise", ["off", "observe"])
def test_an_end_that_never_comes_costs_an_advice(
    supervise: str, caplog: pytest.LogCaptureFixture
) -> None:
    try:
        for _ in range(2):
            config.use(Settings(exit_on_degraded=True, supervise=supervise))
        (record,) = caplog.records
        assert "exit_on_degraded does nothing without supervise=act" in record.getMessage()
        config.use(Settings(exit_on_degraded=True, supervise="act"))
        config.use(Settings(exit_on_degraded=False, supervise=supervise))
    finally:
        config.reset()
    assert len(caplog.records) == 1


def test_one_advice_does_not_hide_another(caplog: pytest.LogCaptureFixture) -> None:
    try:
        config.use(Settings(exit_on_degraded=True, server_idle_timeout=5))
    finally:
        config.reset()
    told = " ".join(each.getMessage() for each in caplog.records)
    assert "exit_on_degraded does nothing" in told
    assert "server_idle_timeout=5 should be at least" in told


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
ADDRESSES = ["127.0.0.1:0", " localhost:09998 ", "[::1]:80", "off", "0"]
TOKENS = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=8, max_size=1000)


@settings(deadline=None)
@given(st.data())
def test_a_child_parses_the_same_setting(data: Any) -> None:
    """What an argument means here, its variable means in a child."""
    name = data.draw(st.sampled_from(NAMES))
    value: object
    if name == "max_connections":
        value = data.draw(COUNTS)
    elif name == "history":
        value = data.draw(st.sampled_from(["off", 0, " 0100 ", 1, np.int64(1_000_000)]))
    elif name == "call_metrics":
        value = data.draw(st.sampled_from(["off", "Total", " METHOD ", "total", "0", 0]))
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
    elif name == "health_address":
        value = data.draw(st.one_of(st.none(), st.sampled_from(ADDRESSES), DIRECTORIES))
    elif name == "health_token":
        value = data.draw(st.one_of(st.none(), st.just("off"), TOKENS))
    elif name in ON_OR_OFF:
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
    assert as_variable("health_address", " localhost:080 ") == "localhost:80"
    assert as_variable("health_address", "off") is None
    assert as_variable("health_token", SECRET) == SECRET
    assert as_variable("health_token", None) is None
    assert as_variable("exit_on_degraded", "yes") == "1"
    assert as_variable("watchdog", False) == "0"
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
