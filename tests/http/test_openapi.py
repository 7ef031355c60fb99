"""What is answered, held against the description of it, by schemathesis."""

from __future__ import annotations

import sysconfig
from pathlib import Path

import pytest

from ..support import crashing, web
from ..support.processes import run

pytestmark = [pytest.mark.integration, pytest.mark.timeout(400)]


@pytest.mark.parametrize("seed", [1, 15])
def test_the_description_is_true(tmp_path: Path, seed: int) -> None:
    """Also of what is wrong; a 503 is described where it can be, and a 500 nowhere."""
    address = web.free()
    with crashing.host(
        XOSCAR_SUPERVISE="act",
        XOSCAR_SUPERVISE_DIR=f"{tmp_path}/state",
        XOSCAR_HEALTH_ADDRESS=address,
        XOSCAR_HEALTH_TOKEN=web.TOKEN,
    ):
        done = run(
            Path(sysconfig.get_path("scripts")) / "st",
            *("run", f"http://{address}/openapi.json"),
            *("--header", f"Authorization: {web.BEARER['authorization']}"),
            *("--header", "Accept: application/json"),  # else the stream of events has no end
            *("--checks", "all", "--exclude-checks", "not_a_server_error"),
            *("--max-examples", "25", "--request-timeout", "10"),
            *("--seed", f"{seed}", "--generation-database", "none", "--no-color"),
            status=None,
            timeout=300,
            cwd=tmp_path,
        )
        assert done.returncode == 0, done.stdout
        assert "Selected: 11/11" in done.stdout
        assert web.request(f"http://{address}", "/livez").status == 200
