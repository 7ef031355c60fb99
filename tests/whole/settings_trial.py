"""Each value of one variable, tried on real calls: ``python -m tests.whole.settings_trial``.

One JSON line on stdin has the variable, its values, and the address of a pool with a worker. For
each value and each kind of loop one JSON line on stdout tells what came of it.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import sys
from typing import Any

import uvloop
import xoscar as xo

import xoscar_idle
from xoscar_idle.telemetry import snapshot

from ..support.hosting import Worker, worker

BOUND = 20.0


class _Collector(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


async def _call(address: str, errors: list[str]) -> dict[str, Any]:
    """Call there and be called from there; what the kernel was told of the connection."""
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: errors.append(repr(context)))
    pool = await xo.create_actor_pool("127.0.0.1", n_process=0)
    try:
        await xo.create_actor(Worker, uid="worker", address=pool.external_address)
        there = await worker(address)
        echoed = await there.visit([pool.external_address], "said")
        (used,) = [each for each in xoscar_idle.connections() if each.route == address]
        assert used.descriptor is not None
        with socket.socket(fileno=os.dup(used.descriptor)) as sock:
            keepalive = [
                sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE),
                sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE),
            ]
        return {"echoed": echoed, "keepalive": keepalive}
    finally:
        await pool.stop()


def _seen(value: str, settings: Any) -> int:
    """How often a value can be seen in what is told of the settings."""
    told = [repr(settings), repr(xoscar_idle.statistics().settings), snapshot.take().to_json()]
    return sum(value in each for each in told) if value else 0


def _try(variable: str, value: str, address: str, run: Any) -> dict[str, Any]:
    collector, errors = _Collector(), list[str]()
    logger = logging.getLogger("xoscar_idle")
    logger.addHandler(collector)
    os.environ[variable] = value
    told: dict[str, Any] = {"value": value}
    try:
        settings = xoscar_idle.install()
        told["set"] = getattr(settings, variable.removeprefix("XOSCAR_").lower())
        told["shown"] = _seen(value.strip(), settings)
        told |= run(asyncio.wait_for(_call(address, errors), BOUND))
    except Exception as error:
        errors.append(repr(error))
    finally:
        xoscar_idle.uninstall()
        del os.environ[variable]
        logger.removeHandler(collector)
    return {**told, "warnings": collector.lines, "errors": errors}


def main() -> None:
    order = json.loads(sys.stdin.readline())
    for value in order["values"]:
        for run in (asyncio.run, uvloop.run):
            print(json.dumps(_try(order["variable"], value, order["address"], run)), flush=True)


if __name__ == "__main__":
    main()
