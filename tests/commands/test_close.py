"""``xoscar-idle close``: what it closes, what it prints, and what it leaves alone."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import xoscar as xo
from xoscar.errors import ServerClosed

import xoscar_idle
from xoscar_idle.telemetry import snapshot

from ..support import processes
from ..support.hosting import Pools, pools, worker
from ..support.waiting import bounded, eventually, eventually_here

pytestmark = pytest.mark.integration


@pytest.fixture(autouse=True)
def monitors(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where the sockets are, for these tests alone."""
    with tempfile.TemporaryDirectory() as directory:
        monkeypatch.setenv("XOSCAR_IDLE_MONITOR", directory)
        monkeypatch.setenv("XOSCAR_IDLE_TIMEOUT", "600")
        yield Path(directory)


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = (sys.executable, "-m", "xoscar_idle", "close", *arguments)
    done = processes.run(*command, status=None, env=os.environ | {"COLUMNS": "1000"})
    assert "Traceback" not in done.stderr, done.stderr
    return done


def told(*arguments: str) -> Any:
    return json.loads(run(*arguments, "--json").stdout)


def open_to(visitor: Pools) -> list[str]:
    """The peers of its connections that take calls, without itself: it has made its workers."""
    seen = snapshot.ask(visitor.pid)
    assert seen is not None
    peers = {each["address"] for each in seen.connections if each["state"] == "open"}
    return sorted(peers - {*visitor.addresses})


def visit(visitor: Pools, visited: list[str]) -> None:
    """Have the first pool of a process call others, and come to rest."""

    async def main() -> None:
        actor = await worker(visitor.addresses[0])
        assert await actor.visit(visited, 7) == [7] * len(visited)

    asyncio.run(main())
    eventually(lambda: _rests(visitor.pid))


def _rests(pid: int) -> bool:
    seen = snapshot.ask(pid)
    assert seen is not None
    return not any(each["references"] for each in seen.connections)


def test_what_a_process_has_opened() -> None:
    with pools() as visitor, pools(2) as visited:
        one, other = sorted(visited.addresses)
        visit(visitor, [one, other])
        pid = f"{visitor.pid}"
        assert open_to(visitor) == [one, other]
        done = run(pid, one)
        assert (done.returncode, done.stdout, done.stderr) == (0, f"{pid}  1 closed\n", "")
        eventually(lambda: open_to(visitor) == [other])
        done = run(pid, one)
        assert done.returncode == 1
        nothing = f"nothing closed: it has no connection open with '{one}', but with "
        assert done.stdout.startswith(f"{pid}  {nothing}")
        assert other in done.stdout
        visit(visitor, [one, other])
        found = told(visitor.addresses[0], "127.0.0.3:*")
        assert found == [
            {
                "pid": visitor.pid,
                "target": None,
                "done": True,
                "error": "",
                "closed": 3,
                "draining": 0,
                "late": 0,
            }
        ]
        visit(visitor, [one])
        assert open_to(visitor) == [one]


def test_one_that_has_no_such_peer_is_none_that_could_not() -> None:
    with pools() as visitor, pools() as other, pools(XOSCAR_IDLE_MONITOR="0") as visited:
        visit(visitor, visited.addresses)
        pids = sorted([visitor.pid, other.pid])
        done = run("--all", visited.addresses[0])
        assert done.returncode == 0
        lines = {
            visitor.pid: f"{visitor.pid}  1 closed",
            other.pid: f"{other.pid}  nothing closed: it has no connection open",
        }
        assert [each.split(" with ")[0] for each in done.stdout.splitlines()] == [
            lines[pid] for pid in pids
        ]
        assert run("--all", visited.addresses[0]).returncode == 1, "none has it any more"
        visit(visitor, visited.addresses)
        done = run(f"{visitor.pid}", "2147483647", visited.addresses[0])
        assert done.returncode == 1
        assert "2147483647  nothing closed: there is no process 2147483647" in done.stdout


