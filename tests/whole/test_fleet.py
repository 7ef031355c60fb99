"""Commands look at a fleet: 40 pools in eight processes on two nodes, five of them not well."""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from ..commands.test_top import terminal
from ..support import processes, programs
from ..support.fleets import (
    BLOCKED,
    CALLS,
    COMMAND,
    DESK,
    FOREIGN,
    GONE,
    HEALTHY,
    INACTIVE,
    NODES,
    POOLS,
    ROLES,
    STOPPED,
    TIMES,
    Fleet,
    Member,
    fleet,
    unavailable,
)
from ..support.hosting import pools, worker
from ..support.waiting import eventually

pytestmark = pytest.mark.integration

STATUS = {
    HEALTHY: "active",
    BLOCKED: "blocked",
    STOPPED: "blocked",
    GONE: "gone",
    INACTIVE: "inactive",
    FOREIGN: "foreign",
}
"""What a process is called, by what has become of it."""


@pytest.fixture(scope="module")
def eight() -> Iterator[Fleet]:
    if reason := unavailable():
        programs.missing(reason)
    with fleet() as made:
        yield made


def named(one: Member) -> str:
    """How it is named: by an address, but where it is to be seen as another user's."""
    return f"{one.pid}" if one.role == FOREIGN else one.addresses[0]


def at_hand(eight: Fleet) -> list[str]:
    """All of them, but by numbers, where they can be told of: one that is blocked takes no 5 s."""
    remote = GONE, INACTIVE
    members = eight.members.values()
    return [each.addresses[0] if each.role in remote else f"{each.pid}" for each in members]


def addresses(members: list[Member]) -> list[str]:
    return [each for one in members for each in one.addresses]


@pytest.fixture(scope="module")
def listed(eight: Fleet) -> str:
    """A file that names each process once."""
    path = eight.directory / "hosts"
    path.write_text("# the fleet\n" + "".join(f"{named(m)}\n" for m in eight.members.values()))
    return f"@{path}"


@pytest.fixture(scope="module")
def told(eight: Fleet, listed: str) -> dict[str, dict[str, Any]]:
    """All that is told of each."""
    done = eight.run("stats", "--json", listed)
    assert (done.returncode, done.stderr) == (3, "")
    return dict(zip(eight.members, json.loads(done.stdout), strict=True))


def rows(text: str) -> list[str]:
    """Those of the first table of a page."""
    return text.split("\n\n")[1].splitlines()[1:]


# Each process


def test_each_process_is_what_has_become_of_it(
    eight: Fleet, told: dict[str, dict[str, Any]]
) -> None:
    found = {name: each["status"] for name, each in told.items()}
    assert found == {name: STATUS[each.role] for name, each in eight.members.items()}
    for name, each in told.items():
        assert each["pid"] == (None if eight[name].role == GONE else eight[name].pid)
        if eight[name].role != FOREIGN:
            assert each["address"] == eight[name].addresses[0]


def test_what_is_not_well_says_why(eight: Fleet, told: dict[str, dict[str, Any]]) -> None:
    for role, says in (
        (BLOCKED, "did not answer in 5 s: its event loop is blocked; it told this over the local"),
        (STOPPED, "nor over its local socket; it is stopped: SIGCONT lets it go on; seen from"),
        (GONE, "no pool answers at "),
        (INACTIVE, "xoscar-idle is not active there"),
        (FOREIGN, ": run this as that user, or as root"),
    ):
        (one,) = eight.of(role)
        assert says in told[one.name]["note"]
        if role not in (GONE, INACTIVE):
            assert told[one.name]["command"].endswith(f" tests.support.fleets {one.name}")
    assert not any(told[each.name]["note"] for each in eight.of(HEALTHY))


