"""What follows from snapshots: names, rates, totals by peer, and which rows are where."""

from __future__ import annotations

from typing import Any

import pytest

from xoscar_idle.commands import listings, peers
from xoscar_idle.commands.details import details
from xoscar_idle.commands.listings import (
    ACCEPTED,
    CLIENTS,
    CONNECTIONS,
    PEERS,
    PROCESSES,
    VIEWS,
    Listing,
    Seen,
    headers,
)
from xoscar_idle.commands.names import Name, names, of_peer
from xoscar_idle.commands.ordering import Sort, arranged, parse
from xoscar_idle.commands.rates import Look, Rates, rates
from xoscar_idle.telemetry.snapshot import BLOCKED, Snapshot

MAIN, SUB = "10.0.0.5:9000", "10.0.0.5:9001"
COUNTS = ("open", "active", "idle", "retired", "connecting", "requests_in_flight", "opened")


def statistics(**given: Any) -> dict[str, Any]:
    return {**dict.fromkeys(COUNTS, 0), "closed": {"idle": 0, "cap": 0}, **given}


def pool(address: str, index: int, **given: Any) -> dict[str, Any]:
    route = f"unixsocket:///{index}"
    nobody: dict[str, Any] = {"label": None, "here": False, "actors": [], "n_actors": 0}
    return {"address": address, "index": index, "main": MAIN, "route": route, **nobody, **given}


def connection(address: str, **given: Any) -> dict[str, Any]:
    told = {"address": address, "route": address, "state": "open", "references": 0}
    return {**told, "in_flight": 0, "calls": 1, "age": 1.0, "idle": 1.0, "descriptor": 7, **given}


def accepted(peer: str, **given: Any) -> dict[str, Any]:
    told = {"address": SUB, "peer": peer, "transport": "socket", "in_process": 0, "requests": 5}
    return {**told, "age": 60.0, "idle": 3.0, "descriptor": 9, "thread": 1, **given}


def from_outside(end: str, peer: str, opened: bool) -> dict[str, Any]:
    """A connection as the kernel tells of it."""
    told = {"state": "established", "transport": "socket", "descriptor": 3}
    ends = {"local": end, "route": peer} if opened else {"address": end, "peer": peer}
    return {**told, **ends}


def process(pid: int, *pools: dict[str, Any], **given: Any) -> Snapshot:
    return Snapshot(pid, process=f"name of {pid}", pools=list(pools), **given)


def seen(*snapshots: Snapshot) -> Seen:
    return Seen.of(Look(snapshots))


def cells(listing: Listing, *snapshots: Snapshot) -> list[dict[str, str]]:
    """By header."""
    rows = arranged(listing, seen(*snapshots)).rows
    return [dict(zip(listing.headers, each, strict=True)) for each in rows]


# Names


def test_a_pool_in_its_process_is_known_with_all() -> None:
    gpu = pool(SUB, 1, label="gpu", here=True, actors=["model-a", "model-b"], n_actors=2)
    found = names([process(4711, pool(MAIN, 0, here=True)), process(4712, gpu)])
    assert found[SUB] == Name(4712, 1, "gpu", ("model-a", "model-b"), 2)
    assert found["unixsocket:///1"] == found[SUB]
    assert str(found[SUB]) == "4712 #1 gpu: model-a, model-b"
    assert str(found[MAIN]) == "4711 #0"


def test_a_sibling_that_is_not_shown_has_no_pid() -> None:
    found = names([process(4711, pool(MAIN, 0, here=True), pool(SUB, 1, label="gpu"))])
    assert found[SUB] == Name(None, 1, "gpu")
    assert str(found[SUB]) == "#1 gpu"


