"""Metrics: real programs that serve them, the alert rules, the dashboard and the page on them."""

from __future__ import annotations

import asyncio
import dataclasses
import importlib.metadata
import itertools
import json
import logging
import os
import platform
import re
import resource
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import xoscar as xo
from xoscar.backends.message import SendMessage, new_message_id
from xoscar.backends.router import Router
from xoscar.core import create_actor_ref

import xoscar_idle
from xoscar_idle import config
from xoscar_idle.connection import counters, routing, statistics, tally
from xoscar_idle.connection.caller import ActorCaller
from xoscar_idle.connection.tally import Latencies
from xoscar_idle.supervision import pools as supervised
from xoscar_idle.supervision.state import PoolInfo, State
from xoscar_idle.telemetry import figures, metrics

from ..support import processes, programs
from ..support.endpoints import HOST, refusing
from ..support.environment import environment
from ..support.hosting import pools, worker
from ..support.peers import peers
from ..support.processes import ROOT
from ..support.serving import Series, serving
from ..support.waiting import bounded, eventually, eventually_here

pytestmark = pytest.mark.integration

DOCS = ROOT / "docs"
LIBRARIES = ("prometheus_client", "aioprometheus")
ON = {"XOSCAR_IDLE_TIMEOUT": "600"}
UNLABELLED = {"label": ""}


def value(series: Series, name: str, **labels: str) -> float:
    return series[name, tuple(sorted(labels.items()))]


def total(series: Series, metric: str) -> float:
    """The sum over all labels of a metric."""
    return sum(number for (name, _), number in series.items() if name == metric)


def connections(series: Series) -> dict[str, float]:
    """By state, as far as there are any, and over TCP."""
    return {
        dict(labels)["state"]: number
        for (name, labels), number in series.items()
        if name == "xoscar_connections" and dict(labels)["transport"] == "socket" and number
    }


def of_sub_pools(series: Series) -> set[str]:
    """The names of what is shown of sub-pools."""
    return {name for name, _ in series if name.startswith(("xoscar_pool_", "xoscar_crashes_"))}


def states(series: Series) -> dict[str, str]:
    """The state of each sub-pool."""
    return {
        dict(labels)["pool"]: dict(labels)["state"]
        for (name, labels), number in series.items()
        if name == "xoscar_pool_state" and number
    }


def methods(series: Series) -> dict[str, float]:
    """How many calls there are of each method."""
    return {
        dict(labels).get("method", ""): number
        for (name, labels), number in series.items()
        if name == "xoscar_call_seconds_count"
    }


def settings(series: Series) -> dict[str, tuple[str, str]]:
    """The value of each setting, and where it came from; each has one series."""
    found = [dict(labels) for name, labels in series if name == "xoscar_idle_setting_info"]
    told = {each["setting"]: (each["value"], each["origin"]) for each in found}
    assert len(told) == len(found)
    return told


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("library_first", [True, False], ids=["before xoscar", "after xoscar"])
def test_a_program_shows_its_connections(library: str, library_first: bool) -> None:
    """In use, idle, closed; from the first to the last, without a word about them in its code."""
    modules = (library, "xoscar") if library_first else ("xoscar", library)
    with pools(3) as hosted, serving(*modules, **ON) as program:
        start = program.scrape()
        assert total(start, "xoscar_connections_opened_total") == 0
        assert connections(start) == {}
        for state in figures.STATES:
            assert value(start, "xoscar_connections", state=state, transport="socket") == 0
        assert value(start, "xoscar_idle_active") == 1

        program.tell("call", *hosted.addresses)
        with refusing() as refused:
            program.tell("fail", refused)
        eventually(lambda: connections(program.scrape()) == {"idle": 3})
        called = program.scrape()
        assert value(called, "xoscar_connections_opened_total") == 3
        assert value(called, "xoscar_connects_failed_total") == 1
        assert value(called, "xoscar_connect_seconds_count") == 4
        assert value(called, "xoscar_connect_seconds_bucket", le="+Inf") == 4
        assert value(called, "xoscar_connect_seconds_sum") > 0

        program.tell("sleep", hosted.addresses[0])
        eventually(lambda: value(program.scrape(), "xoscar_requests_in_flight") == 1)
        eventually(lambda: connections(program.scrape()) == {"active": 1, "idle": 2})
        program.tell("idle_timeout", 0.1)
        eventually(lambda: connections(program.scrape()) == {"active": 1})
        busy = program.scrape()
        assert value(busy, "xoscar_connections_closed_total", reason="idle") == 2
        assert (
            value(busy, "xoscar_connections_opened_total")
            == total(busy, "xoscar_connections") + total(busy, "xoscar_connections_closed_total")
            == 3
        )

        program.tell("cancel")
        eventually(lambda: total(program.scrape(), "xoscar_connections_closed_total") == 3)
        end = program.scrape()
        assert total(end, "xoscar_connections") == 0
        assert {name for name, _ in start.keys() ^ end.keys()} <= {
            "xoscar_connections",
            "xoscar_idle_setting_info",
        }
        assert not any(address in program.text() for address in hosted.addresses)


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_program_shows_how_long_its_calls_took(library: str) -> None:
    with pools(2) as hosted, serving("xoscar", library, **ON) as program:
        assert value(program.scrape(), "xoscar_call_seconds_count") == 0
        program.tell("call", *hosted.addresses)
        # Two of each: one for the reference, one of the method.
        eventually(lambda: value(program.scrape(), "xoscar_call_seconds_count") >= 4)
        series = program.scrape()
        assert value(series, "xoscar_call_seconds_sum") > 0
        assert value(series, "xoscar_call_seconds_bucket", le="300.0") >= 4
        assert methods(series).keys() == {""}