def test_connections_are_those_that_calls_have_opened(
    eight: Fleet, told: dict[str, dict[str, Any]]
) -> None:
    under_way = {("eve", eight["ada"].addresses[0]), ("eve", eight["bob"].addresses[0])}
    for one in eight.of(HEALTHY, BLOCKED):
        calls = {  # looking the actor up is one, too
            eight[name].addresses[pool]: 2 * TIMES
            for name, numbers in CALLS[one.name].items()
            for pool in numbers
            if eight[name].role != GONE
        }
        for _, address in {each for each in under_way if each[0] == one.name}:
            calls[address] = calls.get(address, 0) + 2
        connections = told[one.name]["connections"]
        assert {each["address"]: each["calls"] for each in connections} == calls
        for each in connections:
            assert each["in_flight"] == ((one.name, each["address"]) in under_way)


def test_totals_are_those_of_the_connections(eight: Fleet, told: dict[str, dict[str, Any]]) -> None:
    for one in eight.of(HEALTHY, BLOCKED):
        total, connections = told[one.name]["statistics"], told[one.name]["connections"]
        uses = Counter("active" if each["references"] else "idle" for each in connections)
        assert (total["open"], total["active"], total["idle"]) == (
            *(len(connections), uses["active"], uses["idle"]),
        )
        assert total["opened"] - sum(total["closed"].values()) == total["open"]
        assert total["requests_in_flight"] == sum(each["in_flight"] for each in connections)
        assert total["accepted_open"] == len(told[one.name]["accepted"])
        assert total["accepted"] - sum(total["accepted_closed"].values()) == total["accepted_open"]


def test_the_long_call_is_seen_from_both_sides(
    eight: Fleet, told: dict[str, dict[str, Any]]
) -> None:
    called = eight["ada"].addresses[0]
    (one,) = (each for each in told["eve"]["connections"] if each["address"] == called)
    assert (one["in_flight"], one["idle"]) == (1, None)
    (accepted,) = (
        each
        for each in told["ada"]["accepted"]
        if each["in_process"] and each["peer"].startswith(NODES["b"])
    )
    assert accepted["address"] == called


def test_one_that_is_named_by_all_its_addresses_is_a_line(eight: Fleet) -> None:
    """Another user's tells over xoscar, as all do; one that is stopped is seen from outside."""
    known = eight.of(HEALTHY, BLOCKED, STOPPED, FOREIGN)
    done = eight.run("top", "--once", *addresses(known))
    assert done.returncode == 3
    assert [each.split()[0] for each in rows(done.stdout)] == [f"{each.pid}" for each in known]
    (stopped,) = eight.of(STOPPED)
    told = by_peer(eight, *stopped.addresses, f"{stopped.pid}")
    held = {each["address"]: (each["processes"], each["open"]) for each in told["to"]}
    called = [eight[name].addresses[0] for name in CALLS[stopped.name]]
    assert held == dict.fromkeys(called, (1, 1))
    assert [(each["host"], each["open"]) for each in told["from"]] == [(f"{NODES['a']}.2", 1)]


# Exit statuses


def test_exit_statuses(eight: Fleet, listed: str) -> None:
    """That with one which is blocked, whatever else, is with :func:`told`."""
    for command in (["top", "--once"], ["stats"], ["stats", "--by-peer"]):
        missing = map(named, eight.of(GONE, FOREIGN))
        assert eight.run(*command, *missing).returncode == 1
        assert eight.run(*command, "10.201.2.2:9[1-2]00", "10.201.1.2:9100").returncode == 0
        assert eight.run(*command, "10.201.2.2:9?00", listed).returncode == 1, "one is gone"
    done = eight.run("stats", "--by-peer", *at_hand(eight))
    assert done.returncode == 3
    complaints = done.stderr.splitlines()
    for one in eight.of(STOPPED, FOREIGN, GONE, INACTIVE):
        assert any(named(one) in each or f"{one.pid}" in each for each in complaints)


def test_doctor(eight: Fleet) -> None:
    assert eight.run("doctor", "10.201.2.2:9[1-2]00").returncode == 0
    done = eight.run("doctor", "--json", *at_hand(eight))
    assert done.returncode == 1
    report = json.loads(done.stdout)
    active = {HEALTHY: True, BLOCKED: True, INACTIVE: False}
    assert [each["active"] for each in report["processes"]] == [
        active.get(each.role) for each in eight.members.values()
    ]


