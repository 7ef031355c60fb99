"""``xoscar-idle events``, and ``pools`` of a URL: real pools, over each of the ways to ask."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from ..support import crashing, web
from ..support.crashing import Host
from ..support.endpoints import refusing
from ..support.environment import environment
from ..support.processes import line, run, started
from ..support.waiting import BOUND, eventually

pytestmark = pytest.mark.integration

COMMAND = (sys.executable, "-m", "xoscar_idle")


@pytest.fixture
def directory() -> Iterator[Path]:
    """Where sockets are; a path that is short enough."""
    with tempfile.TemporaryDirectory() as made:
        yield Path(made)


@pytest.fixture
def host(directory: Path) -> Iterator[Host]:
    """One that can be asked in all ways."""
    with crashing.host(
        XOSCAR_SUPERVISE="act",
        XOSCAR_SUPERVISE_DIR=f"{directory}/state",
        XOSCAR_IDLE_MONITOR=f"{directory}",
        XOSCAR_HEALTH_ADDRESS=f"{directory}/http",
        XOSCAR_HEALTH_TOKEN=web.TOKEN,
    ) as made:
        yield made


def ways(host: Host, directory: Path) -> list[str]:
    return [f"{host.pid}", host.main, f"{directory}/http"]


def command(*words: str, directory: Path, status: int | None = 0) -> str:
    env = environment(XOSCAR_IDLE_MONITOR=f"{directory}")
    done = run(*COMMAND, *words, status=status, env=env)
    return f"{done.stdout}{done.stderr}"


def test_each_way_tells_the_same(host: Host, directory: Path) -> None:
    pools = web.request(f"{directory}/http", "/health").json["pools"]
    os.kill(pools[0]["pid"], signal.SIGKILL)
    path = f"{directory}/http"

    def is_back() -> bool:
        pools = web.request(path, "/health").json["pools"]
        return bool(pools[0]["incarnation"] == 2 and pools[0]["state"] == "healthy")

    eventually(is_back)
    told = [command("events", each, directory=directory) for each in ways(host, directory)]
    assert len(set(told)) == 1, told
    lines = told[0].splitlines()
    assert lines[0].split("  ")[1:] == [f"pool {host.first} (1.1)", "healthy"]
    assert "crash" in lines[2]
    assert "was killed by SIGKILL" in lines[2]
    states = [each.split("  ")[2] for each in lines[3:]]
    assert states == ["recovering", "starting", "healthy"]
    assert command("events", directory=directory) == told[0], "all that offer a monitor"
    given = command("events", "--json", f"{host.pid}", directory=directory).splitlines()
    events = [json.loads(each) for each in given]
    assert [each["sequence"] for each in events] == [1, 2, 3, 4, 5, 6]
    assert {each["main"] for each in events} == {host.pid}
    for each in ways(host, directory):
        told_of = " ".join(command("pools", each, directory=directory).split())
        assert "2 sub-pools: 2 healthy" in told_of
    (main,) = {
        each["main"] for each in json.loads(command("pools", "--json", path, directory=directory))
    }
    assert main == path


@pytest.mark.parametrize("way", [0, 1, 2], ids=["pid", "pool", "socket"])
def test_follow(host: Host, directory: Path, way: int) -> None:
    env = environment(XOSCAR_IDLE_MONITOR=f"{directory}", PYTHONUNBUFFERED="1")
    target = ways(host, directory)[way]
    with started(*COMMAND, "events", "--follow", target, env=env) as follower:
        assert "healthy" in line(follower)
        assert "healthy" in line(follower)
        pools = web.request(f"{directory}/http", "/health").json["pools"]
        os.kill(pools[1]["pid"], signal.SIGKILL)
        assert f"pool {host.second} (2.1)  crash  " in line(follower)
        while "(2.2)  healthy" not in line(follower):
            pass
        follower.send_signal(signal.SIGINT)
        assert follower.wait(BOUND) == 0


def test_a_main_pool_that_comes_again(directory: Path) -> None:
    """Another process at the same address is told as one."""
    path = f"{directory}/http"
    env = environment(PYTHONUNBUFFERED="1")
    with crashing.host(XOSCAR_SUPERVISE="observe", XOSCAR_HEALTH_ADDRESS=path) as first:
        follower = started(*COMMAND, "events", "-f", path, env=env, stderr=subprocess.PIPE)
        process = follower.__enter__()
        assert f"pool {first.first}" in line(process)
        assert f"pool {first.second}" in line(process)
    try:
        with crashing.host(XOSCAR_SUPERVISE="observe", XOSCAR_HEALTH_ADDRESS=path) as second:
            while "is another process by now" not in (told := line(process)):
                assert "stopping" in told or "dead" in told, told
            assert f"pool {second.first}" in line(process)
    finally:
        follower.__exit__(None, None, None)


def test_who_does_not_answer(directory: Path) -> None:
    with refusing() as address:
        for each in (f"http://{address}", address, f"{directory}/none"):
            told = command("events", each, directory=directory, status=1)
            assert told.startswith("xoscar-idle: no")
            assert each in told
    told = command("events", "http://[", directory=directory, status=1)
    assert "http://[" in told
    command("events", "no address", directory=directory, status=2)
    command("top", "http://127.0.0.1:1", directory=directory, status=2)


def test_a_token(directory: Path) -> None:
    """That of the environment is sent; a wrong one is told to be."""
    path = f"{directory}/http"
    with crashing.host(
        XOSCAR_SUPERVISE="observe", XOSCAR_HEALTH_ADDRESS=path, XOSCAR_HEALTH_TOKEN=web.TOKEN
    ):
        for token, status in ((web.TOKEN, 0), ("another-0123456789", 1)):
            env = environment(XOSCAR_HEALTH_TOKEN=token)
            done = run(*COMMAND, "pools", path, status=status, env=env)
            assert ("XOSCAR_HEALTH_TOKEN" in done.stderr) == bool(status)
            assert token not in done.stdout + done.stderr
