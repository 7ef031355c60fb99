"""``xoscar-idle events``: what is shown of what is told; and real pools, over each way to ask."""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest
from click.testing import CliRunner

from xoscar_idle.commands import events
from xoscar_idle.commands.cli import main
from xoscar_idle.connection.history import Happening
from xoscar_idle.supervision.events import Event
from xoscar_idle.telemetry.history import Happened, Position
from xoscar_idle.telemetry.snapshot import Snapshot
from xoscar_idle.telemetry.sources import CONNECTIONS, SUB_POOLS

from ..support import crashing, web
from ..support.crashing import Host
from ..support.endpoints import refusing
from ..support.environment import environment
from ..support.hosting import pools
from ..support.processes import line, run, started, tell
from ..support.waiting import BOUND, eventually

integration = pytest.mark.integration

COMMAND = (sys.executable, "-m", "xoscar_idle")

OF_SUB_POOLS = ("--kind", "state", "--kind", "crash", "--kind", "instruction")

# -- what is shown ---------------------------------------------------------------------------------

TODAY = datetime.now().replace(hour=0, minute=0, second=0, microsecond=0)

ADDRESS = "10.0.0.7:9999"


def at(text: str, days: int = 0) -> float:
    """Unix time of a time of day, so many days ago."""
    hour, minute, second = map(float, text.split(":"))
    when = TODAY - timedelta(days)
    return (when + timedelta(hours=hour, minutes=minute, seconds=second)).timestamp()


_numbers = itertools.count(1)


def connection(
    when: float, kind: str, peer: str = ADDRESS, text: str = "", **more: Any
) -> Happening:
    return Happening(next(_numbers), when, kind, peer, text, **more)


def sub_pool(when: float, kind: str, state: str, text: str = "") -> Event:
    return Event(
        *(next(_numbers), when, kind, "10.0.0.5:41235", 1, 2, 30, "gpu", state, text),
    )


def told(*those: Happening | Event, pid: int = 4711, name: Any = None, **more: Any) -> Happened:
    """What one process tells of what it is asked first."""
    of = SUB_POOLS if any(isinstance(each, Event) for each in those) else CONNECTIONS
    defaults: dict[str, Any] = {
        "missed": 0,
        "oldest": those[0].when if those else None,
        "remembered": None if of == SUB_POOLS else 1000,
        "begins": True,
    }
    made = {**defaults, "of": of, **more}
    position = Position(len(those), f"{name or pid}")
    return Happened(
        name=name or pid, pid=pid, events=those, position=position, newest=len(those), **made
    )