def test_what_pools_have_accepted() -> None:
    with pools() as visitor, pools() as visited:
        visit(visitor, visited.addresses)
        pid = f"{visited.pid}"
        eventually(lambda: len(accepted(visited.pid)) == 1)
        (peer,) = accepted(visited.pid)
        done = run("--accepted", pid, "10.0.0.7:*")
        assert done.returncode == 1
        assert f"it has no connection accepted with '10.0.0.7:*', but with {peer}" in done.stdout
        done = run("--accepted", pid, f"{peer.rpartition(':')[0]}:*")
        assert (done.returncode, done.stdout) == (0, f"{pid}  1 closed\n")
        eventually(lambda: not accepted(visited.pid))
        eventually(lambda: open_to(visitor) == [])


def accepted(pid: int) -> list[str]:
    seen = snapshot.ask(pid)
    assert seen is not None
    return [each["peer"] for each in seen.accepted]


class Caller(xo.StatelessActor):  # type: ignore[misc]
    """Has a call in flight until it is released."""

    async def call(self, address: str) -> Any:
        return await (await worker(address)).hold("held")


async def test_calls_in_flight(package: None) -> None:
    """They end as ever; with --now they fail, and say by whom."""
    with pools() as calling, pools() as called:
        (here,), (there,) = calling.addresses, called.addresses
        caller = await xo.create_actor(Caller, uid="caller", address=here)
        pid = f"{calling.pid}"
        for now in (False, True):
            call = asyncio.ensure_future(caller.call(there))
            await eventually_here(lambda: busy(calling.pid))
            done = await asyncio.to_thread(run, pid, there)
            assert (done.returncode, done.stdout) == (0, f"{pid}  0 closed, 1 draining\n")
            if now:
                done = await asyncio.to_thread(run, pid, there, "--now")
                assert (done.returncode, done.stdout) == (0, f"{pid}  1 closed\n")
                with pytest.raises(ServerClosed, match="an operator closed the connection"):
                    await bounded(call)
            else:
                await (await worker(there)).release()
                assert await bounded(call) == "held"
            assert xoscar_idle.statistics().open > 0, "those of others are left alone"


def busy(pid: int) -> bool:
    seen = snapshot.ask(pid)
    return seen is not None and any(each["in_flight"] for each in seen.connections)


BLOCKED = """
import asyncio, sys, time
import xoscar as xo
from tests.support.hosting import worker

async def main():
    await (await worker(sys.argv[1])).echo(1)
    print("ready", flush=True)
    sys.stdin.readline()
    while __import__("xoscar_idle").statistics().open:
        await asyncio.sleep(0.02)
    print("closed", flush=True)

asyncio.run(main())
"""


def test_a_blocked_loop_does_it_when_it_runs_again() -> None:
    with (
        pools() as called,
        processes.started(
            *(sys.executable, "-c", BLOCKED, called.addresses[0]), env=os.environ
        ) as process,
    ):
        assert processes.line(process) == "ready"
        done = run(f"{process.pid}", "*")
        assert done.returncode == 1
        late = "1 event loop blocked or at rest: what is there closes when it runs again"
        assert done.stdout == f"{process.pid}  0 closed; {late}\n"
        (found,) = told(f"{process.pid}", "*")
        assert (found["done"], found["error"], found["late"]) == (False, "", 1)
        processes.tell(process, "go on")
        assert processes.line(process) == "closed"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "Missing argument"),
        (["10.0.0.7:9000"], "name processes, by PID or by HOST:PORT of their pool, or all with"),
        (["4711"], "4711 is no PEER: give its HOST:PORT, or a pattern like '10.0.0.*:*'"),
        (["4711", "4712"], "4712 is no PEER"),
        (["--all", "4711", "*"], "--all is all processes, and '4711' is one of them"),
        (["here", "*"], "'here' is neither a process id nor an address"),
        (["4711", "x" * 17000], "that is too long"),
    ],
    ids=lambda each: " ".join(each)[:40] if isinstance(each, list) else None,
)
def test_asked_wrongly(arguments: list[str], says: str) -> None:
    done = run(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert says in done.stderr


@pytest.mark.parametrize("peer", ["", "a\nb:1", "\x1b[2J", "x" * 201])
def test_what_is_no_peer(peer: str) -> None:
    with pools() as hosted:
        done = run(f"{hosted.pid}", peer)
        assert done.returncode == 1
        assert "nothing closed: the peer must be an address, or a pattern of" in done.stdout
        assert len(done.stdout.splitlines()) == 1
