"""Every setting with every kind of value that an operator may write: it has its exact meaning, on a
real call, or one warning is told and the default holds."""

from __future__ import annotations

import dataclasses
import json
import resource
import socket
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from xoscar_idle import config, values

from ..support.hosting import pools
from ..support.processes import run

pytestmark = pytest.mark.integration

BAD = object()
"""One warning, and the default."""
UNSET = object()
"""The default, and no warning."""

TIMES: dict[str, Any] = {
    "0": 0,
    "-0": 0,
    "0.0": 0,
    "0e5": 0,
    "off": 0,
    "OFF": 0,
    " Off ": 0,
    "30": 30,
    " 30 ": 30,
    "\t30\n": 30,
    "0030": 30,
    "+5": 5,
    "30.": 30,
    "2.5": 2.5,
    "1e3": 1000,
    "1E+3": 1000,
    "32767": 32767,
    "32768": 32768,
    "3000000000": 3e9,
    "1e308": 1e308,
    "9" * 300: float("9" * 300),
    "0" * 5000 + "7": 7,
    "": UNSET,
    " ": UNSET,
    "\t\n": UNSET,
    "1e-9": BAD,
    "5e-324": BAD,
    "1e-400": BAD,
    "-1": BAD,
    "-1e-9": BAD,
    "1e400": BAD,
    "9" * 5000: BAD,
    "nan": BAD,
    "inf": BAD,
    "-inf": BAD,
    "Infinity": BAD,
    "None": BAD,
    "true": BAD,
    "auto": BAD,
    "on": BAD,
    "٣٠": BAD,
    "\uff11\uff12": BAD,
    "½": BAD,
    "0x10": BAD,
    "1_000": BAD,
    "30s": BAD,
    "30 s": BAD,
    "1,5": BAD,
    "30 40": BAD,
    "30\n40": BAD,
    "'30'": BAD,
    '"30"': BAD,
    "--": BAD,
    "1e": BAD,
    "ä" * 3000: BAD,
    "\x1b[2J": BAD,
}

IDLE_TIMEOUT = {**TIMES, "off": UNSET, "OFF": UNSET, " Off ": UNSET}
"""Off is that nobody activates; who calls install() does so."""

SWITCHED_ON = {
    **TIMES,
    **dict.fromkeys([text for text, meaning in TIMES.items() if meaning == 0], BAD),
}

KEEPALIVE = {
    **TIMES,
    **dict.fromkeys(["32768", "3000000000", "1e308", "9" * 300], BAD),
    "0.5": BAD,
    "1": 1,
    "32766.5": 32766.5,
    "32767.5": BAD,
}

COUNTS = {
    **{text: meaning if meaning is UNSET else BAD for text, meaning in TIMES.items()},
    "0": 0,
    "off": 0,
    "OFF": 0,
    " Off ": 0,
    "1": 1,
    "30": 30,
    " 30 ": 30,
    "\t30\n": 30,
    "0030": 30,
    "32768": 32768,
    "32767": 32767,
    "2147483647": 2147483647,
    "0" * 5000 + "7": 7,
    "2147483648": BAD,
    "auto": "auto",
    " AUTO ": "auto",
    "auto,": BAD,
}

REMEMBERED = {
    **COUNTS,
    **dict.fromkeys(["2147483647", "auto", " AUTO "], BAD),
    "1000000": 1_000_000,
    "1000001": BAD,
}

METHODS: dict[str, Any] = {
    **{text: meaning if meaning is UNSET else BAD for text, meaning in TIMES.items()},
    **{text: [] for text in ("off", "OFF", " Off ")},
    **{text: [text] for text in ("nan", "inf", "Infinity", "None", "true", "auto", "on")},
    "ä" * 200: ["ä" * 200],
    "ä" * 201: BAD,
    "launch_*,load": ["launch_*", "load"],
    " launch_* ,\tload\n": ["launch_*", "load"],
    "off,on": ["off", "on"],
    "*": ["*"],
    "l[oO]ad,[!_]*,_?": ["l[oO]ad", "[!_]*", "_?"],
    "[load": BAD,
    "load;launch": BAD,
    "load launch": BAD,
    "load,,launch": BAD,
    "load,": BAD,
    "Model.load": BAD,
    "load()": BAD,
    "load\nlaunch": BAD,
}

NO_NUMBER = {text: meaning if meaning is UNSET else BAD for text, meaning in TIMES.items()}