class Telling:
    """A history that is told, a look after the other; then it is interrupted."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.looks: list[tuple[list[Happened], list[str]]] = []
        self.snapshots: list[Snapshot] = []
        self.asked = 1
        self.options: tuple[Any, ...] = ()
        monkeypatch.setattr(events, "History", self._made)
        monkeypatch.setattr(events, "EVERY", 0.0)

    def _made(self, *options: Any) -> Telling:
        self.options = options
        return self

    async def look(self) -> tuple[list[Happened], list[str]]:
        if not self.looks:
            raise KeyboardInterrupt
        return self.looks.pop(0)

    def close(self) -> None:
        """Nothing is open."""

    def shown(
        self, *those: Happened, options: Sequence[str] = (), complaints: Sequence[str] = ()
    ) -> tuple[list[str], list[str], int]:
        """Lines of stdout, of stderr, and the exit status."""
        self.looks.append(([*those], [*complaints]))
        done = CliRunner().invoke(main, ["events", *options])
        return done.stdout.splitlines(), done.stderr.splitlines(), done.exit_code


@pytest.fixture
def telling(monkeypatch: pytest.MonkeyPatch) -> Telling:
    return Telling(monkeypatch)


def test_all_of_it_by_time(telling: Telling) -> None:
    """Of several processes, of sub-pools and of connections."""
    lines, complaints, status = telling.shown(
        told(
            connection(at("0:0:1.5"), "opened"),
            connection(at("0:0:4.123"), "closed", text="idle, after 30.0 s and 12 calls"),
            connection(at("0:0:7"), "operator", peer="", text="closed all"),
        ),
        told(
            sub_pool(at("0:0:2"), "state", "healthy"),
            sub_pool(at("0:0:5"), "crash", "healthy", "it was killed"),
            sub_pool(at("0:0:6"), "instruction", "running", "restart\nnow"),
            name="10.0.0.5:9000",
        ),
        told(connection(at("0:0:3"), "accepted", peer="pid 30"), pid=4712),
    )
    assert (complaints, status) == ([], 0)
    assert lines == [
        "00:00:01.500  4711           10.0.0.7:9999              opened",
        "00:00:02.000  10.0.0.5:9000  pool 10.0.0.5:41235 (1.2)  healthy",
        "00:00:03.000  4712           pid 30                     accepted",
        "00:00:04.123  4711           10.0.0.7:9999              closed               "
        "idle, after 30.0 s and 12 calls",
        "00:00:05.000  10.0.0.5:9000  pool 10.0.0.5:41235 (1.2)  crash                "
        "it was killed",
        "00:00:06.000  10.0.0.5:9000  pool 10.0.0.5:41235 (1.2)  instruction running  restart now",
        "00:00:07.000  4711           -                          operator             closed all",
    ]


def test_what_is_too_long_for_its_column_moves_the_rest_of_its_line(telling: Telling) -> None:
    peer = "p" * (events.WIDEST + 5)
    lines, _, _ = telling.shown(
        told(
            connection(at("0:0:1"), "opened", peer="10.0.0.7:9"),
            connection(at("0:0:2"), "closed", peer=peer, text="idle"),
            connection(at("0:0:3"), "closed", peer="10.0.0.8:9", text="idle"),
        )
    )
    assert lines == [
        f"00:00:01.000  4711  {'10.0.0.7:9':{events.WIDEST}}  opened",
        f"00:00:02.000  4711  {peer}  closed  idle",
        f"00:00:03.000  4711  {'10.0.0.8:9':{events.WIDEST}}  closed  idle",
    ]


def test_json(telling: Telling) -> None:
    lines, _, _ = telling.shown(
        told(connection(at("0:0:2"), "closed", text="idle")),
        told(sub_pool(at("0:0:1"), "state", "healthy"), name="10.0.0.5:9000", missed=3),
        options=["--json"],
    )
    gap, event, happening = map(json.loads, lines)
    assert gap == {"main": "10.0.0.5:9000", "kind": "gap", "missed": 3}
    assert [*event] == [
        *("main", "sequence", "when", "kind", "address", "lineage", "incarnation", "pid"),
        *("label", "state", "text"),
    ]
    assert [*happening] == [
        *("pid", "process", "sequence", "when", "kind", "peer", "text", "times", "until"),
    ]
    assert (happening["pid"], happening["process"], happening["kind"]) == (4711, 4711, "closed")


def test_what_repeats_is_one_line(telling: Telling) -> None:
    many = connection(
        at("3:12:5"), "connect failed", text="refused", times=1234, until=at("3:13:4")
    )
    lines, _, _ = telling.shown(told(many))
    assert lines == [
        "03:12:05.000  4711  10.0.0.7:9999  connect failed  refused  "
        "(1,234 times, until 03:13:04.000)"
    ]
    for options, shown in (
        (["--since", f"{datetime.fromtimestamp(at('3:13:0')):%Y-%m-%dT%H:%M}"], 1),
        (["--since", f"{datetime.fromtimestamp(at('3:14:0')):%Y-%m-%dT%H:%M}"], 0),
        (["--until", f"{datetime.fromtimestamp(at('3:13:0')):%Y-%m-%dT%H:%M}"], 1),
        (["--until", f"{datetime.fromtimestamp(at('3:12:0')):%Y-%m-%dT%H:%M}"], 0),
    ):
        lines, _, _ = telling.shown(told(many), options=options)
        assert len(lines) == shown, options


def test_days(telling: Telling) -> None:
    """Where it is not today, and where it changes."""
    yesterday, before = (f"{TODAY - timedelta(days):%Y-%m-%d}" for days in (1, 2))
    lines, _, _ = telling.shown(
        told(
            connection(at("1:0:0", days=2), "opened"),
            connection(at("2:0:0", days=2), "opened"),
            connection(at("1:0:0", days=1), "opened"),
            connection(at("0:0:0"), "opened"),
        )
    )
    assert [each.split("  ")[0] for each in lines] == [
        *(f"-- {before} --", "01:00:00.000", "02:00:00.000"),
        *(f"-- {yesterday} --", "01:00:00.000"),
        *(f"-- {TODAY:%Y-%m-%d} --", "00:00:00.000"),
    ]
    lines, _, _ = telling.shown(
        told(connection(1e300, "opened"), connection(at("0:0:0"), "opened"))
    )
    assert [each.split("  ")[0] for each in lines] == ["00:00:00.000", "?" * 12]


SEVERAL = (
    told(
        connection(at("0:0:1"), "opened"),
        connection(at("0:0:2"), "connect failed", peer="[::1]:80"),
        connection(at("0:0:3"), "hung up", peer="pid 30"),
        connection(at("0:0:4"), "closed", peer="10.0.0.8:9999"),
    ),
    told(
        sub_pool(at("0:0:5"), "state", "healthy"),
        sub_pool(at("0:0:6"), "instruction", "running"),
        name="m:1",
    ),
)


@pytest.mark.parametrize(
    ("options", "shown"),
    [
        ([], "123456"),
        (["--kind", "connect-failed"], "2"),
        (["--kind", "Connect Failed", "--kind", "closed"], "24"),
        (["--kind", "state"], "5"),
        (["--kind", "instruction"], "6"),
        (["--peer", "10.0.0.?:9999"], "14"),
        (["--peer", "[::1]:80"], "2"),
        (["--peer", "pid *"], "3"),
        (["--peer", "10.*"], "1456"),
        (["--peer", "10.*", "--kind", "opened"], "1"),
        (["--last", "2"], "56"),
        (["--last", "0"], ""),
        (["--last", "99"], "123456"),
        (["--last", "1", "--kind", "opened"], "1"),
    ],
)
def test_a_part_of_it(telling: Telling, options: list[str], shown: str) -> None:
    lines, complaints, status = telling.shown(*SEVERAL, options=options)
    assert "".join(each[7] for each in lines) == shown
    assert status == 0
    nothing = [] if shown else ["Nothing that is asked for has happened."]
    assert complaints == nothing


def test_a_span_of_it(telling: Telling) -> None:
    """Both ends belong to it."""
    begin, end = (datetime.fromtimestamp(at(f"0:0:{n}")).isoformat() for n in (2, 4))
    lines, _, _ = telling.shown(*SEVERAL, options=["--since", begin, "--until", end])
    assert "".join(each[7] for each in lines) == "234"
    assert telling.options[1:] == ([SUB_POOLS, CONNECTIONS], at("0:0:2"))
    telling.shown(*SEVERAL, options=["--kind", "opened"])
    assert telling.options[1] == [CONNECTIONS], "the others are not asked for"


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--since", "3:1x"], "Invalid value for --since: '3:1x' is no time: give a time of day"),
        (["--until", "soon"], "Invalid value for --until: 'soon' is no time: give a time of day"),
        (
            ["--since", "1h", "--until", "2h"],
            "--until 2h is not after --since 1h: give a later one",
        ),
        (["--since", "3:12", "--until", "3:12"], "--until 3:12 is not after --since 3:12: give"),
        (["--follow", "--until", "1h"], "--follow goes on, and --until ends"),
        (["--kind", "fallen"], "'fallen' is none of state, crash, instruction, opened, closed, c"),
        (["--last", "-1"], "Invalid value for '--last'"),
    ],
)
def test_asked_wrongly(telling: Telling, options: list[str], why: str) -> None:
    lines, complaints, status = telling.shown(options=options)
    assert (lines, status) == ([], 2)
    assert why in complaints[-1]


def test_what_is_forgotten(telling: Telling) -> None:
    one = connection(at("0:0:9"), "opened")
    lines, _, _ = telling.shown(
        told(one, missed=5), told(one, pid=2, missed=None), told(one, pid=3)
    )
    assert lines[:2] == [
        "------------  5 events of 4711 are forgotten",
        "------------  2 is another process by now",
    ]
    assert len(lines) == 5
    lines, _, _ = telling.shown(told(one, missed=1), options=["--json"])
    assert json.loads(lines[0]) == {"pid": 4711, "process": 4711, "kind": "gap", "missed": 1}


def test_what_was_before_what_is_remembered(telling: Telling) -> None:
    since = ["--since", f"{TODAY:%Y-%m-%d}"]
    one, other = connection(at("0:0:9"), "opened"), sub_pool(at("0:0:8", days=0), "state", "dead")
    lines, remarks, status = telling.shown(
        told(one, missed=5),
        told(other, missed=5, name="m:1"),
        told(one, pid=2, missed=5, oldest=at("0:0:9", days=1)),
        told(one, pid=3),
        options=since,
    )
    assert remarks == [
        "xoscar-idle: 4711 remembers no further than 00:00:09",
        "xoscar-idle: m:1 remembers of its sub-pools no further than 00:00:08",
    ]
    assert (len(lines), status) == (4, 0)
    yesterday = TODAY - timedelta(days=1)
    old = told(connection(at("9:0:0", days=1), "opened"), missed=1)
    _, remarks, _ = telling.shown(old, options=["--since", "5d"])
    assert remarks == [f"xoscar-idle: 4711 remembers no further than {yesterday:%Y-%m-%d} 09:00:00"]
    lines, remarks, _ = telling.shown(told(one, missed=5), options=["--last", "5"])
    assert (len(lines), remarks) == (1, [])


def test_who_remembers_nothing(telling: Telling) -> None:
    lines, remarks, status = telling.shown(told(remembered=0, missed=7))
    assert (lines, status) == ([], 0)
    assert remarks == [
        "xoscar-idle: 4711 remembers nothing of its connections: XOSCAR_HISTORY is 0 there",
        "Nothing has happened to a sub-pool or a connection.",
    ]


def test_what_cannot_be_asked(telling: Telling) -> None:
    one = told(connection(at("0:0:1"), "opened"))
    lines, complaints, status = telling.shown(one, complaints=["there is\x1b no process 7"])
    assert (len(lines), status) == (1, 1)
    assert complaints == ["xoscar-idle: there is? no process 7"]
    _, complaints, status = telling.shown(options=["http://a"])
    assert (complaints, status) == (["Nothing has happened to a sub-pool."], 0)


def test_one_url_needs_no_name(telling: Telling) -> None:
    event = told(sub_pool(at("0:0:1"), "state", "healthy"), name="http://a")
    lines, _, _ = telling.shown(event, options=["http://a"])
    assert lines == ["00:00:01.000  pool 10.0.0.5:41235 (1.2)  healthy"]
    lines, _, _ = telling.shown(event, options=["http://a", "http://b"])
    assert lines == ["00:00:01.000  http://a  pool 10.0.0.5:41235 (1.2)  healthy"]


def test_who_the_other_side_is(telling: Telling) -> None:
    """As far as it is known now; which process that was may have changed."""
    known = {"address": ADDRESS, "index": 2, "label": "gpu", "here": True, "actors": ["a"]}
    telling.snapshots = [Snapshot(7, address=ADDRESS, pools=[{**known, "main": "m:1"}])]
    lines, _, _ = telling.shown(told(connection(at("0:0:1"), "opened")))
    assert lines == ["00:00:01.000  4711  10.0.0.7:9999 (#2 gpu)  opened"]


def test_the_same_pid_on_two_machines(telling: Telling) -> None:
    one = connection(at("0:0:1"), "opened")
    lines, _, _ = telling.shown(told(one, pid=1, name="a:1"), told(one, pid=1, name="b:1"))
    assert [each.split("  ")[1] for each in lines] == ["1", "1 at b:1"]


def test_follow_goes_on(telling: Telling) -> None:
    """What is missing, or wrong, is told once as long as it is."""
    first = told(connection(at("0:0:1"), "opened"), connection(at("0:0:2"), "opened"), missed=9)
    none = told(begins=False)
    later = told(connection(at("0:0:3"), "closed"), connection(at("0:0:4"), "opened"), begins=False)
    telling.looks = [([first], ["wrong"]), ([none], ["wrong"]), ([later], []), ([none], ["wrong"])]
    done = CliRunner().invoke(main, ["events", "--follow", "--last", "1"])
    assert [each.split("  ")[0] for each in done.stdout.splitlines()] == [
        "00:00:02.000",
        "00:00:03.000",
        "00:00:04.000",
    ]
    assert done.stderr == "xoscar-idle: wrong\n" * 2


# -- real pools ------------------------------------------------------------------------------------


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


@integration
def test_each_way_tells_the_same(host: Host, directory: Path) -> None:
    pools = web.request(f"{directory}/http", "/health").json["pools"]
    os.kill(pools[0]["pid"], signal.SIGKILL)
    path = f"{directory}/http"

    def is_back() -> bool:
        pools = web.request(path, "/health").json["pools"]
        return bool(pools[0]["incarnation"] == 2 and pools[0]["state"] == "healthy")

    eventually(is_back)
    told = [
        command("events", *OF_SUB_POOLS, each, directory=directory)
        for each in ways(host, directory)
    ]
    names = (f"{host.pid}  ", f"{host.main}  ", "")
    same = {each.replace(f"  {name}pool", "  pool") for each, name in zip(told, names, strict=True)}
    assert len(same) == 1, told
    lines = same.pop().splitlines()
    assert lines[0].split("  ")[1:] == [f"pool {host.first} (1.1)", "healthy"]
    assert "crash" in lines[2]
    assert "was killed by SIGKILL" in lines[2]
    states = [each.split("  ")[2] for each in lines[3:]]
    assert states == ["recovering", "starting", "healthy"]
    everybody = command("events", *OF_SUB_POOLS, directory=directory)
    assert everybody == told[0], "all that offer a monitor"
    given = command(
        "events", "--json", *OF_SUB_POOLS, f"{host.pid}", directory=directory
    ).splitlines()
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


@integration
@pytest.mark.parametrize("way", [0, 1, 2], ids=["pid", "pool", "socket"])
def test_follow(host: Host, directory: Path, way: int) -> None:
    env = environment(XOSCAR_IDLE_MONITOR=f"{directory}", PYTHONUNBUFFERED="1")
    target = ways(host, directory)[way]
    with started(*COMMAND, "events", "--follow", *OF_SUB_POOLS, target, env=env) as follower:
        assert "healthy" in line(follower)
        assert "healthy" in line(follower)
        pools = web.request(f"{directory}/http", "/health").json["pools"]
        os.kill(pools[1]["pid"], signal.SIGKILL)
        assert f"pool {host.second} (2.1)  crash  " in line(follower)
        while "(2.2)  healthy" not in line(follower):
            pass
        follower.send_signal(signal.SIGINT)
        assert follower.wait(BOUND) == 0


@integration
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


@integration
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


@integration
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


# -- what happened at 3:12 -------------------------------------------------------------------------

CLIENT = """
import asyncio, sys, xoscar as xo