def test_one_that_is_blocked_is_known_by_its_siblings() -> None:
    told = process(4711, pool(MAIN, 0, here=True), pool(SUB, 1, label="gpu"))
    blocked = Snapshot(4712, address=SUB, status=BLOCKED)
    assert str(names([told, blocked])[SUB]) == "4712 #1 gpu"
    assert cells(PROCESSES, told, blocked)[1]["PROCESS"] == f"{SUB} (#1 gpu)"
    assert str(names([blocked])[SUB]) == "4712"


def test_an_address_that_two_claim_is_nobodys() -> None:
    """Each on a machine of its own, as far as it can reach."""
    here, there = (process(pid, pool("127.0.0.1:9000", 0, here=True)) for pid in (1, 2))
    assert set(names([here, there])) == {"pid 1", "pid 2"}
    assert names([here, here])["127.0.0.1:9000"] == Name(1, 0)
    beside = (process(pid, pool(SUB, pid)) for pid in (1, 2))
    assert SUB not in names([*beside])


def test_a_pool_that_listens_on_all_addresses() -> None:
    found = names([process(1, pool("0.0.0.0:9000", 0, here=True), address=MAIN)])
    assert found[MAIN] == found["0.0.0.0:9000"] == Name(1, 0)


def test_more_actors_than_are_named() -> None:
    name = Name(1, 2, "cpu", ("a", "b"), 20)
    assert str(name) == "1 #2 cpu: a, b, 18 more"


def test_the_peer_of_a_unix_socket() -> None:
    gpu = process(4712, pool(SUB, 1, here=True, label="gpu"), accepted=[accepted("pid 99")])
    client = Snapshot(99, "/usr/bin/python client.py")
    (row,) = cells(ACCEPTED, gpu, client)
    assert row["PEER"] == "pid 99 (python client.py)"
    assert str(names([gpu])["pid 4712"]) == f"{SUB} #1 gpu"
    (row,) = cells(ACCEPTED, gpu, client, Snapshot(99, "/usr/bin/python client.py"))
    assert row["PEER"] == "pid 99", "of two machines perhaps"


def test_names_of_what_is_connected_to() -> None:
    sub = process(4712, pool(SUB, 1, here=True, label="gpu"))
    over = connection(SUB, route="unixsocket:///1")
    unknown = connection("127.0.0.1:1", route="unixsocket:///1")
    rows = cells(CONNECTIONS, sub, Snapshot(1, connections=[over, unknown]))
    assert [each["CONNECTION TO"] for each in rows] == [
        f"{SUB} (4712 #1 gpu) via unixsocket:///1",
        "127.0.0.1:1 (4712 #1 gpu) via unixsocket:///1",
    ]


def peer_of(peer: str, address: str, *snapshots: Snapshot) -> str | None:
    name = of_peer({"peer": peer, "address": address}, names(snapshots))
    return None if name is None else str(name)


def test_who_has_opened_what_was_accepted() -> None:
    """By its own end, in another process, and on another machine."""
    own = {"local": "10.0.0.7:50000"}
    gpu = process(4712, pool(SUB, 1, here=True, label="gpu"))
    client = process(
        77, pool("10.0.0.7:9000", 0, here=True, label="cpu"), connections=[connection(SUB, **own)]
    )
    for at in (SUB, "0.0.0.0:9001", "gpu-host:9001"):
        assert peer_of("10.0.0.7:50000", at, gpu, client) == "77 #0 cpu"
    for peer, at in (
        ("10.0.0.7:50001", SUB),
        ("10.0.0.8:50000", SUB),
        ("10.0.0.7:50000", MAIN),
        ("?", SUB),
    ):
        assert peer_of(peer, at, gpu, client) is None
    told = accepted("10.0.0.7:50000")
    (row,) = cells(ACCEPTED, process(1, accepted=[told]), client)
    assert row["PEER"] == "10.0.0.7:50000 (77 #0 cpu)"