OFF = ("0", "off", "OFF", " Off ", "0" * 5000)

SUPERVISE = {
    **NO_NUMBER,
    **dict.fromkeys(OFF, "off"),
    "observe": "observe",
    " OBSERVE\n": "observe",
    "act": "act",
    "1": BAD,
    "act,observe": BAD,
    "watch": BAD,
}

CALL_METRICS = {
    **NO_NUMBER,
    **dict.fromkeys(OFF, "off"),
    "total": "total",
    " Method\n": "method",
    "METHOD": "method",
    "1": BAD,
    "methods": BAD,
    "total,method": BAD,
}

LIMIT = {
    **NO_NUMBER,
    **dict.fromkeys(OFF, "off"),
    "3/60": "3/60",
    " 03/60.0 ": "3/60",
    "0/0.5": "0/0.5",
    "10/1e3": "10/1000",
    "3 / 60": "3/60",
    "0/0": BAD,
    "-1/60": BAD,
    "x/60": BAD,
    "3/": BAD,
    "3/60/60": BAD,
    "1.5/60": BAD,
    "3/inf": BAD,
}

RETRY = {
    text: meaning if meaning in (BAD, UNSET) else ["unsent", *meaning]
    for text, meaning in METHODS.items()
}

SWITCH = {
    **NO_NUMBER,
    **dict.fromkeys((*OFF, "false", "NO"), False),
    **dict.fromkeys(("1", " 1 ", "0001", "on", "ON", "true", "Yes"), True),
    "2": BAD,
    "1.0": BAD,
    "y": BAD,
}

DIRECTORY = {
    **NO_NUMBER,
    **dict.fromkeys(OFF, BAD),
    "/no/such": "/no/such",
    " /no/such place\n": "/no/such place",
    "/": "/",
    "/dev/null": "/dev/null",
    "/" + "ä" * 3000: "/" + "ä" * 3000,
    "~/here": BAD,
    "$HOME/here": BAD,
    "./here": BAD,
}

ERRORS: dict[str, Any] = {
    **{text: [text.strip()] for text in TIMES},
    **{text: meaning for text, meaning in TIMES.items() if meaning is UNSET},
    **{text: [] for text in OFF},
    "1,5": ["1", "5"],
    **dict.fromkeys(["30\n40", "ä" * 3000, "\x1b[2J", "9" * 300, "9" * 5000], BAD),
    "0" * 5000 + "7": BAD,
    "CUDA error*, *EngineDeadError*": ["CUDA error*", "*EngineDeadError*"],
    "RuntimeError: device [0-7] is lost?": ["RuntimeError: device [0-7] is lost?"],
    "off,on": ["off", "on"],
    "[CUDA": ["[CUDA"],
    "*": BAD,
    "CUDA*,": BAD,
    "CUDA*,,OOM": BAD,
    "CUDA*,?*": BAD,
}

ADDRESS: dict[str, Any] = {
    **NO_NUMBER,
    **dict.fromkeys(OFF, None),
    "127.0.0.4:0": "127.0.0.4:0",
    " 127.0.0.4:000\n": "127.0.0.4:0",
    "localhost:0": "localhost:0",
    "[::1]:0": "[::1]:0",
    "0.0.0.0:0": "0.0.0.0:0",
    "no.such.host.invalid:65535": "no.such.host.invalid:65535",
    "/no/such/place/of a socket": "/no/such/place/of a socket",
    "/dev/null/socket": "/dev/null/socket",
    "/" + "ä" * 3000: "/" + "ä" * 3000,
    "localhost": BAD,
    "localhost:": BAD,
    "localhost:http": BAD,
    "localhost:65536": BAD,
    "localhost:-1": BAD,
    ":0": BAD,
    "::1:0": BAD,
    "*:0": BAD,
    "http://localhost:0": BAD,
    "localhost:0/": BAD,
    "user@localhost:0": BAD,
    "localhost:٣٠": BAD,
    "./health.sock": BAD,
    "~/health.sock": BAD,
}