async def call(address):
    try:
        print(await (await xo.actor_ref(address=address, uid="worker")).echo(1), flush=True)
    except Exception as error:
        print(type(error).__name__, flush=True)

async def main():
    while line := await asyncio.to_thread(sys.stdin.readline):
        await call(line.strip())

asyncio.run(main())
"""


def refuses(address: str) -> bool:
    """Whether nobody listens there."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), BOUND).close()
    except OSError as error:
        return isinstance(error, ConnectionRefusedError)
    return False


def clock(when: float) -> str:
    """As one gives it, with the day."""
    return datetime.fromtimestamp(when).isoformat(timespec="microseconds")


@integration
def test_an_incident_that_is_past(directory: Path) -> None:
    """A server is killed and comes again; later, whoever asks for that time sees what was."""
    env = environment(XOSCAR_IDLE_MONITOR=f"{directory}", XOSCAR_IDLE_TIMEOUT="600")
    with started(sys.executable, "-c", CLIENT, env=env) as client:

        def call(address: str) -> str:
            tell(client, address)
            return line(client)

        with pools(quiet=True) as first, pools() as other:
            (address,), (well,) = first.addresses, other.addresses
            assert (call(address), call(well)) == ("1", "1")
            before = time.time()
            os.kill(first.pid, signal.SIGKILL)
            eventually(lambda: refuses(address))  # its threads do not end all at once
            for _ in range(20):
                assert call(address) != "1"
            after = time.time()
            with pools() as later:
                assert call(later.addresses[0]) == "1"
                span = ("--since", clock(before), "--until", clock(after))
                told = command("events", *span, f"{client.pid}", directory=directory)
                lines = [each.split("  ") for each in told.splitlines() if each[:2] != "--"]
                assert [each[1:4] for each in lines] == [
                    [f"{client.pid}", address, "closed"],
                    [f"{client.pid}", address, "connect failed"],
                ]
                assert re.search(r"\((19|20) times", told), "one may have met the end itself"
                given = command("events", "--json", f"{client.pid}", directory=directory)
                kinds = [(json.loads(e)["kind"], json.loads(e)["peer"]) for e in given.splitlines()]
                assert kinds == [
                    ("opened", address),
                    ("opened", well),
                    ("closed", address),
                    ("connect failed", address),
                    ("opened", later.addresses[0]),
                ]
                told = command(
                    *("events", "--peer", well, "--kind", "closed", "--since", "1h"),
                    f"{client.pid}",
                    directory=directory,
                )
                assert told == "Nothing that is asked for has happened.\n"


