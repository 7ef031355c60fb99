"""What ``top`` shows at one moment: it fits, and all of it is reached."""

from __future__ import annotations

from typing import Any

import pytest
from rich.cells import cell_len

from xoscar_idle.commands import tables
from xoscar_idle.commands.details import details
from xoscar_idle.commands.listings import VIEWS, Seen
from xoscar_idle.commands.ordering import Sort
from xoscar_idle.commands.page import Page, page
from xoscar_idle.commands.rates import Look
from xoscar_idle.commands.view import View
from xoscar_idle.telemetry.snapshot import Snapshot

CONNECTION: dict[str, Any] = {"route": "10.0.0.1:5", "state": "open", "references": 0}
LONGEST = "255.255.255.255:65535"
COUNTS = (
    *("open", "active", "idle", "retired", "connecting", "requests_in_flight", "opened"),
    *("accepted_open", "calls"),
)
BUSY: dict[str, Any] = {**dict.fromkeys(COUNTS, 12345), "closed": {"idle": 1234567}}


def drawn(
    snapshots: list[Snapshot],
    height: int | None = None,
    view: View = View(),  # noqa: B008 (it cannot be changed)
    **given: Any,
) -> Page:
    return page(Seen.of(Look(snapshots)), view, height, **given)


def test_a_page_keeps_to_its_width_and_height() -> None:
    many = [{**CONNECTION, "route": f"198.51.100.100:{port}"} for port in range(60000, 60100)]
    shown = [
        Snapshot(7_654_321, "/usr/bin/python " + "x" * 200, connections=many),
        Snapshot(1, address="10.0.0.1:5", note="y" * 200),
    ]
    for columns in (60, 80, 200):
        text = drawn(shown, 24, complaint="a complaint", when="12:00:00").plain(columns)
        lines = text.splitlines()
        assert max(map(len, lines)) <= columns
        assert len(lines) == 24
        assert any("198.51.100.100:60000" in line for line in lines)
        assert lines[-1] == "rows 1 to 15 of 102"


@pytest.mark.parametrize("typing", [False, True])
@pytest.mark.parametrize("keys", [False, True])
@pytest.mark.parametrize("note", ["", "n"])
@pytest.mark.parametrize("n", [0, 5, 16, 17, 18, 19, 20, 100])
def test_no_page_is_too_high(n: int, note: str, keys: bool, typing: bool) -> None:
    shown = [Snapshot(1, connections=[CONNECTION] * n, note=note)]
    for name in VIEWS:
        found = drawn(shown, 24, View(name, typing=typing), keys=keys)
        lines = found.plain(80).splitlines()
        assert len(lines) <= 24
        assert max(map(len, lines)) <= 80
        if typing:
            assert lines[-1] == "/_"
        elif keys:
            assert lines[-1].endswith("q quits, h shows the keys, 1 to 4 are views, / filters")


def test_every_row_is_reached() -> None:
    shown = [
        Snapshot(pid, connections=[{**CONNECTION, "route": f"10.0.0.{pid}:5"}], note="n" * pid)
        for pid in range(1, 101)
    ]
    found: set[str] = set()
    for first in range(300):
        at = drawn(shown, 24, View(first=first), when="12:00:00")
        lines = at.plain(80).splitlines()
        assert len(lines) <= 24
        assert at.first == min(first, 200 - at.room)
        found |= {word for each in lines for word in each.split()}
    assert {f"10.0.0.{pid}:5" for pid in range(1, 101)} <= found
    assert drawn(shown, 1000, View(first=7)).first == 0, "all fit"


@pytest.mark.parametrize("columns", [80, 100, 150])
def test_addresses_are_shown_whole(columns: int) -> None:
    """They are all that tells processes apart."""
    connections = [
        {**CONNECTION, "route": LONGEST, "in_flight": 1000, "calls": 1234567, "age": 3720.0},
        {**CONNECTION, "route": "unixsocket:///2641362944", "address": "127.0.0.1:41235"},
        {**CONNECTION, "route": "10.0.0.9:80", "address": LONGEST, "idle": 3720.0},
    ]
    command = "/usr/bin/python -m serve --port 9"
    shown = Snapshot(7_654_321, command, LONGEST, 1048576, 1048576, BUSY, connections)
    lines = drawn([shown]).plain(columns).splitlines()
    assert max(map(len, lines)) <= columns
    assert len([each for each in lines if LONGEST in each]) == 3, lines
    assert any("127.0.0.1:41235 via unix" in each for each in lines)
    assert all("FDS" in each for each in lines if " PROCESS " in each)