TOKEN: dict[str, Any] = {
    **NO_NUMBER,
    **dict.fromkeys(OFF, None),
    **dict.fromkeys(["3000000000", "Infinity", "9" * 300]),
    "sesame-0123456789": "sesame-0123456789",
    " sesame-0123456789\n": "sesame-0123456789",
    "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~": "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~",
    "~" * 8: "~" * 8,
    "~" * 1000: "~" * 1000,
    "~" * 1001: BAD,
    "sesame7": BAD,
    "sesame open": BAD,
    "sesame\x7fopen": BAD,
    "sésame-ouvre-toi": BAD,
}
TOKEN |= {text: text for text, meaning in TOKEN.items() if meaning is None and text not in OFF}

TABLES = {
    values.duration: TIMES,
    values.duration_or_default: TIMES,
    values.positive_duration: SWITCHED_ON,
    values.keepalive: KEEPALIVE,
    values.connections: COUNTS,
    values.remembered: REMEMBERED,
    values.patterns: METHODS,
    values.retried: RETRY,
    values.limit: LIMIT,
    values.switch: SWITCH,
    values.directory: DIRECTORY,
    values.error_patterns: ERRORS,
    values.server_address: ADDRESS,
    values.token: TOKEN,
}

SETTINGS = {each.name: each for each in dataclasses.fields(config.Settings)}
TABLE = {
    "idle_timeout": IDLE_TIMEOUT,
    # These two are of a kind whose words are their own:
    "supervise": SUPERVISE,
    "call_metrics": CALL_METRICS,
    **{
        name: TABLES[each.metadata["parse"]]
        for name, each in SETTINGS.items()
        if name not in ("idle_timeout", "supervise", "call_metrics")
    },
}


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with pools(quiet=True) as hosted:
        yield hosted.addresses[0]


def expected(name: str, meaning: Any) -> Any:
    if meaning in (BAD, UNSET):
        default = SETTINGS[name].default
        return list(default) if isinstance(default, tuple) else default  # as JSON has it
    if meaning == "auto":
        return resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2
    return meaning


ADVICE = {
    "server_idle_timeout": "should be at least",
    "exit_on_degraded": "exit_on_degraded does nothing without supervise=act",
    "watchdog": "XOSCAR_WATCHDOG does nothing: NOTIFY_SOCKET is not set",
    "health_address": "nothing is told over HTTP at XOSCAR_HEALTH_ADDRESS=",
}
"""What is told of a good value that does nothing, or not what is meant, in the trial."""

SERVED = (None, "127.0.0.4:0", "localhost:0")


def is_to_be_advised(name: str, value: Any) -> bool:
    """Once, where there is something to say of that value."""
    if name == "server_idle_timeout":
        return bool(0 < value < 45)
    if name == "health_address":
        return value not in SERVED and (value != "[::1]:0" or not _has_ipv6())
    return name in ADVICE and bool(value)


def _has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as sock:
            sock.bind(("::1", 0))
    except OSError:
        return False
    return True


@pytest.mark.parametrize("name", TABLE)
def test_each_value_has_its_meaning_or_one_warning(name: str, address: str) -> None:
    table = TABLE[name]
    assert len(table) >= 40
    variable = config.variable(name)
    done = run(
        *(sys.executable, "-m", "tests.whole.settings_trial"),
        input=json.dumps({"variable": variable, "values": [*table], "address": address}) + "\n",
        status=None,
        timeout=100,
    )
    assert done.stderr == ""
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [each["value"] for each in lines] == [text for text in table for _ in range(2)]
    for told in lines:
        meaning = table[told["value"]]
        shown = f"{told['value'][:40]!r}: {told}"
        assert told["errors"] == [], shown
        assert told["echoed"] == ["said"], shown
        assert told["set"] == expected(name, meaning), shown
        advice = [each for each in told["warnings"] if ADVICE.get(name, "no advice") in each]
        most = int(is_to_be_advised(name, told["set"]))
        # What prevents the interface is told once for all that it prevents.
        assert (0 if name == "health_address" else most) <= len(advice) <= most, shown
        warnings = [each for each in told["warnings"] if each not in advice]
        if SETTINGS[name].metadata["secret"]:
            assert told["shown"] == 0 or len(told["value"].strip()) < 8, shown
        if meaning is BAD:
            (warning,) = warnings
            assert warning.startswith(f"{variable}="), shown
            assert " is ignored: it " in warning
            assert len(warning) < 400
            assert warning.isprintable()
        else:
            assert warnings == [], shown
        if name == "keepalive_interval":
            seconds = 10 if told["set"] is None else told["set"]
            assert not seconds or told["keepalive"] == [1, round(seconds)], shown
