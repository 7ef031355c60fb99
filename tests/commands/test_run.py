"""``xoscar-idle run``: what its command finds in the environment."""

from __future__ import annotations

import sys

import pytest

from ..support.environment import environment
from ..support.processes import run

pytestmark = pytest.mark.integration

OFF = "xoscar-idle: runs without idle closing: XOSCAR_IDLE_TIMEOUT is off\n"


@pytest.mark.parametrize(
    ("variable", "options", "found", "told"),
    [
        (None, [], "30", ""),
        ("", [], "30", ""),
        (" ", [], "30", ""),
        ("7.5", [], "7.5", ""),
        ("0", [], "0", ""),
        ("off", [], "off", OFF),
        (" OFF ", [], " OFF ", OFF),
        ("7", ["--idle-timeout", "2.5"], "2.5", ""),
        ("7", ["--idle-timeout", "0"], "0", ""),
        ("7", ["--idle-timeout", "1e6"], "1000000", ""),
        ("7", ["--idle-timeout", "off"], "off", OFF),
    ],
)
def test_the_timeout_of_the_command(
    variable: str | None, options: list[str], found: str, told: str
) -> None:
    variables = {} if variable is None else {"XOSCAR_IDLE_TIMEOUT": variable}
    command = ["sh", "-c", 'printf "%s" "$XOSCAR_IDLE_TIMEOUT"']
    ours = (sys.executable, "-m", "xoscar_idle", "run", *options, "--", *command)
    done = run(*ours, env=environment(**variables))
    assert (done.stdout, done.stderr) == (found, told)


@pytest.mark.parametrize("value", ["nan", "-1", "1e-9", "", "٣٠", "9" * 5000])
def test_a_bad_timeout(value: str) -> None:
    ours = (sys.executable, "-m", "xoscar_idle", "run", "--idle-timeout", value, "--", "true")
    done = run(*ours, status=2)
    assert "--idle-timeout: idle_timeout must be" in done.stderr
    assert len(done.stderr) < 400