def test_the_same_own_end_at_two_machines() -> None:
    """It is nobody's, unless the connections are to different hosts."""
    at = "127.0.0.1:9000"
    one, other = (
        process(pid, connections=[connection(at, local="127.0.0.1:50000")], command=f"c{pid}")
        for pid in (1, 2)
    )
    assert peer_of("127.0.0.1:50000", at, one) == "1 c1"
    assert peer_of("127.0.0.1:50000", at, one, one) == "1 c1", "it is seen twice"
    assert peer_of("127.0.0.1:50000", at, one, other) is None
    elsewhere = process(3, connections=[connection("127.0.0.3:9000", local="127.0.0.1:50000")])
    assert peer_of("127.0.0.1:50000", at, one, elsewhere) == "1 c1"
    assert peer_of("127.0.0.1:50000", "0.0.0.0:9000", one, elsewhere) is None


def test_a_port_of_a_connection_is_none_of_a_pool() -> None:
    there = process(1, pool("127.0.0.1:50000", 0, here=True))
    assert peer_of("127.0.0.1:50000", SUB, there) is None


def test_which_of_several_pools_has_connected_is_not_known() -> None:
    both = [pool(f"10.0.0.7:900{n}", 0, here=True, label=f"gpu-{n}") for n in (0, 1)]
    held = {"connections": [connection(SUB, local="10.0.0.7:50000")], "address": "10.0.0.7:9000"}
    several = process(77, *both, **held)
    assert peer_of("10.0.0.7:50000", SUB, several) == "77 at 10.0.0.7:9000"
    assert str(names([several])["pid 77"]) == "10.0.0.7:9000"
    assert str(names([process(77, *both)])["pid 77"]) == "10.0.0.7:9000"


def test_who_does_not_tell_has_connections_all_the_same() -> None:
    """The kernel tells of them."""
    held = [from_outside("10.0.0.5:50000", MAIN, opened=True)]
    program = Snapshot(5, "/usr/bin/python client.py", connections=held, process="here 5")
    assert peer_of("10.0.0.5:50000", MAIN, program) == "5 python client.py"
    stopped = Snapshot(6, "python", SUB, connections=held, process="here 6", status=BLOCKED)
    assert peer_of("10.0.0.5:50000", MAIN, stopped) == f"6 at {SUB}"
    main = process(4711, pool(MAIN, 0, here=True), pool(SUB, 1, label="gpu"))
    assert peer_of("10.0.0.5:50000", MAIN, main, stopped) == "6 #1 gpu"


# Rates


def looks(before: Snapshot, now: Snapshot, seconds: float = 2.0) -> list[Rates]:
    return list(rates(Look([before], 10.0), Look([now], 10.0 + seconds)).values())


def test_rates_are_per_second_since_the_look_before() -> None:
    before = process(1, statistics=statistics(opened=10, closed={"idle": 2}, calls=100))
    now = process(1, statistics=statistics(opened=13, closed={"idle": 3, "cap": 1}, calls=300))
    assert looks(before, now) == [Rates(1.5, 1.0, 100.0)]
    row = PROCESSES.about(Seen.of(Look([now], 12.0), Look([before], 10.0)))[0]
    told = {each.header: each.cell(row) for each in PROCESSES.columns}
    assert (told["OPEN/s"], told["CLOSE/s"], told["CALLS/s"]) == ("1.5", "1.0", "100")


def test_there_are_no_rates_without_two_looks_at_the_same_process() -> None:
    one, other = process(1, statistics=statistics()), process(2, statistics=statistics())
    assert rates(None, Look([one], 1.0)) == {}
    assert looks(one, one, 0.0) == []
    assert looks(one, other) == []
    assert looks(one, Snapshot(1, statistics=statistics())) == [], "it has its name no more"
    assert looks(Snapshot(None), Snapshot(None)) == []
    assert looks(process(1), one) == [], "it did not answer"
    assert looks(one, process(1)) == [Rates()]
    (row,) = cells(PROCESSES, one)
    assert {row[each] for each in ("OPEN/s", "CLOSE/s", "CALLS/s")} == {"-"}


