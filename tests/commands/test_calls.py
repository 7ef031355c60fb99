"""``xoscar-idle calls``: what is shown of what is told; and real pools, one of them blocked."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import re
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from xoscar_idle.commands.cli import main
from xoscar_idle.connection.loops import AT_REST, BLOCKED, RUNNING, Loop
from xoscar_idle.connection.underway import (
    ACCEPTING,
    CALLING,
    CONNECTING,
    HELD,
    IN_FLIGHT,
    IN_PROCESS,
    Call,
)
from xoscar_idle.telemetry import calls, snapshot
from xoscar_idle.telemetry.calls import Underway
from xoscar_idle.telemetry.snapshot import Snapshot

from ..support import hosting, processes
from ..support.endpoints import refusing
from ..support.patients import patient
from ..support.waiting import BOUND, eventually

integration = pytest.mark.integration


class Telling:
    """Processes that tell what the test says."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seen: list[Underway] = []
        self.complaints: list[str] = []
        self.asked: list[object] = []
        monkeypatch.setattr(calls, "look", self._look)
        monkeypatch.setenv("COLUMNS", "100")

    async def _look(self, named: Sequence[object]) -> tuple[list[Underway], list[str]]:
        self.asked.extend(named)
        return self.seen, self.complaints

    def shown(self, *options: str) -> tuple[list[str], list[str], int]:
        """Lines of stdout, of stderr, and the exit status."""
        done = CliRunner().invoke(main, ["calls", *options])
        assert done.exception is None or isinstance(done.exception, SystemExit)
        return done.stdout.splitlines(), done.stderr.splitlines(), done.exit_code


@pytest.fixture
def telling(monkeypatch: pytest.MonkeyPatch) -> Telling:
    return Telling(monkeypatch)


def pool(address: str, index: int, here: bool = True, **more: Any) -> dict[str, Any]:
    return {"address": address, "index": index, "main": "10.0.0.5:9000", "here": here, **more}


CLIENT = Snapshot(4711, process="x", command="python client.py")
MAIN = Snapshot(
    13959,
    address="10.0.0.5:9000",
    process="y",
    pools=[
        pool("10.0.0.5:9000", 0),
        pool("10.0.0.5:41235", 1, here=False, label="gpu-0", actors=["model"], n_actors=1),
    ],
)
SUB = Snapshot(13970, address="10.0.0.5:41235", process="z")


def calling(seconds: float, peer: str = "10.0.0.5:41235", **more: Any) -> Call:
    made: dict[str, Any] = {"kind": "send", "actor": "model", "method": "generate", **more}
    return Call(CALLING, made.pop("state", IN_FLIGHT), seconds, peer=peer, **made)


def accepting(seconds: float, peer: str = "10.0.0.7:33194", **more: Any) -> Call:
    made: dict[str, Any] = {"kind": "send", "actor": "model", "method": "generate", **more}
    return Call(ACCEPTING, IN_PROCESS, seconds, peer=peer, **made)


def test_the_oldest_first(telling: Telling) -> None:
    """Of all processes together, and whose each peer is."""
    telling.seen = [
        Underway(
            CLIENT,
            [
                calling(51.94),
                calling(0.24, "10.0.0.5:9000", method="", kind="has_actor"),
                calling(3700.0, "10.0.0.9:1", via="10.0.0.8:1", actor="", method="", kind="cancel"),
                calling(2.0, state=HELD),
                calling(1.0, "10.0.0.6:1", state=CONNECTING, actor="", method="", count=1234),
            ],
        ),
        Underway(MAIN),
        Underway(SUB, [accepting(51.9, "pid 4711")], left_out=1),
    ]
    lines, complaints, status = telling.shown("10.0.0.5:9000", "4711")
    assert (telling.asked, complaints, status) == (["10.0.0.5:9000", 4711], [], 0)
    assert lines == [
        "3 processes, calls under way: 5 calling, 1 accepting",
        "",
        "  AGE    PID  SIDE       PEER                             ACTOR  METHOD        STATE",
        "1h01m   4711  calling    10.0.0.9:1 via 10.0.0.8:1        -      (cancel)      in flight",
        "51.9s   4711  calling    10.0.0.5:41235 (13970 #1 gpu-0)  model  generate()    in flight",
        "51.9s  13970  accepting  pid 4711 (python client.py)      model  generate()    in process",
        " 2.0s   4711  calling    10.0.0.5:41235 (13970 #1 gpu-0)  model  generate()    held",
        " 1.0s   4711  calling    10.0.0.6:1                       -      (1234 calls)  connecting",
        " 0.2s   4711  calling    10.0.0.5:9000 (13959 #0)         model  (has_actor)   in flight",
        "13970 at 10.0.0.5:41235: 1 younger call, not listed",
    ]


def test_who_calls_over_a_connection_that_is_shown(telling: Telling) -> None:
    opened = {"local": "10.0.0.7:33194", "route": "10.0.0.5:9000"}
    client = dataclasses.replace(CLIENT, connections=[opened])
    telling.seen = [Underway(client), Underway(MAIN, [accepting(1.0, address="10.0.0.5:9000")])]
    lines, _, _ = telling.shown()
    assert "  10.0.0.7:33194 (4711 python client.py)  " in lines[-1]