@pytest.mark.parametrize("library", LIBRARIES)
def test_by_method_where_it_is_asked_for(library: str) -> None:
    variables = {**ON, "XOSCAR_CALL_METRICS": "method"}
    with pools(2) as hosted, serving("xoscar", library, **variables) as program:
        assert methods(program.scrape()) == {"": 0, tally.OTHERS: 0}
        program.tell("call", *hosted.addresses, *hosted.addresses)
        eventually(lambda: methods(program.scrape()).get("echo") == 4)
        series = program.scrape()
        assert value(series, "xoscar_call_seconds_bucket", method="echo", le="+Inf") == 4
        assert methods(series)[""] == methods(series)[tally.OTHERS] == 0


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_program_shows_its_settings_but_no_secret_and_no_place(
    library: str, tmp_path: Path
) -> None:
    secret, address = "sesame-0123456789", "127.0.0.9:9998"
    variables = {
        **ON,
        "XOSCAR_HEALTH_TOKEN": secret,
        "XOSCAR_HEALTH_ADDRESS": address,
        "XOSCAR_SUPERVISE_DIR": f"{tmp_path}",
        "XOSCAR_FAULT_ERRORS": r'*"CUDA\\error"*,' + ",".join(f"*error {n}*" for n in range(99)),
    }
    with serving("xoscar", library, **variables) as program:
        start, text = settings(program.scrape()), program.text()
        assert start.keys() == {each.name for each in dataclasses.fields(config.Settings)}
        assert start["idle_timeout"] == ("600", "environment")
        assert start["idle_timeout_ucx"] == ("default", "default")
        assert start["connect_timeout"] == ("8", "default")
        assert start["health_token"] == (config.HIDDEN, "environment")
        for name in figures.PLACES:
            assert start[name] == ("set", "environment")
        assert start["fault_errors"][0].startswith(r'*"CUDA\\error"*,*error 0*,')
        assert not any(each in text for each in (secret, address, f"{tmp_path}"))
        assert max(len(found) for _, labels in program.scrape() for _, found in labels) <= 100

        program.tell("idle_timeout", 0.1)
        end = settings(program.scrape())
        assert end == {**start, "idle_timeout": ("0.1", "code")}


@pytest.mark.parametrize("library", LIBRARIES)
def test_uninstall_takes_them_out(library: str) -> None:
    with serving("xoscar", library, **ON) as program:
        assert "xoscar_connections" in program.text()
        program.tell("uninstall")
        assert "xoscar_" not in program.text()