def test_processes_of_older_versions_are_known_by_their_pid() -> None:
    before, now = (Snapshot(1, statistics=statistics(opened=n)) for n in (1, 3))
    assert looks(before, now) == [Rates(1.0, 0.0, None)]
    assert looks(now, before) == [Rates(None, 0.0, None)], "another one has the number"


# Peers


def test_connections_are_added_up_by_peer() -> None:
    first = [
        connection(MAIN, references=1, in_flight=2, calls=10),
        connection(MAIN, calls=5),
        connection(SUB, state="retired", references=1, calls=1),
        connection(SUB, state="closing"),
    ]
    kernel = {"route": MAIN, "transport": "socket", "state": "established", "descriptor": 3}
    sub = process(3, pool(SUB, 1, here=True, label="gpu", actors=["a"], n_actors=1))
    shown = [Snapshot(1, connections=first), Snapshot(2, connections=[kernel]), sub]
    main, other = (each.to_dict() for each in peers.peers(shown, names(shown)))
    assert main == {
        **{"address": MAIN, "pid": None, "index": None, "label": None, "actors": []},
        **{"processes": 2, "open": 3, "active": 1, "idle": 1, "retired": 0},
        **{"requests_in_flight": 2, "calls": 15},
    }
    assert other == {
        **{"address": SUB, "pid": 3, "index": 1, "label": "gpu", "actors": ["a"]},
        **{"processes": 1, "open": 1, "active": 0, "idle": 0, "retired": 1},
        **{"requests_in_flight": 0, "calls": 1},
    }
    rows = cells(PEERS, *shown)
    assert [each["PEER"] for each in rows] == [MAIN, f"{SUB} (3 #1 gpu: a)"]
    (row,) = cells(PEERS, shown[1])
    assert list(row.values())[2:] == ["1", "-", "-", "-", "-", "-"], "the kernel does not know"
    (row,) = cells(PEERS, shown[0], shown[1])[:1]
    assert [row[each] for each in ("OPEN", "ACTIVE", "IDLE")] == ["3", "1", "1"], "of those it does"


# Clients


def test_what_was_accepted_is_added_up_by_who_has_connected() -> None:
    """By process, where it is known, and else by host."""
    known = process(
        77,
        pool("10.0.0.7:9000", 0, here=True, label="cpu", actors=["a"], n_actors=1),
        connections=[
            connection(each, local=f"10.0.0.7:5000{n}") for n, each in enumerate((MAIN, SUB))
        ],
    )
    busy: dict[str, Any] = {"in_process": 2, "idle": None}
    main = process(
        1,
        accepted=[
            accepted("10.0.0.7:50000", address=MAIN, **busy),
            accepted("10.0.0.7:50007", address=MAIN),
            accepted("pid 77", address="unixsocket:///1"),
            accepted("pid 78", address="unixsocket:///1"),
        ],
    )
    others = [accepted(f"10.0.0.7:{port}") for port in (50001, 50008, 50009)]
    seen_from_outside = Snapshot(
        3, accepted=[from_outside(SUB, each, opened=False) for each in ("10.0.0.7:6", "[fd::7]:6")]
    )
    shown = [known, main, process(2, accepted=others), seen_from_outside]
    found = [each.to_dict() for each in peers.clients(shown, names(shown))]
    nobody: dict[str, Any] = {"pid": None, "index": None, "label": None, "actors": []}
    cpu = {"index": 0, "label": "cpu", "actors": ["a"]}
    assert found == [
        {
            **{"host": "10.0.0.7", **nobody, "pools": 3, "open": 4},
            **{"active": 0, "idle": 3, "in_process": 0, "requests": 15},
        },
        {
            **{"host": "10.0.0.7", "pid": 77, **cpu, "pools": 2, "open": 2},
            **{"active": 1, "idle": 1, "in_process": 2, "requests": 10},
        },
        {
            **{"host": "[fd::7]", **nobody, "pools": 1, "open": 1},
            **{"active": None, "idle": None, "in_process": None, "requests": None},
        },
        {
            **{"host": "pid 77", "pid": 77, **cpu, "pools": 1, "open": 1},
            **{"active": 0, "idle": 1, "in_process": 0, "requests": 5},
        },
        {
            **{"host": "pid 78", **nobody, "pid": 78, "pools": 1, "open": 1},
            **{"active": 0, "idle": 1, "in_process": 0, "requests": 5},
        },
    ]
    assert [[*each.values()] for each in cells(CLIENTS, *shown)] == [
        ["10.0.0.7", "3", "4", "0", "3", "0", "15"],
        ["10.0.0.7 (77 #0 cpu: a)", "2", "2", "1", "1", "2", "10"],
        ["[fd::7]", "1", "1", "-", "-", "-", "-"],
        ["pid 77 (10.0.0.7:9000 #0 cpu: a)", "1", "1", "0", "1", "0", "5"],
        ["pid 78", "1", "1", "0", "1", "0", "5"],
    ]


