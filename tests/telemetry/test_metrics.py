"""Metrics: real programs that serve them, the alert rules, the dashboard and the page on them."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import resource
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

import xoscar_idle
from xoscar_idle.connection import counters, routing, statistics
from xoscar_idle.supervision import pools as supervised
from xoscar_idle.supervision.state import PoolInfo, State
from xoscar_idle.telemetry import metrics

from ..support import processes, programs
from ..support.endpoints import refusing
from ..support.environment import environment
from ..support.hosting import pools, worker
from ..support.processes import ROOT
from ..support.serving import Series, serving
from ..support.waiting import eventually

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


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("library_first", [True, False], ids=["before xoscar", "after xoscar"])
def test_a_program_shows_its_connections(library: str, library_first: bool) -> None:
    """In use, idle, closed; from the first to the last, without a word about them in its code."""
    modules = (library, "xoscar") if library_first else ("xoscar", library)
    with pools(3) as hosted, serving(*modules, **ON) as program:
        start = program.scrape()
        assert total(start, "xoscar_connections_opened_total") == 0
        assert connections(start) == {}
        for state in metrics.STATES:
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
        assert {name for name, _ in start.keys() ^ end.keys()} <= {"xoscar_connections"}
        assert not any(address in program.text() for address in hosted.addresses)


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
        for cause in metrics.CAUSES:
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


@pytest.fixture(scope="module")
def known() -> set[str]:
    """The names of all series: ours, and those of prometheus_client's process collector."""
    ours = {metric.name for metric in metrics.METRICS + metrics.DESCRIPTORS}
    histogram, _ = metrics.CONNECT_SECONDS
    ours |= {f"{histogram}_{part}" for part in ("bucket", "count", "sum")}
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
    assert {metric.name for metric in metrics.METRICS} <= used, "one is not on the dashboard"


def test_the_queries_of_the_dashboard_are_valid(promtool: str, tmp_path: Path) -> None:
    rules = [{"record": f"query:{i}", "expr": query} for i, query in enumerate(expressions())]
    (tmp_path / "rules.yml").write_text(json.dumps({"groups": [{"name": "g", "rules": rules}]}))
    assert "SUCCESS" in check(promtool, "check", "rules", tmp_path / "rules.yml")


def test_each_metric_is_documented(known: set[str]) -> None:
    page = (DOCS / "metrics.md").read_text()
    rows = re.findall(r"^\| `(xoscar_\w+)` \| (\w+) \|", page, re.MULTILINE)
    kinds = {each.name: each.kind for each in metrics.METRICS + metrics.DESCRIPTORS}
    assert dict(rows) == {**kinds, metrics.CONNECT_SECONDS[0]: "histogram"}
    for word in (*metrics.STATES, *counters.REASONS, *(each.value for each in State)):
        assert f"`{word}`" in page, word
    queries = re.findall(r"```promql\n(.*?)```", page, re.DOTALL)
    assert queries
    for query in queries:
        for line in query.splitlines():
            assert names(line.partition("#")[0]) <= known, line