@pytest.mark.parametrize("library", LIBRARIES)
def test_not_there_where_it_is_not_active(library: str) -> None:
    with serving("xoscar", library) as program:
        assert "xoscar_" not in program.text()


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_scrape_does_not_need_the_loop(library: str) -> None:
    with pools() as hosted, serving("xoscar", library, **ON) as program:
        program.tell("call", *hosted.addresses)
        # In the background it asks a pool, once, to which main pool it belongs.
        eventually(lambda: connections(program.scrape()) == {"idle": 1})
        program.start("block")
        assert connections(program.scrape()) == {"idle": 1}


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_process_with_main_pools_shows_their_sub_pools(library: str, tmp_path: Path) -> None:
    variables = {**ON, "XOSCAR_SUPERVISE": "observe", "XOSCAR_SUPERVISE_DIR": f"{tmp_path}"}
    with serving("xoscar", library, **variables) as program:
        assert not of_sub_pools(program.scrape())
        for _ in range(2):  # two main pools, whose sub-pools are told apart
            program.tell("host", 1)
        eventually(lambda: states(program.scrape()) == {"1": "healthy", "2": "healthy"})
        start = program.scrape()
        assert value(start, "xoscar_pool_resident_bytes", pool="1", **UNLABELLED) > 1e6
        eventually(
            lambda: (
                ("xoscar_pool_loop_lag_seconds", (("label", ""), ("pool", "1"))) in program.scrape()
            )
        )
        for cause in figures.CAUSES:
            assert value(start, "xoscar_crashes_total", cause=cause) == 0

        program.tell("kill")
        eventually(
            lambda: (
                total(program.scrape(), "xoscar_pool_restarts_total") == 1
                and states(program.scrape()) == {"1": "healthy", "2": "healthy"}
            )
        )
        end = program.scrape()
        assert value(end, "xoscar_pool_restarts_total", pool="1", **UNLABELLED) == 1
        assert value(end, "xoscar_crashes_total", cause="SIGKILL") == 1
        assert total(end, "xoscar_crashes_total") == 1
        assert start.keys() - end.keys() == set()


def test_descriptors_are_shown_once() -> None:
    """Ours only where the library has none of its own."""
    with serving("xoscar", "prometheus_client", **ON) as program:
        series = program.scrape()
        names = {name for name, _ in series}
        own = os.path.isdir("/proc/self/fd")
        assert ("process_open_fds" in names, "xoscar_process_open_fds" in names) == (own, not own)
    with serving("xoscar", "aioprometheus", **ON) as program:
        series = program.scrape()
        assert 3 < value(series, "xoscar_process_open_fds") < 100
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        assert value(series, "xoscar_process_max_fds") == limit


def test_a_registry_of_the_programs_own_works_in_any_process() -> None:
    """Where the package is off, or xoscar has not been imported: the program is not to fail."""
    program = (
        "from prometheus_client import CollectorRegistry, generate_latest",
        "from xoscar_idle.telemetry.metrics import PrometheusCollector",
        "registry = CollectorRegistry()",
        "registry.register(PrometheusCollector())",
        "def active():",
        "    lines = generate_latest(registry).decode().splitlines()",
        "    assert any(line.startswith('xoscar_connections{') for line in lines), lines",
        "    return [line for line in lines if line.startswith('xoscar_idle_active')]",
        "print(*active())",
        "import sys; assert 'xoscar' not in sys.modules",
        "import xoscar",
        "print(*active())",
        "import xoscar_idle",
        "xoscar_idle.install()",
        "print(*active())",
        "xoscar_idle.uninstall()",
        "print(*active())",
    )
    off, on = "xoscar_idle_active 0.0", "xoscar_idle_active 1.0"
    assert run(*program) == ([off, off, on, off], "")
    output, errors = run(*program, **ON)
    assert (output, errors) == ([off, on, on, off], "")


def test_a_forked_child_has_a_lock_of_its_own() -> None:
    """One that was held at the fork, by a thread that the child does not have."""
    output = run(
        "import os, threading, xoscar_idle.telemetry.metrics as metrics",
        "held, done = threading.Event(), threading.Event()",
        "def hold():",
        "    with metrics._lock:",
        "        held.set()",
        "        done.wait()",
        "thread = threading.Thread(target=hold)",
        "thread.start()",
        "held.wait()",
        "if (pid := os.fork()) == 0:",
        "    os._exit(0 if metrics._lock.acquire(timeout=10) else 1)",
        "print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))",
        "done.set()",
        "thread.join()",
    )
    assert output == (["0"], "")


# -- in this process ---------------------------------------------------------------------------


@pytest.fixture
def armed() -> Iterator[None]:
    """Leaves no trace of what a test arms or registers."""
    yield
    xoscar_idle.uninstall()
    metrics.disarm()


def collected() -> Series:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in metrics.PrometheusCollector().collect()
        for sample in family.samples
    }


def rendered(library: str) -> str:
    """What the default registry of a library shows in this process."""
    import aioprometheus
    import prometheus_client

    if library == "prometheus_client":
        return prometheus_client.generate_latest().decode()
    content: bytes = aioprometheus.render(aioprometheus.REGISTRY, ())[0]
    return content.decode()