def crowded() -> list[Snapshot]:
    """With the longest of everything that a process of a usual machine has."""
    name = {"index": 7, "label": "gpu", "actors": ["model"], "n_actors": 1, "here": True}
    connection = {
        **{**CONNECTION, "references": 1, "route": LONGEST, "in_flight": 1000},
        **{"calls": 1234567, "age": 3720.0, "idle": 3720.0, "descriptor": 12345},
        "local": LONGEST,
    }
    accepted = {
        **{"address": LONGEST, "peer": LONGEST, "in_process": 100, "requests": 1234567},
        **{"age": 3720.0, "idle": 3720.0, "descriptor": 12345},
    }
    return [
        Snapshot(
            7_654_321,
            "python",
            LONGEST,
            12345,
            1048576,
            BUSY,
            [connection],
            pools=[{"address": LONGEST, **name}],
            accepted=[accepted],
            status="unmonitored",
        )
    ]


@pytest.mark.parametrize("view", VIEWS)
def test_at_160_columns_all_are_there(view: str) -> None:
    lines = drawn(crowded(), view=View(view)).plain(160).splitlines()
    for listing in VIEWS[view]:
        assert any(each.split() == " ".join(listing.headers).split() for each in lines), (
            listing.headers
        )
    assert max(map(len, lines)) <= 160


@pytest.mark.parametrize("view", VIEWS)
def test_at_80_columns_what_matters_is_there(view: str) -> None:
    lines = drawn(crowded(), view=View(view)).plain(80).splitlines()
    assert max(map(len, lines)) <= 80
    headers = [each for each in lines if each.lstrip().startswith(("PID", "PEER", "FROM"))]
    assert len(headers) == len(VIEWS[view])
    for each in headers:
        assert any(f"  {header}  " in each for header in ("STATE", "PROCESSES", "POOLS"))
        assert "FDS" in each or "IDLE" in each
    host, _, _ = LONGEST.rpartition(":")
    assert len([each for each in lines if host in each]) == len(VIEWS[view])


def test_the_column_that_is_sorted_by_is_marked_and_stays() -> None:
    for sort, mark in ((Sort("OPENED"), "OPENED▼"), (Sort("OPENED", True), "OPENED▲")):
        lines = drawn(crowded(), view=View(sort=sort)).plain(80).splitlines()
        assert mark in lines[2]
        assert max(map(len, lines)) <= 80
    for sort, mark in ((Sort("STATE"), "STATE▲"), (Sort("STATE", True), "STATE▼")):
        lines = drawn(crowded(), view=View(sort=sort)).plain(80).splitlines()
        assert len([each for each in lines if mark in each]) == 2


def test_the_title_counts_what_the_filter_leaves() -> None:
    shown = [Snapshot(n, connections=[{**CONNECTION, "route": f"10.0.0.{n}:5"}]) for n in (1, 2)]
    found = drawn(shown, view=View("connections", filter="0.2:"), when="12:00:00")
    assert found.title.startswith("12:00:00  filter: 0.2:, 1 of 2; 2 processes, 2 connections")
    (table,) = found.tables
    assert len(table.rows) == 1
    none = drawn(shown, 24, View("peers", filter="\x1bx"), keys=True)
    assert "filter: ?x, 0 of 2; 2 processes, 2 peers" in none.title
    assert not none.tables


def test_the_title_counts_what_a_view_is_about() -> None:
    idle = {"peer": "10.0.0.1:1", "in_process": 0, "idle": 1.0}
    busy = {**idle, "in_process": 1, "idle": None}
    shown = [
        Snapshot(1, connections=[CONNECTION], accepted=[busy, idle, idle]),
        Snapshot(2, status="gone"),
    ]
    both, opened = "2 processes (1 gone)", "1 connection: 1 idle"
    accepted = "3 accepted connections: 1 active, 2 idle"
    for view, title in (
        ("processes", f"{both}, {opened}"),
        ("connections", f"{both}, {opened}"),
        ("peers", f"{both}, 1 peer, {opened}; 1 client, {accepted}"),
        ("accepted", f"{both}, {accepted}"),
    ):
        assert drawn(shown, view=View(view)).title == title
    assert drawn([], view=View("accepted")).title == "0 processes, no accepted connections"
    assert drawn([], view=View("peers")).title == "0 processes, 0 peers, no connections"


def test_the_end_of_what_is_typed_is_seen() -> None:
    text = drawn([Snapshot(1)], 24, View(filter="a" * 100 + "z", typing=True)).plain(60)
    last = text.splitlines()[-1]
    assert last.startswith("/…a")
    assert last.endswith("az_")
    assert len(last) == 60