@integration
def test_a_pool_with_all_its_processes(directory: Path) -> None:
    """One of which is stopped, with all its threads: the others are told all the same."""
    with pools(1, 2, XOSCAR_IDLE_TIMEOUT="600") as hosted:
        told = command("events", "--kind", "opened", hosted.addresses[1], directory=directory)
        shown = {each.split("  ")[1] for each in told.splitlines()}
        assert len(shown) == 3
        assert f"{hosted.pid}" in shown
        assert f"{hosted.addresses[1]} (#1)" in told
        (stopped, *_) = shown - {f"{hosted.pid}"}
        os.kill(int(stopped), signal.SIGSTOP)
        eventually(lambda: psutil.Process(int(stopped)).status() == psutil.STATUS_STOPPED)
        try:
            told = command(
                "events", "--kind", "opened", hosted.addresses[0], directory=directory, status=1
            )
        finally:
            os.kill(int(stopped), signal.SIGCONT)
        lines = [each.split("  ") for each in told.splitlines() if each[:2].isdecimal()]
        assert {each[1] for each in lines} == shown - {stopped}
        assert "did not answer in 5 s" in told


@integration
def test_follow_connections(directory: Path) -> None:
    """Of all that offer a monitor, also of those that come later."""
    variables = {"XOSCAR_IDLE_MONITOR": f"{directory}", "XOSCAR_IDLE_TIMEOUT": "600"}
    env = environment(PYTHONUNBUFFERED="1", **variables)
    with started(sys.executable, "-c", CLIENT, env=env) as first, refusing() as address:
        tell(first, address)
        line(first)
        follow = ("events", "--follow", "--kind", "connect-failed", "--json")
        with started(*COMMAND, *follow, env=env) as follower:
            assert json.loads(line(follower))["pid"] == first.pid
            with started(sys.executable, "-c", CLIENT, env=env) as second:
                tell(second, address)
                line(second)
                event = json.loads(line(follower))
                assert (event["pid"], event["peer"]) == (second.pid, address)
            follower.send_signal(signal.SIGINT)
            assert follower.wait(BOUND) == 0