def test_nothing_is_under_way(telling: Telling) -> None:
    telling.seen = [Underway(CLIENT, loops=[Loop(1, "MainThread", RUNNING)])]
    assert telling.shown() == (["1 process, no calls under way"], [], 0)


def test_some_of_them(telling: Telling) -> None:
    """By age, and by what is in a cell."""
    telling.seen = [Underway(CLIENT, [calling(60.0), calling(59.0, method="Stop"), calling(61.0)])]
    for options, ages in (
        (("--min-age", "60"), ["61.0s", "1m00s"]),
        (("--filter", "STOP"), ["59.0s"]),
        (("--min-age", "60", "--filter", "stop"), []),
        (("--filter", ""), ["1m01s", "1m00s", "59.0s"]),
    ):
        title, *lines = telling.shown(*options)[0]
        del lines[:2]
        assert [line.split()[0] for line in lines] == [a.replace("61.0s", "1m01s") for a in ages]
        assert title.endswith("3 calling") == (len(ages) == 3)
        assert title.endswith(f"3 calling; {len(ages)} of them shown") == (len(ages) < 3)
    told = json.loads(
        CliRunner().invoke(main, ["calls", "--json", "--min-age", "61", "--filter", "gen"]).stdout
    )
    assert [each["seconds"] for each in told[0]["calls"]] == [61.0]


STACK = "".join(f'  File "/x/{n}.py", line {n}, in call_{n}\n    call_{n}()\n' for n in range(13))


def test_a_blocked_loop(telling: Telling) -> None:
    """Its stack up to its outer end, where that is asked for."""
    loops = [Loop(1, "MainThread", RUNNING), Loop(7, "worker", BLOCKED, 51.94, STACK)]
    telling.seen = [Underway(MAIN, loops=loops)]
    lines, complaints, status = telling.shown()
    assert (complaints, status) == ([], 3)
    assert lines[:5] == [
        "1 process (1 blocked), no calls under way",
        "",
        "13959 at 10.0.0.5:9000: its event loop in worker is blocked, for 51.9s at least",
        "    it is doing, the innermost call first:",
        '      File "/x/0.py", line 0, in call_0',
    ]
    assert lines[-2:] == ["        call_9()", "      … 6 more lines, which --full shows"]
    full = telling.shown("--full")[0]
    assert full[:-6] == lines[:-1]
    assert full[-1] == "        call_12()"
    assert all(len(line) <= 100 for line in full)


def test_one_of_which_its_main_pool_tells(telling: Telling) -> None:
    note = "did not answer in 5 s, nor over its local socket; it is stopped"
    silent = Snapshot(13970, address="10.0.0.5:41235", status=snapshot.BLOCKED, note=note)
    telling.seen = [
        Underway(silent, [accepting(7.0, "")], loops=[Loop(0, "", BLOCKED)], told_by=13959)
    ]
    lines, complaints, status = telling.shown()
    assert (complaints, status) == ([], 3)
    assert lines == [
        "1 process (1 blocked), calls under way: 1 accepting",
        "",
        " AGE    PID  SIDE       PEER  ACTOR  METHOD      STATE",
        "7.0s  13970  accepting  -     model  generate()  in process",
        "",
        "13970 at 10.0.0.5:41235: did not answer in 5 s, nor over its local socket; it is stopped",
        "13970 at 10.0.0.5:41235: its event loop is blocked, as its main pool knows",
    ]


def test_those_of_which_nobody_tells(telling: Telling) -> None:
    """It is said once, on stderr, with what could not be read of others."""
    blocked = Snapshot(None, address="a:1", status=snapshot.BLOCKED, note="did not answer in 5 s")
    telling.seen = [
        Underway(blocked, complaint="a:1: did not answer in 5 s"),
        Underway(CLIENT, note="something could not be read:\nx"),
    ]
    telling.complaints = ["a:1: did not answer in 5 s"]
    assert telling.shown() == (
        ["2 processes (1 blocked), no calls under way"],
        [
            "xoscar-idle: a:1: did not answer in 5 s",
            "xoscar-idle: 4711: something could not be read: x",
        ],
        3,
    )
    telling.seen, telling.complaints = [], ["nobody"]
    assert telling.shown() == ([], ["xoscar-idle: nobody"], 1)
    assert telling.shown("--json") == (["[]"], ["xoscar-idle: nobody"], 1)


def test_calls_of_a_loop_that_nobody_runs(telling: Telling) -> None:
    """Not of one that runs in the same thread by now."""
    loops = [Loop(1, "MainThread", RUNNING), Loop(1, "MainThread", AT_REST), Loop(2, "", AT_REST)]
    waiting = [calling(9.0, thread=1), calling(8.0, thread=2), calling(7.0, thread=2)]
    telling.seen = [Underway(CLIENT, waiting, loops=loops)]
    lines, _, status = telling.shown()
    assert (lines[-2:], status) == (
        ["", "4711: no thread runs an event loop at present, and 2 calls of it wait"],
        0,
    )