def test_the_keys() -> None:
    lines = drawn([Snapshot(1)], 24, View(help=True)).plain(80).splitlines()
    assert lines[0] == "keys"
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize(
    ("one", "text"),
    [
        (Snapshot(7, note="there is no process 7"), "there is no process 7"),
        (Snapshot(7, note="did not answer in 27 s"), "7: did not answer in 27 s"),
        (Snapshot(None, address="a:1", note="does not answer"), "a:1: does not answer"),
        (Snapshot(None, address="a:1", note="no pool answers at a:1: x"), None),
        (Snapshot(7, address="a:1", note="no\nmonitor"), "7 at a:1: no monitor"),
    ],
)
def test_notes_name_their_process(one: Snapshot, text: str | None) -> None:
    assert list(drawn([one]).notes) == [one.note if text is None else text]


LONG = Snapshot(7, address="10.0.0.1:5", note="x" * 70 + " stopped: SIGCONT lets it go on")


def test_what_is_too_long_takes_several_lines_if_there_is_room() -> None:
    shown = [LONG, *(Snapshot(8, status=f"unlike-{n}") for n in range(10))]
    text = drawn(shown, width=80).plain(80)
    assert max(map(len, text.splitlines())) <= 80
    words = " ".join(text.split())
    assert "unlike-9), no connections PID" in words, "the title"
    assert words.endswith("SIGCONT lets it go on")
    assert f"\n    {LONG.note.split()[1]}" in text, "indented"
    for height, lines in ((24, 3), (6, 1)):  # a third of the height is for notes
        page = drawn([LONG], height, width=60)
        assert len(page.notes) == lines
        assert len(page.plain(60).splitlines()) <= height


def test_details_fit_a_terminal() -> None:
    lines = details(LONG, 60).splitlines()
    assert max(map(len, lines)) <= 60
    assert lines[-1].startswith(" " * 15)
    assert f"  note         {LONG.note}" in details(LONG).splitlines(), "for what reads it"


def test_a_label_matters_more_than_what_can_be_spared() -> None:
    at = "10.201.1.2:9100"
    name = {"address": at, "here": True, "index": 0, "label": "gpu-0", "actors": ["model"]}
    times = {"age": 3720.0, "idle": 3720.0, "descriptor": 12345}
    connection = {**CONNECTION, "route": at, "state": "established", "calls": 12345, **times}
    shown = [Snapshot(12345, connections=[connection], pools=[name])]
    for view, spared in (("connections", "FD"), ("peers", "RETIRED")):
        *_, header, row = drawn(shown, view=View(view)).plain(80).splitlines()
        assert spared not in header
        assert f"{at} (12345 #0 gpu-0" in row
    by_pid = {"peer": "pid 7", "address": "a:1", "in_process": 0, "descriptor": 12}
    shown = [Snapshot(7, "python " + "x" * 100), Snapshot(8, accepted=[by_pid])]
    *_, header, row = drawn(shown, view=View("accepted")).plain(80).splitlines()
    assert "pid 7 (python xxx" in row
    assert "REQUESTS" in header, "a command line has no end"


def test_a_command_does_nothing_to_the_terminal() -> None:
    shown = Snapshot(1, "python -c import x\n\n\x1b[2Jy()")
    (_, _, _, row) = drawn([shown]).plain(160).splitlines()
    assert "python -c import x ?[2Jy()" in row
    assert details(shown).startswith("process 1: python -c import x ?[2Jy()\n")


def test_an_address_that_is_too_long_keeps_its_port() -> None:
    address = "[2001:db8:1111:2222:3333:4444:5555:6666]:41235"
    shown = [Snapshot(1, "python", address, 1, 1024, BUSY)]
    (_, _, _, row) = drawn(shown).plain(60).splitlines()
    assert "[2001:db8" in row
    assert "…" in row
    assert "6666]:41235" in row


def test_characters_that_take_the_room_of_two() -> None:
    wide = {**CONNECTION, "route": "10.0.0.2:5", "calls": 7}
    name = {"address": "10.0.0.2:5", "here": True, "actors": ["模型" * 30], "n_actors": 1}
    shown = [Snapshot(1, connections=[CONNECTION, wide], pools=[name])]
    for columns in (60, 61, 80, 200):
        header, *rows = drawn(shown, view=View("connections")).plain(columns).splitlines()[2:]
        assert len({cell_len(each) for each in (header, *rows)}) == 1, rows
        assert cell_len(header) <= columns


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "-"), (0, "0.0s"), (59.94, "59.9s"), (61, "1m01s"), (3720, "1h02m"), (90000, "1d01h")],
)
def test_durations(seconds: float | None, text: str) -> None:
    assert tables.duration(seconds) == text
