"""``xoscar-idle apply`` on real pools, over the side channel and over xoscar."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

import pytest

from ..support import processes
from ..support.crashing import Host, host
from ..support.waiting import eventually

pytestmark = pytest.mark.integration


@pytest.fixture(params=["side channel", "xoscar"])
def acting(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    """A main pool that acts; it offers a monitor, or not."""
    on: Any = {"XOSCAR_IDLE_TIMEOUT": "600", "XOSCAR_SUPERVISE": "act"}
    with tempfile.TemporaryDirectory() as directory:
        monkeypatch.setenv("XOSCAR_IDLE_MONITOR", directory)
        if request.param == "side channel":
            on["XOSCAR_IDLE_MONITOR"] = directory
        with host(**on) as found:
            yield found


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = (sys.executable, "-m", "xoscar_idle", *arguments)
    done = processes.run(*command, status=None, env={**os.environ, "COLUMNS": "80"})
    assert "Traceback" not in done.stderr, done.stderr
    return done


def infos(main: str) -> dict[str, Any]:
    told = json.loads(run("pools", main, "--json").stdout)
    return {each["address"]: each for each in told}


def test_instructions(acting: Host) -> None:
    address = acting.first
    done = run("apply", "restart", address, "--expect-incarnation", "1")
    assert done.stdout == f"restart of pool {address} (its incarnation 2): it has been replaced\n"
    assert done.returncode == 0
    again = run("apply", "restart", address, "--expect-incarnation", "1")
    assert "is in its incarnation 2, not 1" in again.stderr
    assert again.returncode == 2
    assert run("apply", "pause", address).returncode == 0
    os.kill(infos(acting.main)[address]["pid"], signal.SIGKILL)
    eventually(lambda: infos(acting.main)[address]["reason"].startswith("by an operator; ") or True)
    told = run("apply", "retry", address, "--main", acting.main, "--json", "--request-id", "r")
    assert told.returncode == 0, told.stderr
    applied = json.loads(told.stdout)
    assert (applied["request_id"], applied["status"], applied["incarnation"]) == (
        "r",
        "succeeded",
        3,
    )
    assert infos(acting.main)[address]["state"] == "paused", "still"


@pytest.mark.parametrize(
    ("arguments", "text", "status"),
    [
        (("stop", "{first}"), "Invalid value", 2),
        (("restart", "{first}", "--drain", "-1"), "drain must be a finite number of seconds", 2),
        (
            ("retry", "{first}", "--drain", "1"),
            "drain is for restart and give_up, not for retry",
            2,
        ),
        (("restart", "{first}", "--expect-incarnation", "0"), "must be a whole number from 1", 2),
        (("restart", "{main}"), "there is no sub-pool", 2),
        (("restart", "127.0.0.1:9"), "does not tell its main pool", 2),
        (("restart", "127.0.0.1:9", "--main", "{main}"), "there is no sub-pool 127.0.0.1:9", 2),
        (
            ("restart", "{first}", "--main", "127.0.0.1:9"),
            "main pool 127.0.0.1:9 does not answer",
            2,
        ),
        (("restart", "{first}", "--main", "2147483647"), "offers this user no monitor", 2),
    ],
)
@pytest.mark.parametrize("acting", ["side channel"], indirect=True)
def test_what_is_refused(acting: Host, arguments: tuple[str, ...], text: str, status: int) -> None:
    done = run("apply", *(each.format(**vars(acting)) for each in arguments))
    assert text in " ".join(done.stderr.split())
    assert done.returncode == status


@pytest.mark.parametrize("acting", ["side channel"], indirect=True)
def test_a_main_pool_that_is_stopped(acting: Host) -> None:
    os.kill(acting.pid, signal.SIGSTOP)
    try:
        done = run("apply", "restart", acting.first, "--main", f"{acting.pid}")
        assert "did not answer in 2 s" in done.stderr
        assert done.returncode == 2
    finally:
        os.kill(acting.pid, signal.SIGCONT)