def test_what_would_do_something_to_a_terminal(telling: Telling) -> None:
    odd = "\x1b[31mred\r\n" + "x" * 300
    call = calling(1.0, odd, via=odd, actor=odd, method=odd, state=odd, kind=odd)
    other = calling(1.0, method="", kind=odd)
    loop = Loop(1, odd, BLOCKED, 1.0, f"{odd}\n{odd}")
    one = Snapshot(1, address=odd, note=odd, status=snapshot.BLOCKED)
    telling.seen = [Underway(one, [call, other], 1, [loop], note=odd)]
    telling.complaints = [odd]
    lines, complaints, status = telling.shown("--full")
    assert status == 3
    assert all(line.isprintable() and len(line) <= 100 for line in lines)
    assert all(line.isprintable() for line in complaints)


@pytest.mark.parametrize("columns", [40, 60, 79])
def test_a_narrow_terminal(telling: Telling, monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    """Columns that can be spared are left out: the side, and then the state."""
    monkeypatch.setenv("COLUMNS", f"{columns}")
    telling.seen = [Underway(MAIN, [calling(51.9)], 7), Underway(SUB, [accepting(51.9, "pid 1")])]
    lines, _, _ = telling.shown()
    assert all(len(line) <= columns for line in lines)
    (header,) = (line for line in lines if "PEER" in line)
    assert ("SIDE" in header, "STATE" in header) == (columns > 60, columns > 40)


def test_json(telling: Telling) -> None:
    loops = [Loop(7, "worker", BLOCKED, 51.94, STACK)]
    telling.seen = [
        Underway(CLIENT, [calling(1.0), calling(2.0)], 3, loops, note="odd"),
        Underway(Snapshot(None, address="a:1", status=snapshot.GONE), complaint="it is gone"),
    ]
    lines, _, status = telling.shown("--json")
    first, second = json.loads("\n".join(lines))
    assert status == 3
    assert first == {
        "pid": 4711,
        "address": None,
        "command": "python client.py",
        "status": "active",
        "blocked": True,
        "told_by": None,
        "note": "odd",
        "calls": [vars(calling(1.0)), vars(calling(2.0))],
        "left_out": 3,
        "loops": [vars(each) for each in loops],
    }
    assert (second["pid"], second["status"], second["note"]) == (None, "gone", "it is gone")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--min-age", "nan"], "nan is not a number of seconds"),
        (["--min-age", "-1"], "is not in the range"),
        (["http://a:1/"], "no address of a pool that can be asked"),
    ],
)
def test_bad_usage(arguments: list[str], says: str) -> None:
    done = CliRunner().invoke(main, ["calls", *arguments])
    assert done.exit_code == 2
    assert says in " ".join(done.output.replace("\n", " ").split())


# -- real pools ------------------------------------------------------------------------------------


@pytest.fixture
def sockets(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Where monitors are, for these tests alone; a path that is short enough."""
    with tempfile.TemporaryDirectory() as directory:
        monkeypatch.setenv("XOSCAR_IDLE_MONITOR", directory)
        yield directory


def run(*arguments: str) -> tuple[str, str, int]:
    command = (sys.executable, "-m", "xoscar_idle", "calls", *arguments)
    done = processes.run(*command, status=None, env={**os.environ, "COLUMNS": "120"})
    assert "Traceback" not in done.stderr, done.stderr
    return done.stdout, done.stderr, done.returncode


@integration
@pytest.mark.usefixtures("sockets")
def test_real_pools(tmp_path: Path) -> None:
    """One of them is blocked; named by address and by nothing, and nobody is at another address."""
    end, begun = tmp_path / "end", tmp_path / "end.begun"

    async def block(address: str) -> None:
        await (await patient(address)).block(f"{end}")

    with hosting.pools(1, 1, XOSCAR_IDLE_TIMEOUT="60") as hosted:
        main_pool, sub_pool = hosted.addresses
        assert run() == ("2 processes, no calls under way\n", "", 0)
        calling = threading.Thread(target=asyncio.run, args=(block(sub_pool),), daemon=True)
        calling.start()
        try:
            eventually(begun.exists)
            with refusing() as nobody:
                output, complaint, status = run(main_pool, nobody)
            offered, nothing, same = run("--min-age", "0.001")
        finally:
            end.touch()
            calling.join(BOUND)
    assert (status, same, nothing) == (3, 3, "")
    assert complaint.startswith(f"xoscar-idle: no pool answers at {nobody}: ")
    assert output.startswith("3 processes (1 blocked), calls under way: 1 accepting\n")
    row = rf"^ *\d+\.\ds +\d+  accepting  .*  patient {sub_pool}  block\(\)  in process$"
    for each in (output, offered):
        assert re.search(row, each, re.MULTILINE)
        assert re.search(
            rf"^\d+ at {sub_pool}: its event loop in MainThread is", each, re.MULTILINE
        )
        assert re.search(r"^      File .*, in block$", each, re.MULTILINE)
