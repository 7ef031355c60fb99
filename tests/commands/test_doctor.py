"""``xoscar-idle doctor`` in environments that are well and ill."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from xoscar_idle.commands import doctor

from ..support.environment import environment
from ..support.processes import ROOT, run
from ..support.virtual_environments import Environment

pytestmark = pytest.mark.integration


def examine(
    *options: str, python: str | Path = sys.executable, **variables: str
) -> tuple[int, str]:
    """Its exit status and output."""
    command = (python, "-m", "xoscar_idle", "doctor", *options)
    done = run(*command, status=None, env=environment(**variables))
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stdout


def problems(report: dict[str, Any]) -> dict[str, str]:
    return {each["name"]: each["text"] for each in report["checks"] if each["level"] == "problem"}


def test_active_and_fine() -> None:
    status, output = examine(XOSCAR_IDLE_TIMEOUT="5", XOSCAR_MAX_CONNECTIONS="7")
    assert status == 0, output
    assert "idle_timeout=5.0, max_connections=7; all others by default" in output
    assert "\nActive in a new process of this Python.\nOne that runs already: " in output


def test_json() -> None:
    status, output = examine("--json", XOSCAR_IDLE_TIMEOUT="5")
    report = json.loads(output)
    assert (status, report["status"], report["active"], report["asked_for"]) == (0, 0, True, True)
    details = {each["name"]: each["details"] for each in report["checks"]}
    assert details["settings"]["idle_timeout"] == {
        "value": 5.0,
        "origin": "environment",
        "variable": "XOSCAR_IDLE_TIMEOUT",
        "set": True,
    }
    assert details["settings"]["connect_timeout"]["origin"] == "default"
    assert details["keepalive"]["SO_KEEPALIVE"] is True
    assert details["descriptors"]["soft"] > 0
    assert details["xoscar"]["version"]


@pytest.mark.parametrize(
    "variables", [{}, {"XOSCAR_IDLE_TIMEOUT": "off"}, {"XOSCAR_SUPERVISE": "0"}]
)
def test_not_asked_for(variables: dict[str, str]) -> None:
    status, output = examine("--json", **variables)
    report = json.loads(output)
    assert (status, report["active"], report["asked_for"]) == (1, False, False)
    assert problems(report) == {}
    _, output = examine(**variables)
    assert (
        "Not active in a new process of this Python: XOSCAR_IDLE_TIMEOUT is not set, or off, and "
        "so is XOSCAR_SUPERVISE; set one of them." in output
    )


@pytest.mark.parametrize(
    ("variables", "says"),
    [
        ({"XOSCAR_CONNECT_TIMEOUT": "soon"}, "XOSCAR_CONNECT_TIMEOUT='soon' is ignored"),
        ({"XOSCAR_IDLE_TIMEUOT": "5"}, "XOSCAR_IDLE_TIMEUOT is no setting: is XOSCAR_IDLE_TIMEOUT"),
        (
            {"XOSCAR_IDLE_TIMEOUT_TCP": "5"},
            "XOSCAR_IDLE_TIMEOUT_TCP is no setting: is XOSCAR_IDLE_TIMEOUT_SOCKET meant?",
        ),
        ({"xoscar_idle_timeout": "5"}, "xoscar_idle_timeout is no setting: is XOSCAR_IDLE_TIMEOUT"),
        ({"XOSCAR_IDLE_LOG": "loud"}, "XOSCAR_IDLE_LOG='loud' is ignored: it must be debug, info"),
        ({"XOSCAR_IDLE_MONITOR": "maybe"}, "XOSCAR_IDLE_MONITOR='maybe' is neither 1 nor 0"),
    ],
)
def test_bad_settings(variables: dict[str, str], says: str) -> None:
    status, output = examine(XOSCAR_IDLE_TIMEOUT="5", **variables)
    assert status == 1
    assert says in output
    assert output.count(says) == 1
    assert "\nActive in a new process of this Python, 1 to be mended.\n" in output


@pytest.mark.parametrize(
    ("address", "token", "says"),
    [
        (None, None, r"^ok +http +off \(XOSCAR_HEALTH_ADDRESS=127.0.0.1:9998 tells"),
        (
            "localhost:1",
            None,
            r"^ok +http +localhost:1, .* all of this machine read, nobody steers",
        ),
        ("[::1]:1", "sesame-sesame", r"^ok +http +\[::1\]:1, .*, who has the token steers$"),
        ("/run/x", None, r"^ok +http +/run/x, .* its own user reads, nobody steers"),
        (
            "0.0.0.0:1",
            "sesame-sesame",
            r"^ok +http +0.0.0.0:1, .* the token is needed to read, who",
        ),
        ("0.0.0.0:1", None, r"^problem +http .* so XOSCAR_HEALTH_TOKEN must be set"),
        ("0.0.0.0:1", "short", r"^problem +http .* so XOSCAR_HEALTH_TOKEN must be set"),
    ],
)
def test_http(address: str | None, token: str | None, says: str) -> None:
    given = {"XOSCAR_HEALTH_ADDRESS": address, "XOSCAR_HEALTH_TOKEN": token}
    variables = {name: value for name, value in given.items() if value is not None}
    _, output = examine(XOSCAR_SUPERVISE="act", **variables)
    assert re.search(says, output, re.MULTILINE), output
    assert token is None or token not in output


def test_http_that_nothing_serves() -> None:
    _, output = examine(XOSCAR_HEALTH_ADDRESS="127.0.0.1:1")
    assert re.search(r"^note +http +XOSCAR_HEALTH_ADDRESS does nothing without", output, re.M)


@pytest.mark.parametrize(
    ("variables", "says"),
    [
        ({}, r"^ok +log +to the handlers .* xoscar_idle; without any, warnings to stderr"),
        ({"XOSCAR_IDLE_LOG": "debug"}, r"^ok +log +from debug on to stderr, and to the handlers"),
        ({"XOSCAR_IDLE_LOG": "info", "XOSCAR_IDLE_TIMEOUT": ""}, r"^note +log +.* does nothing"),
    ],
)
def test_where_lines_go(variables: dict[str, str], says: str) -> None:
    _, output = examine(**{"XOSCAR_IDLE_TIMEOUT": "5", **variables})
    assert re.search(says, output, re.MULTILINE), output


def test_variables_of_xoscar_itself_are_left_alone() -> None:
    status, output = examine(XOSCAR_IDLE_TIMEOUT="5", XOSCAR_USE_UVLOOP="0", XOSCAR_AUTH_KEY="key")
    assert status == 0
    assert "XOSCAR_AUTH_KEY" not in output


def test_unsupported_xoscar(tmp_path: Path) -> None:
    info = tmp_path / "xoscar-9.9.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: xoscar\nVersion: 9.9\n")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    status, output = examine("--json", XOSCAR_IDLE_TIMEOUT="5", PYTHONPATH=path)
    report = json.loads(output)
    assert (status, report["active"], report["asked_for"]) == (1, False, True)
    assert "xoscar 9.9 was left as it is" in problems(report)["xoscar"]
    _, output = examine(XOSCAR_IDLE_TIMEOUT="5", PYTHONPATH=path)
    assert "Not active in a new process of this Python: xoscar 9.9 was left as it is" in output


def test_xoscar_that_cannot_be_imported(tmp_path: Path) -> None:
    (tmp_path / "xoscar.py").write_text("raise ImportError('half of it is missing')")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    status, output = examine(XOSCAR_IDLE_TIMEOUT="5", PYTHONPATH=path)
    assert status == 1
    assert "importing xoscar fails: ImportError: half of it is missing" in output


def test_missing_and_changed_pth_file(tmp_path: Path) -> None:
    made = Environment(tmp_path / "venv")

    def report() -> dict[str, Any]:
        status, output = examine(
            "--json",
            python=made.python,
            XOSCAR_IDLE_TIMEOUT="5",
            PYTHONPATH=str(ROOT),
        )
        found: dict[str, Any] = json.loads(output)
        assert found["status"] == status
        return found

    missing = report()
    assert (missing["status"], missing["active"]) == (1, False)
    assert problems(missing)["xoscar_idle.pth"].startswith(f"is not in {made.site}")

    pth = made.site / "xoscar_idle.pth"
    pth.write_text((ROOT / "xoscar_idle.pth").read_text())
    assert (report()["status"], report()["active"]) == (0, True)

    pth.write_text("import os\n")
    changed = report()
    assert (changed["status"], changed["active"]) == (1, False)
    assert problems(changed)["xoscar_idle.pth"].startswith(f"{pth} has been changed")


def test_knows_the_line_of_the_pth_file() -> None:
    assert (ROOT / "xoscar_idle.pth").read_text().strip() == doctor.PTH_LINE