def test_both_sides_of_connections_between_processes_agree() -> None:
    ends = {"local": "10.0.0.7:50000"}
    client = process(77, connections=[connection(SUB, **ends)], command="client")
    gpu = process(4712, pool(SUB, 1, here=True), accepted=[accepted("10.0.0.7:50000")])
    (to,), (from_,) = cells(PEERS, client, gpu), cells(CLIENTS, client, gpu)
    assert (to["PEER"], to["OPEN"]) == (f"{SUB} (4712 #1)", "1")
    assert (from_["FROM"], from_["OPEN"]) == ("10.0.0.7 (77 client)", "1")


@pytest.mark.parametrize("peer", ["?", "", "\x1b", "a b", "pid x", f"pid {'9' * 5000}", ":1"])
def test_clients_that_are_odd(peer: str) -> None:
    """They are told by other versions, or by none of ours."""
    shown = [Snapshot(1, accepted=[accepted(peer)]), Snapshot(2, accepted=[{"peer": 7}])]
    found = [each.to_dict() for each in peers.clients(shown, names(shown))]
    assert [(each["pid"], each["open"]) for each in found] == [(None, 1), (None, 1)]


# Rows


def test_accepted_connections() -> None:
    busy = accepted("10.0.0.7:51234", in_process=2, idle=None)
    rows = cells(ACCEPTED, Snapshot(1, accepted=[accepted("10.0.0.6:50000"), busy]))
    assert [list(each.values()) for each in rows] == [
        ["1", "10.0.0.7:51234", SUB, "active", "2", "5", "1m00s", "-", "9"],
        ["1", "10.0.0.6:50000", SUB, "idle", "0", "5", "1m00s", "3.0s", "9"],
    ]
    told = from_outside(SUB, "10.0.0.6:50000", opened=False)
    (row,) = cells(ACCEPTED, Snapshot(1, accepted=[told]))
    assert [*row.values()] == [*("1", "10.0.0.6:50000", SUB, "established"), *"----", "3"]


def test_a_unix_socket_is_known_by_the_address_of_its_pool() -> None:
    here = pool(SUB, 1, here=True, route="unixsocket:///7")
    at = {"peer": "pid 4", "transport": "unixsocket", "in_process": 0}
    known, unknown = ({**at, "address": f"unixsocket:///{n}"} for n in (7, 8))
    rows = cells(ACCEPTED, process(3, here, accepted=[known, unknown]))
    assert [each["TO"] for each in rows] == [SUB, "unixsocket:///8"]


def test_states_of_what_is_in_use_come_first() -> None:
    used = connection("10.0.0.9:9", references=2)
    rows = cells(CONNECTIONS, Snapshot(1, connections=[connection(MAIN), used]))
    assert [each["STATE"] for each in rows] == ["active", "idle"]