def test_ping(eight: Fleet) -> None:
    asked = [each.addresses[0] for each in eight.members.values()]
    done = eight.run("ping", "--json", "--timeout", "3", *asked, at=DESK)
    assert done.returncode == 1
    reasons = {BLOCKED: "timed_out", STOPPED: "timed_out", GONE: "refused"}
    assert [each["reason"] for each in json.loads(done.stdout)] == [
        reasons.get(each.role) for each in eight.members.values()
    ]
    assert eight.run("ping", "--quiet", "10.201.2.2:9[1-2]0[0-4]").returncode == 0


# Across processes


def by_peer(eight: Fleet, *names: str) -> dict[str, list[dict[str, Any]]]:
    done = eight.run("stats", "--by-peer", "--json", *names)
    assert done.returncode == 3, "one is stopped"
    told: dict[str, list[dict[str, Any]]] = json.loads(done.stdout)
    return told


def test_peers_agree_with_who_has_accepted(eight: Fleet) -> None:
    """All that offer a monitor are asked, over it: nobody is connected to by who looks."""
    healthy = eight.of(HEALTHY)

    def agree() -> bool:
        done = eight.run("stats", "--json")
        assert done.returncode == 3, "one is stopped"
        accepted = Counter(
            connection["address"]
            for one in json.loads(done.stdout)
            if one["pid"] in [each.pid for each in healthy]
            for connection in one["accepted"]
        )
        opened = {each["address"]: each["open"] for each in by_peer(eight)["to"]}
        # Who has looked before may be hung up on just now.
        return {a: n for a, n in opened.items() if a in addresses(healthy)} == accepted

    eventually(agree)


def test_who_has_connected_is_known_across_processes(eight: Fleet) -> None:
    """On both nodes, whether they tell or are seen from outside: all that have opened it."""
    shown = eight.of(HEALTHY, BLOCKED, STOPPED)
    to_them = {
        one.pid: sum(len(pools) for name, pools in CALLS[one.name].items() if eight[name] in shown)
        for one in shown
    }
    to_them[eight["eve"].pid] += 1  # the call that blocks
    told = by_peer(eight)
    found = {each["pid"]: each for each in told["from"] if each["pid"] is not None}
    assert {pid: each["open"] for pid, each in found.items()} == to_them
    for each in found.values():
        assert each["pools"] == each["open"], "one connection to each"
    for one in shown:
        assert found[one.pid]["host"] == f"{NODES[ROLES[one.name][0]]}.2"
    opened = {each["address"]: each["open"] for each in told["to"]}
    assert sum(opened.get(each, 0) for each in addresses(shown)) == sum(to_them.values())


def test_accepted_connections_have_names(eight: Fleet, told: dict[str, dict[str, Any]]) -> None:
    text = eight.run("top", "--once", "--view", "accepted", columns=200).stdout
    for one in eight.of(HEALTHY, BLOCKED):
        for each in told[one.name]["connections"]:
            if each["address"] in addresses(eight.of(HEALTHY, BLOCKED, STOPPED)):
                name = f"{each['local']} ({one.pid} at {one.addresses[0]})"
                assert re.search(rf"  {re.escape(name)} +{each['address']}  ", text), text
    (stopped,) = eight.of(STOPPED)
    name = rf"{NODES['a']}.2:\d+ \({stopped.pid} python\S* -m tests.support.fleets {stopped.name}\)"
    assert re.search(rf"  {name} +{eight['ada'].addresses[0]}  ", text), text


