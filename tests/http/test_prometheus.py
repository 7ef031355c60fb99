"""A real Prometheus that scrapes the interface: each query that is offered has data."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import urllib.parse
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import xoscar as xo

from ..support import crashing, programs, web
from ..support.processes import ROOT, started
from ..support.waiting import BOUND, eventually

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

WINDOW = "20s"


@pytest.fixture
def prometheus() -> str:
    return programs.program("prometheus", "prometheus")


def of_the_dashboard() -> list[str]:
    """Its queries, for all jobs and instances."""
    panels = json.loads((ROOT / "docs/grafana.json").read_text())["panels"]
    found = [target["expr"] for panel in panels for target in panel.get("targets", ())]
    found = [each.replace("$__rate_interval", WINDOW) for each in found]
    return [re.sub(r"\$\w+", ".*", each) for each in found]


def of_the_alerts() -> list[str]:
    """What they look at."""
    rules = (ROOT / "docs/alerts.yml").read_text()
    found = re.findall(r"expr: >-\n((?: {10}.*\n)+)", rules)
    assert len(found) == rules.count("- alert:")
    return [without_thresholds(" ".join(each.split())) for each in found]


def of_the_page() -> list[str]:
    """What the examples of the page on metrics look at."""
    page = (ROOT / "docs/metrics.md").read_text()
    (listed,) = re.findall(r"```promql\n(.*?)```", page, re.DOTALL)
    return [without_thresholds(line.partition("#")[0]) for line in listed.splitlines()]


def without_thresholds(query: str) -> str:
    return re.sub(r"(==|>) [\d.]+", "", query)


async def hold(address: str) -> None:
    """Have a request in process until its process ends."""
    with contextlib.suppress(OSError, xo.ServerClosed):
        await (await crashing.victim(address)).hold()


def come_and_go(address: str) -> None:
    """Have a connection accepted there, and closed."""
    host, _, port = address.rpartition(":")
    socket.create_connection((host, int(port)), timeout=BOUND).close()


def test_each_query_of_dashboard_alerts_and_page_has_data(prometheus: str, tmp_path: Path) -> None:
    served, own = web.free(), web.free()
    config = {
        "global": {"scrape_interval": "1s"},
        "scrape_configs": [
            {
                "job_name": "pools",
                "authorization": {"credentials": web.TOKEN},
                "static_configs": [{"targets": [served]}],
            }
        ],
    }
    (tmp_path / "prometheus.yml").write_text(json.dumps(config))
    with (
        ThreadPoolExecutor(1) as threads,
        crashing.host(
            XOSCAR_IDLE_TIMEOUT="600",
            XOSCAR_CALL_METRICS="method",
            XOSCAR_SUPERVISE="act",
            XOSCAR_SUPERVISE_DIR=f"{tmp_path}/state",
            XOSCAR_HEALTH_ADDRESS=served,
            XOSCAR_HEALTH_TOKEN=web.TOKEN,
        ) as host,
        started(
            prometheus,
            f"--config.file={tmp_path}/prometheus.yml",
            f"--storage.tsdb.path={tmp_path}/data",
            f"--web.listen-address={own}",
            "--log.level=error",
            stderr=subprocess.DEVNULL,
        ),
    ):

        def answer(query: str) -> Any:
            path = f"/api/v1/query?{urllib.parse.urlencode({'query': query})}"
            try:
                return web.request(f"http://{own}", path).json["data"]["result"]
            except (OSError, KeyError, ValueError):  # it has not begun yet
                return None

        eventually(lambda: answer('up{job="pools"} == 1'))
        pools = web.request(f"http://{served}", "/health").json["pools"]
        os.kill(pools[0]["pid"], signal.SIGKILL)  # connections break, and there is a crash
        held = threads.submit(asyncio.run, hold(pools[1]["address"]))
        without = [*of_the_dashboard(), *of_the_alerts(), *of_the_page()]

        def all_have_data() -> bool:
            come_and_go(host.main)
            without[:] = [each for each in without if not answer(each)]
            return not without

        with contextlib.suppress(AssertionError):
            eventually(all_have_data)
        assert without == []
        os.kill(pools[1]["pid"], signal.SIGKILL)
        held.result(BOUND)