def test_what_is_missing_or_blocked_is_a_row() -> None:
    gone = Snapshot(None, address=MAIN, status="gone", note="no pool answers")
    (row,) = cells(PROCESSES, gone)
    assert (row.pop("PROCESS"), row.pop("STATE")) == (MAIN, "gone")
    assert set(row.values()) == {"-"}


@pytest.mark.parametrize(
    "told", [{}, {"open": "2J\x1b[2J", "closed": 3, "calls": float("nan")}, {"closed": {"a": "b"}}]
)
def test_what_is_not_told_is_a_dash(told: dict[str, Any]) -> None:
    """By an older version, or by none of ours."""
    one = Snapshot(1, "python", statistics=told)
    (row,) = cells(PROCESSES, one)
    assert {row[each] for each in ("OPEN", "ACC", "CALLS/s", "REQS")} == {"-"}
    assert "\x1b" not in details(one)
    assert "- open" in details(one)


def test_details_tell_both_sides() -> None:
    told = statistics(
        open=3,
        active=1,
        idle=2,
        opened=9,
        closed={"idle": 5, "cap": 1, "age": 0},
        calls=1200,
        calls_seconds=2.5,
        deadlines_missed=4,
        resent=5,
        lost=6,
        probes=7,
        probes_failed=1,
        accepted_open=8,
        accepted_active=2,
        accepted_idle=6,
        accepted=20,
        accepted_closed={"peer": 11, "idle": 1},
        requests_in_process=3,
        settings={"idle_timeout": 60.0, "max_age": None},
        origins={"idle_timeout": "environment", "max_age": "default"},
    )
    one = process(1, pool(SUB, 1, here=True, label="gpu"), statistics=told, address=SUB, note="n")
    assert details(one).splitlines() == [
        f"process 1 at {SUB}",
        "  pool         #1 gpu",
        "  connections  3 open: 1 active, 2 idle, 0 retired; 0 connecting",
        "  opened       9",
        "  closed       6: 5 idle, 1 cap",
        "  connects     - failed, - spent connecting, - over the cap",
        "  requests     0 in flight",
        "  calls        1200 answered, in 2.500 s of waiting; 4 missed their deadline, "
        "5 were sent again, 6 lost their connection",
        "  probes       7, 1 without an answer",
        "  accepted     8 open: 2 active, 6 idle; 3 requests in process; 20 so far, "
        "closed 12: 11 peer, 1 idle",
        "  settings     idle_timeout=60.0 (environment)",
        "  descriptors  -",
        "  note         n",
    ]


def test_nothing_that_is_told_does_something_to_the_terminal() -> None:
    evil = "x\x1b[2J\u202e\n"
    shown = Snapshot(
        1,
        evil,
        evil,
        connections=[connection(evil, route=evil, state=evil, idle=evil)],
        note=evil,
        status=evil,
        pools=[pool(evil, 1, here=True, label=evil, actors=[evil], n_actors=1)],
        accepted=[accepted(evil, address=evil, age=evil)],
    )
    for listing in (PROCESSES, CONNECTIONS, PEERS, CLIENTS, ACCEPTED):
        for row in arranged(listing, seen(shown)).rows:
            assert "".join(row).isprintable()
    assert details(shown).replace("\n", "").isprintable()


# Sorting and filtering


def column(listing: Listing, header: str, sort: str, *snapshots: Snapshot) -> list[str]:
    rows = arranged(listing, seen(*snapshots), parse(sort, listing.headers)).rows
    return [each[listing.headers.index(header)] for each in rows]


def test_numbers_are_sorted_as_such_and_what_is_not_known_is_last() -> None:
    shown = [Snapshot(n, statistics=statistics(open=n)) for n in (9, 100, 20)]
    shown.insert(1, Snapshot(5))
    assert column(PROCESSES, "OPEN", "open", *shown) == ["100", "20", "9", "-"]
    assert column(PROCESSES, "OPEN", "-Open", *shown) == ["9", "20", "100", "-"]