def test_who_is_behind_an_address_is_known_across_processes(eight: Fleet) -> None:
    found = {each["address"]: each for each in by_peer(eight)["to"]}
    called = {
        eight[name].addresses[pool]: (eight[name], pool)
        for one in eight.of(HEALTHY, BLOCKED)
        for name, numbers in CALLS[one.name].items()
        for pool in numbers
        if eight[name].role in (HEALTHY, BLOCKED)
    }
    for address, (one, pool) in called.items():
        who = {key: found[address][key] for key in ("pid", "index", "label", "actors")}
        label = list(POOLS)[pool]
        assert who == {"pid": one.pid, "index": 0, "label": label, "actors": [one.actor(pool)]}
    text = eight.run("top", "--once", "--view", "connections").stdout
    for address, (one, pool) in called.items():
        assert f"  {address} ({one.pid} #0 {list(POOLS)[pool]}: {one.actor(pool)})  " in text


def test_who_is_behind_a_unix_socket() -> None:
    async def visit(first: str, second: str) -> None:
        assert await (await worker(first)).visit([second], 1) == [1]

    with pools(1, 2, XOSCAR_IDLE_TIMEOUT="600") as hosted:
        _, first, second = hosted.addresses
        asyncio.run(visit(first, second))
        command = (sys.executable, "-c", COMMAND, "top", "--once", "--view", "accepted")
        env = {**os.environ, "COLUMNS": "200"}
        text = processes.run(*command, hosted.addresses[0], env=env).stdout
    assert re.search(rf"  pid \d+ \({first} #1: worker\) +{second} +idle ", text), text


def test_from_elsewhere_there_is_no_local_socket(eight: Fleet, listed: str) -> None:
    done = eight.run("top", "--once", listed, at=DESK)
    assert done.returncode == 3
    assert done.stdout.startswith("8 processes (2 blocked, 1 foreign, 1 gone, 1 inactive), ")
    assert len(rows(done.stdout)) == 8
    for each in eight.of(BLOCKED, STOPPED):
        assert re.search(rf"^ +-  {each.addresses[0]} +blocked ", done.stdout, re.MULTILINE)
        assert f"{each.addresses[0]}: did not answer in 5 s: its event loop may be" in done.stdout
    (stopped,) = eight.of(STOPPED)
    (seen,) = json.loads(eight.run("stats", "--json", f"{stopped.pid}", at=DESK).stdout)
    assert "its TCP connections are in another network namespace, where nobody" in seen["note"]


# Screens


@pytest.mark.parametrize("columns", [80, 160])
@pytest.mark.parametrize("view", ["processes", "connections", "peers", "accepted"])
def test_a_page_fits(eight: Fleet, view: str, columns: int) -> None:
    done = eight.run("top", "--once", "--view", view, *at_hand(eight), columns=columns)
    assert max(map(len, done.stdout.splitlines())) <= columns
    assert done.stdout.startswith("8 processes (")
    assert "SIGCONT lets it go on" in " ".join(done.stdout.split())
    if view == "processes":
        for name, one, row in zip(
            at_hand(eight), eight.members.values(), rows(done.stdout), strict=True
        ):
            assert name in row
            assert one.role == BLOCKED or f"  {STATUS[one.role]} " in row


@pytest.mark.parametrize("columns", [80, 160])
def test_a_terminal(eight: Fleet, columns: int) -> None:
    argv = eight.command("top", "--interval", "1000", *at_hand(eight))
    env = eight.environment(TERM="xterm-256color")
    prelude = f"import os; os.execvpe({argv[0]!r}, {argv!r}, {env!r}); "
    with terminal(columns, prelude=prelude) as shown:
        shown.wait_for(r"^\d+:\d+:\d+  8 processes \(", " FDS$", "q quits, h shows the keys")
        screen = shown.lines()
        first = next(i for i, each in enumerate(screen) if re.match(" *PID  PROCESS", each)) + 1
        for name, row in zip(at_hand(eight), screen[first:], strict=False):
            assert name in row
        assert not screen[first + 8], "a row has taken two lines"
        shown.type(b"3")
        shown.wait_for("^PEER ", r"  8 processes .* peers")
        assert shown.press(b"q") == 0
    assert "Traceback" not in shown.output