def parsed(text: str) -> Series:
    """Our series in an exposition, each of which is there once."""
    from prometheus_client.parser import text_string_to_metric_families

    samples = [
        sample
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name.startswith("xoscar_")
    ]
    found = {(each.name, tuple(sorted(each.labels.items()))): each.value for each in samples}
    assert len(found) == len(samples)
    return found


@pytest.fixture
def counting_nothing(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As if the process had done nothing yet; the settings are put back."""
    monkeypatch.setattr(tally, "_tallies", [])
    monkeypatch.setattr(tally, "_gone", {})
    monkeypatch.setattr(tally, "_methods", set())
    monkeypatch.setattr(counters, "_counters", counters._Counters())
    before = config.current()
    yield
    config.use(before)


def took(*seconds: float) -> Latencies:
    """Calls that took so long each."""
    made = Latencies()
    for each in seconds:
        made.classes[sum(bound < each for bound in tally.BUCKETS)] += 1
        made.seconds += each
    return made


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> dict[str, Latencies]:
    """The calls that there seem to have been, by method."""
    found = {tally.ALL: took()}
    monkeypatch.setattr(tally, "so_far", lambda: found)
    return found


@pytest.mark.usefixtures("armed", "counting_nothing")
@pytest.mark.parametrize("library", LIBRARIES)
def test_no_series_jumps_when_calls_are_counted_otherwise(
    library: str, calls: dict[str, Latencies]
) -> None:
    metrics.register()

    def shown(chosen: str) -> dict[str, float]:
        config.use(config.Settings(call_metrics=chosen))
        return methods(parsed(rendered(library)))

    calls[tally.ALL] = took(0.2, 40, 1000)
    assert shown("total") == {"": 3}
    series = parsed(rendered(library))
    classes = {"0.1": 0, "0.25": 1, "30.0": 1, "60.0": 2, "300.0": 2, "+Inf": 3}
    for bound, count in classes.items():
        assert value(series, "xoscar_call_seconds_bucket", le=bound) == count
    assert value(series, "xoscar_call_seconds_sum") == pytest.approx(1040.2)
    assert shown("method") == {"": 3, tally.OTHERS: 0}
    calls["load"] = took(1)
    assert shown("method") == {"": 3, tally.OTHERS: 0, "load": 1}
    assert value(parsed(rendered(library)), "xoscar_call_seconds_sum", method="load") == 1
    assert shown("off") == {}
    calls[tally.ALL] = took(0.2, 40, 1000, 2)
    assert shown("total") == {"": 4, "load": 1}
    calls[tally.OTHERS] = took(3, 3)
    assert shown("total") == {"": 4, tally.OTHERS: 2, "load": 1}


@pytest.mark.usefixtures("armed", "counting_nothing")
@pytest.mark.parametrize("library", LIBRARIES)
def test_labels_are_fit_to_be_shown_whatever_methods_are_called(
    library: str, calls: dict[str, Latencies], monkeypatch: pytest.MonkeyPatch
) -> None:
    config.use(config.Settings(call_metrics="method"))
    odd = 'say "hi"\n to C:\\new'
    calls[odd] = took(1)
    calls["m" * 1000] = took(1)
    calls["m" * 1001] = took(1)  # after the cut it is the same
    calls["half a character: \ud800"] = took(1)
    told = PoolInfo("10.0.0.7:1", 7, 3, 2, "busy", 0.0, 0.0, 1, label=odd)
    monkeypatch.setattr(supervised, "pools", lambda: [told])
    metrics.register()
    series = parsed(rendered(library))
    assert methods(series) == {
        **{"": 0, tally.OTHERS: 0, odd: 1},
        **{"m" * 97 + "...": 2, "half a character: ?": 1},
    }
    assert value(series, "xoscar_pool_state", pool="3", label=odd, state="busy") == 1


@pytest.mark.usefixtures("armed", "counting_nothing")
@pytest.mark.parametrize("library", LIBRARIES)
def test_an_exposition_is_as_prometheus_wants_it(
    library: str, calls: dict[str, Latencies], promtool: str
) -> None:
    calls['say "hi"\n'] = took(1)
    xoscar_idle.install(call_metrics="method", fault_errors=['*"a\\b"*'])
    metrics.register()
    text = rendered(library)
    assert "xoscar_idle_setting_info" in text
    checked = processes.run(promtool, "check", "metrics", input=text)
    assert "xoscar" not in checked.stdout + checked.stderr


@pytest.mark.usefixtures("armed", "counting_nothing")
def test_both_libraries_show_the_same(calls: dict[str, Latencies]) -> None:
    calls["echo"] = took(1)
    xoscar_idle.install(call_metrics="method", retry="load,stop")
    metrics.register()
    one, other = (parsed(rendered(library)) for library in LIBRARIES)
    assert {name for name, _ in one.keys() ^ other.keys()} <= {
        each.name for each in figures.DESCRIPTORS
    }
    assert all(one[each] == other[each] for each in one.keys() & other.keys())


@pytest.mark.usefixtures("armed")
def test_openmetrics_has_them_too() -> None:
    from prometheus_client import CollectorRegistry
    from prometheus_client.openmetrics.exposition import generate_latest
    from prometheus_client.openmetrics.parser import text_string_to_metric_families

    registry = CollectorRegistry()
    registry.register(metrics.PrometheusCollector())
    text = generate_latest(registry).decode()  # type: ignore[no-untyped-call]
    families = list(text_string_to_metric_families(text))  # type: ignore[no-untyped-call]
    assert {"xoscar_call_seconds", "xoscar_idle_info"} <= {family.name for family in families}


def test_each_figure_is_shown_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    named = {
        "xoscar_requests_in_flight": "requests_in_flight",
        "xoscar_connections_opened_total": "opened",
        "xoscar_connects_failed_total": "connects_failed",
        "xoscar_cap_exceeded_total": "cap_exceeded",
        "xoscar_deadlines_missed_total": "deadlines_missed",
        "xoscar_calls_resent_total": "resent",
        "xoscar_calls_lost_total": "lost",
        "xoscar_probes_total": "probes",
        "xoscar_probes_failed_total": "probes_failed",
        "xoscar_accepted_connections_opened_total": "accepted",
        "xoscar_accepted_requests_in_process": "requests_in_process",
    }
    figure: dict[str, Any] = {field: number for number, field in enumerate(named.values(), 11)}
    reasons = {reason: n for n, reason in enumerate(counters.REASONS, 31)}
    accepted = {reason: n for n, reason in enumerate(counters.ACCEPTED_REASONS, 51)}
    told = dataclasses.replace(
        statistics.statistics(),
        **figure,
        closed=reasons,
        accepted_closed=accepted,
        accepted_active=71,
        accepted_idle=72,
    )
    monkeypatch.setattr(statistics, "statistics", lambda: told)
    series = collected()
    assert {name: value(series, name) for name in named} == {
        name: figure[field] for name, field in named.items()
    }
    for reason, number in reasons.items():
        assert value(series, "xoscar_connections_closed_total", reason=reason) == number
    for reason, number in accepted.items():
        name = "xoscar_accepted_connections_closed_total"
        assert value(series, name, reason=reason) == number
    assert value(series, "xoscar_accepted_connections", state="active") == 71
    assert value(series, "xoscar_accepted_connections", state="idle") == 72


def test_versions_are_shown_and_settings_only_where_some_are_in_force() -> None:
    series = collected()
    assert not settings(series)
    versions = {"version": xoscar_idle.__version__, "xoscar": importlib.metadata.version("xoscar")}
    assert value(series, "xoscar_idle_info", python=platform.python_version(), **versions) == 1


@pytest.mark.usefixtures("armed")
@pytest.mark.parametrize("library", LIBRARIES)
def test_a_scrape_reads_each_part_once(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    read: Counter[str] = Counter()

    def counted(owner: Any, name: str, value: Any) -> None:
        def reading() -> Any:
            read[name] += 1
            return value

        monkeypatch.setattr(owner, name, reading)

    counted(statistics, "statistics", statistics.statistics())
    counted(supervised, "pools", [])
    counted(supervised, "crashes", {})
    counted(tally, "so_far", {tally.ALL: took(1)})
    monkeypatch.setattr(metrics, "LONGEST_SCRAPE", 1000)
    metrics.register()
    read.clear()  # some libraries have read all of it for the names
    for times in range(1, 4):
        rendered(library)
        assert dict(read) == dict.fromkeys(("statistics", "pools", "crashes", "so_far"), times)


def test_where_a_scrape_begins_that_nobody_tells_of(monkeypatch: pytest.MonkeyPatch) -> None:
    scrapes = metrics._Scrapes()
    first = scrapes.now("a")
    assert scrapes.now("b") is first
    second = scrapes.now("a")
    assert second is not first
    assert scrapes.now("b") is second
    elsewhere: list[figures.Moment] = []
    thread = threading.Thread(target=lambda: elsewhere.append(scrapes.now("c")))
    thread.start()
    thread.join()
    assert elsewhere[0] is not second
    assert scrapes.now("c") is second
    monkeypatch.setattr(metrics, "LONGEST_SCRAPE", -1)  # what was read is too old
    assert scrapes.now("d") is not second


@pytest.mark.usefixtures("armed", "counting_nothing")
@pytest.mark.parametrize("library", LIBRARIES)
def test_labels_stay_bounded_as_peers_come_and_go(library: str) -> None:
    """Two hundred of them, called and calling, and as many methods: fifty are told apart."""
    xoscar_idle.install(idle_timeout=0.01, call_metrics="method")
    metrics.register()
    sizes: list[int] = []

    async def main(addresses: list[str]) -> None:
        caller, router = ActorCaller(), Router([], None)
        pool = await xo.create_actor_pool(HOST, n_process=0)
        host, port = pool.external_address.split(":")
        for n, address in enumerate(addresses):
            actor = create_actor_ref(address, b"model")
            message = SendMessage(new_message_id(), actor, (f"method_{n}", 0, (), {}))
            await bounded(caller.call(router, address, message))
            _, writer = await asyncio.open_connection(host, int(port))
            writer.close()
            await writer.wait_closed()
            sizes.append(len(re.findall("^xoscar_", rendered(library), re.MULTILINE)))
        told = statistics.statistics
        await eventually_here(lambda: not told().open and told().accepted == 200)
        await eventually_here(lambda: not told().accepted_open)
        await caller.stop()
        await pool.stop()

    with peers(200) as addresses:
        asyncio.run(main(addresses))
    text = rendered(library)
    series = parsed(text)
    assert value(series, "xoscar_connections_closed_total", reason="idle") == 200
    assert value(series, "xoscar_accepted_connections_closed_total", reason="peer") == 200
    assert methods(series) == {
        **{f"method_{n}": 1 for n in range(tally.MOST_METHODS)},
        **{"": 0, tally.OTHERS: 150},
    }
    steps = set(itertools.pairwise(sizes))
    per_method = len(tally.BUCKETS) + 3  # the class of all, count and sum
    assert all(after - before == per_method for before, after in steps if after != before)
    assert sizes[tally.MOST_METHODS - 1] == sizes[-1] == len(series) < 1300
    assert "127.0.0" not in text


@pytest.mark.usefixtures("armed")
def test_a_connect_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    async def never(*_: Any) -> Any:
        await asyncio.sleep(1000)

    async def main() -> None:
        connecting = asyncio.ensure_future(worker("127.0.0.1:5"))
        await asyncio.sleep(0.05)
        assert connections(collected()) == {"connecting": 1}
        connecting.cancel()

    monkeypatch.setattr(routing, "connect", never)
    xoscar_idle.install()
    asyncio.run(main())
    assert connections(collected()) == {}
    assert total(collected(), "xoscar_connections") == 0


def test_each_state_is_shown_and_what_is_unknown_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    told = PoolInfo("10.0.0.7:1", 7, 3, 2, "busy", 0.0, 0.0, 1, label="gpu", in_process=0)
    monkeypatch.setattr(supervised, "pools", lambda: [told])
    monkeypatch.setattr(supervised, "crashes", lambda: {"exit code 7": 1})
    series = collected()
    labels = {"pool": "3", "label": "gpu"}
    for state in State:
        expected = state is State.BUSY
        assert value(series, "xoscar_pool_state", state=state.value, **labels) == expected
    assert value(series, "xoscar_pool_restarts_total", **labels) == 1
    assert value(series, "xoscar_pool_requests_in_process", **labels) == 0
    assert value(series, "xoscar_crashes_total", cause="exit code 7") == 1
    assert of_sub_pools(series) == {
        "xoscar_pool_state",
        "xoscar_pool_restarts_total",
        "xoscar_pool_requests_in_process",
        "xoscar_pool_held_calls",
        "xoscar_crashes_total",
    }
    assert not any("10.0.0.7" in text for _, labels in series for _, text in labels)


def test_a_failure_costs_no_other_metric(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> Any:
        raise RuntimeError("broken")

    monkeypatch.setattr(metrics, "_failed", False)
    monkeypatch.setattr(supervised, "pools", broken)
    names = {name for name, _ in collected()}
    assert "xoscar_connections" in names
    assert "xoscar_pool_state" not in names


def test_without_proc_the_descriptors_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "xoscar_process_open_fds" not in {name for name, _ in collected()}
    monkeypatch.setattr(os.path, "isdir", lambda _: False)
    series = collected()
    assert abs(value(series, "xoscar_process_open_fds") - psutil.Process().num_fds()) < 3
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    assert value(series, "xoscar_process_max_fds") == limit


@pytest.mark.usefixtures("armed")
def test_a_failure_spares_the_scrape(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import aioprometheus
    import prometheus_client

    def broken() -> Any:
        raise RuntimeError("broken")

    metrics.register()
    monkeypatch.setattr(metrics, "_failed", False)
    monkeypatch.setattr(statistics, "statistics", broken)
    for _ in range(2):
        assert b"python_info" in prometheus_client.generate_latest()
        assert b"xoscar_connections" in aioprometheus.render(aioprometheus.REGISTRY, ())[0]
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "broken" in caplog.text


@pytest.mark.usefixtures("armed")
def test_register_and_unregister_again_and_again(caplog: pytest.LogCaptureFixture) -> None:
    import aioprometheus
    import prometheus_client

    def shown() -> tuple[int, int]:
        ours = b"\n# TYPE xoscar_connections gauge\n"
        return (
            prometheus_client.generate_latest().count(ours),
            aioprometheus.render(aioprometheus.REGISTRY, ())[0].count(ours),
        )

    for _ in range(2):
        for enter, leave in (
            (metrics.register, metrics.unregister),
            (metrics.arm, metrics.disarm),
            (xoscar_idle.install, xoscar_idle.uninstall),
        ):
            enter()
            enter()
            assert shown() == (1, 1)
            leave()
            leave()
            assert shown() == (0, 0)
    assert not caplog.records


# -- programs without a library, or with names of their own ------------------------------------


def run(*lines: str, **variables: str) -> tuple[list[str], str]:
    """Run a program; the lines of stdout, and stderr."""
    command = (sys.executable, "-W", "error", "-c", "\n".join(lines))
    done = processes.run(*command, env=environment(**variables))
    return done.stdout.splitlines(), done.stderr


def test_no_library_is_imported_for_it() -> None:
    output = run(
        "import sys, xoscar, xoscar_idle",
        "assert xoscar_idle.is_active()",
        f"print(sys.modules.keys() & {set(LIBRARIES)})",
        "hooks = [f for f in sys.meta_path if type(f).__module__ == 'xoscar_idle.import_hook']",
        "xoscar_idle.uninstall()",
        "print(len(hooks), len(set(hooks) & set(sys.meta_path)))",
        **ON,
    )
    assert output == (["set()", "2 0"], "")


def test_nothing_happens_where_no_library_is_installed() -> None:
    output = run(
        "import sys",
        *(f"sys.modules[{library!r}] = None" for library in LIBRARIES),
        "import xoscar, xoscar_idle.telemetry.metrics",
        "print(xoscar_idle.is_active())",
        "xoscar_idle.telemetry.metrics.register()",
        "xoscar_idle.telemetry.metrics.unregister()",
        "xoscar_idle.uninstall()",
        **ON,
    )
    assert output == (["True"], "")


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_name_of_the_program_stays_its_own(library: str) -> None:
    """Then none of ours is there: half of them would only puzzle."""
    output, errors = run(
        f"import {library}",
        f"gauge = {library}.Gauge('xoscar_requests_in_flight', 'the own one')",
        "import xoscar, xoscar_idle",
        "print(xoscar_idle.is_active())",
        "print(prometheus_client.generate_latest().decode())"
        if library == "prometheus_client"
        else "print(aioprometheus.render(aioprometheus.REGISTRY, ())[0].decode())",
        **ON,
    )
    assert output[0] == "True"
    assert {line for line in output if line.startswith("# HELP xoscar")} == {
        "# HELP xoscar_requests_in_flight the own one"
    }
    assert errors.startswith(f"{metrics._unable(library)}\nTraceback")


# -- what is made of them ----------------------------------------------------------------------


def parts(histogram: figures.Histogram) -> set[str]:
    """The names of its series."""
    return {f"{histogram.name}_{part}" for part in ("bucket", "count", "sum")}


@pytest.fixture(scope="module")
def known() -> set[str]:
    """The names of all series: ours, and those of prometheus_client's process collector."""
    ours = {metric.name for metric in figures.METRICS + figures.DESCRIPTORS}
    ours |= set().union(*map(parts, figures.HISTOGRAMS))
    assert {name for name, _ in collected()} <= ours
    return ours | {"process_open_fds", "process_max_fds"}


def names(expression: str) -> set[str]:
    """The names of series in a PromQL expression."""
    rest = re.sub(r"\{[^}]*\}|\[[^]]*\]|\b(by|on)\s*\([^)]*\)", " ", expression)
    return set(re.findall(r"\b[a-zA-Z_]\w*\b(?!\s*\()", rest)) - {"and", "or", "unless", "bool"}


def expressions() -> list[str]:
    """The queries of the dashboard, with values for its variables."""
    dashboard = json.loads((DOCS / "grafana.json").read_text())
    panels = [panel for panel in dashboard["panels"] if panel["type"] != "row"]
    queries = [target["expr"] for panel in panels for target in panel["targets"]]
    queries = [query.replace("$__rate_interval", "5m") for query in queries]
    return [re.sub(r"\$\w+", "x", query) for query in queries]


def of_the_page() -> list[str]:
    """The queries of the page on metrics."""
    (listed,) = re.findall(r"```promql\n(.*?)```", (DOCS / "metrics.md").read_text(), re.DOTALL)
    return [line.partition("#")[0] for line in listed.splitlines()]


@pytest.fixture
def promtool() -> str:
    return programs.program("prometheus", "promtool")


def check(promtool: str, *words: str | Path) -> str:
    return processes.run(promtool, *words, cwd=DOCS).stdout


def test_the_alert_rules_are_valid(promtool: str) -> None:
    assert "SUCCESS" in check(promtool, "check", "rules", "alerts.yml")


def test_the_alerts_fire_when_they_should(promtool: str) -> None:
    assert "SUCCESS" in check(promtool, "test", "rules", "alerts.test.yml")


def test_each_alert_is_tested_both_ways() -> None:
    alerts = re.findall(r"- alert: (\w+)", (DOCS / "alerts.yml").read_text())
    tests = (DOCS / "alerts.test.yml").read_text()
    assert alerts
    for alert in alerts:
        expected = re.findall(rf"alertname: {alert}\n\s+exp_alerts:( \[\])?", tests)
        assert set(expected) == {"", " []"}, alert


def test_the_alerts_use_series_that_exist(known: set[str]) -> None:
    queries = re.findall(r"expr: >-\n((?: {10}.*\n)+)", (DOCS / "alerts.yml").read_text())
    assert len(queries) == (DOCS / "alerts.yml").read_text().count("expr:")
    for query in queries:
        assert names(query) <= known, query


def test_the_dashboard_uses_series_that_exist(known: set[str]) -> None:
    used = set().union(*map(names, expressions()))
    assert used <= known
    assert {metric.name for metric in figures.METRICS} <= used, "one is not on the dashboard"
    for histogram in figures.HISTOGRAMS:
        assert parts(histogram) & used, "one is not on the dashboard"


def test_each_panel_of_the_dashboard_has_a_place_of_its_own() -> None:
    panels = json.loads((DOCS / "grafana.json").read_text())["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        at = panel["gridPos"]
        cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells


def test_the_queries_of_dashboard_and_page_are_valid(promtool: str, tmp_path: Path) -> None:
    queries = expressions() + of_the_page()
    rules = [{"record": f"query:{i}", "expr": query} for i, query in enumerate(queries)]
    (tmp_path / "rules.yml").write_text(json.dumps({"groups": [{"name": "g", "rules": rules}]}))
    assert "SUCCESS" in check(promtool, "check", "rules", tmp_path / "rules.yml")


def test_each_metric_is_documented(known: set[str]) -> None:
    page = (DOCS / "metrics.md").read_text()
    rows = re.findall(r"^\| `(xoscar_\w+)` \| (\w+) \|", page, re.MULTILINE)
    kinds = {each.name: each.kind for each in figures.METRICS + figures.DESCRIPTORS}
    assert dict(rows) == {**kinds, **{each.name: "histogram" for each in figures.HISTOGRAMS}}
    assert len(rows) == len(dict(rows))
    words = (*figures.STATES, *counters.REASONS, *counters.ACCEPTED_REASONS, *figures.PLACES)
    for word in (*words, *(each.value for each in State), tally.OTHERS):
        assert f"`{word}`" in page, word
    for query in of_the_page():
        assert names(query) <= known, query