def test_durations_are_sorted_by_their_seconds() -> None:
    ages = [59.0, 3700.0, 90000.0, None, 61.0]
    held = [connection(f"10.0.0.{n}:1", age=age) for n, age in enumerate(ages)]
    found = column(CONNECTIONS, "AGE", "age", Snapshot(1, connections=held))
    assert found == ["1d01h", "1h01m", "1m01s", "59.0s", "-"]


def test_numbers_in_texts_are_sorted_as_such() -> None:
    to = ["10.0.0.10:9", "10.0.0.9:80", "10.0.0.9:9", "b:1", "A:1"]
    shown = Snapshot(1, connections=[connection(each) for each in to])
    found = column(CONNECTIONS, "CONNECTION TO", "connection to", shown)
    assert found == ["10.0.0.9:9", "10.0.0.9:80", "10.0.0.10:9", "A:1", "b:1"]
    assert column(CONNECTIONS, "CONNECTION TO", "-connection to", shown) == found[::-1]
    digits = Snapshot(1, connections=[connection("9" * 5000), connection("1" * 5000)])
    assert column(CONNECTIONS, "CONNECTION TO", "connection to", digits)[0] == "1" * 5000


def test_equals_keep_the_default_order() -> None:
    shown = [Snapshot(n, statistics=statistics(open=1)) for n in (3, 1, 2)]
    for sort in ("open", "-open"):
        assert column(PROCESSES, "PID", sort, *shown) == ["3", "1", "2"]


def test_a_column_that_a_listing_does_not_have_leaves_it_as_it_is() -> None:
    held = [connection(MAIN), connection(SUB)]
    rows = arranged(CONNECTIONS, seen(Snapshot(1, connections=held)), Sort("FDS"))
    assert [each[1] for each in rows.rows] == [MAIN, SUB]
    assert rows.sort is None


@pytest.mark.parametrize("view", VIEWS)
def test_each_view_can_be_sorted_by_each_of_its_columns(view: str) -> None:
    gpu = pool(SUB, 1, here=True, label="gpu")
    both: dict[str, Any] = {"connections": [connection(MAIN)], "accepted": [accepted("pid 1")]}
    shown = seen(process(1, gpu, statistics=statistics(), **both), Snapshot(2, **both), Snapshot(3))
    for header in headers(view):
        for text in (header.lower(), f"-{header}"):
            sort = parse(text, headers(view))
            assert sort.header == header
            for listing in VIEWS[view]:
                rows = arranged(listing, shown, sort)
                assert len(rows.rows) == len(listing.about(shown))


def test_no_such_column() -> None:
    with pytest.raises(ValueError, match=r"'x\?' is none of its columns: PEER, PROCESSES, "):
        parse("x\x1b", headers("peers"))


def test_a_filter_leaves_rows_with_the_text_in_any_cell() -> None:
    gpu = process(4712, pool(SUB, 1, here=True, label="GPU", actors=["Qwen"], n_actors=1))
    held = [connection(MAIN), connection(SUB), connection("10.0.0.7:1", references=1)]
    shown = seen(gpu, Snapshot(1, connections=held))
    for text, found in (
        ("qwen", [SUB]),
        ("gpu", [SUB]),
        ("ACTIVE", ["10.0.0.7:1"]),
        ("", ["10.0.0.7:1", MAIN, SUB]),
        ("nothing", []),
    ):
        rows = arranged(CONNECTIONS, shown, None, text)
        assert [each[1].partition(" ")[0] for each in rows.rows] == found
        assert rows.total == 3


def test_rates_are_short() -> None:
    assert [listings.per_second(each) for each in (None, 0.0, 99.94, 99.96, 12345.6)] == [
        *("-", "0.0", "99.9", "100", "12346")
    ]
