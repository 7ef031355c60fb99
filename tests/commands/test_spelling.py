from __future__ import annotations

import dataclasses

import pytest

from xoscar_idle import config, logs, side_channel
from xoscar_idle.commands.spelling import meant

KNOWN = [config.variable(each.name) for each in dataclasses.fields(config.Settings)]
KNOWN += [side_channel.MONITOR, logs.LOG]


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("XOSCAR_IDLE_TIMEUOT", "XOSCAR_IDLE_TIMEOUT"),
        ("XOSCAR_IDLE_TIMEOUTS", "XOSCAR_IDLE_TIMEOUT"),
        ("XOSCAR_IDLETIMEOUT", "XOSCAR_IDLE_TIMEOUT"),
        ("xoscar_idle_timeout", "XOSCAR_IDLE_TIMEOUT"),
        ("XOSCAR_IDLE_TIMEOUT_TCP", "XOSCAR_IDLE_TIMEOUT_SOCKET"),
        ("XOSCAR_IDLE_TIMEOUT_SOCKETS", "XOSCAR_IDLE_TIMEOUT_SOCKET"),
        ("XOSCAR_IDLE_TIMEOUT_UNIX", "XOSCAR_IDLE_TIMEOUT_UNIXSOCKET"),
        ("XOSCAR_IDLE_TIMEOUT_UNIX_SOCKET", "XOSCAR_IDLE_TIMEOUT_UNIXSOCKET"),
        ("XOSCAR_IDLE_TIMEOUT_UDS", "XOSCAR_IDLE_TIMEOUT_UNIXSOCKET"),
        ("XOSCAR_IDLE_TIMEOUT_UXC", "XOSCAR_IDLE_TIMEOUT_UCX"),
        ("XOSCAR_IDLE_TIMEOUT_IB", None),
        ("XOSCAR_IDLE_TIMEOUT_UDP", None),
        ("XOSCAR_IDLE_TIMEOUT_RDMA", None),
        ("XOSCAR_IDLE_TIMEOUT_S", None),
        ("XOSCAR_MAX_CONNECTION", "XOSCAR_MAX_CONNECTIONS"),
        ("XOSCAR_MAX_CONNECTIONS_AGE", "XOSCAR_MAX_CONNECTION_AGE"),
        ("XOSCAR_KEEP_ALIVE_INTERVAL", "XOSCAR_KEEPALIVE_INTERVAL"),
        ("XOSCAR_CALL_TIMEOUT_EXEPT", "XOSCAR_CALL_TIMEOUT_EXCEPT"),
        ("XOSCAR_PROBE_TIMOUT", "XOSCAR_PROBE_TIMEOUT"),
        ("XOSCAR_IDLE_LOGS", "XOSCAR_IDLE_LOG"),
        ("XOSCAR_AUTH_KEY", None),
        ("XOSCAR_TCP_USER_TIMEOUT", None),
        ("XOSCAR_DIR", None),
        ("XOSCAR_USE_UVLOOP", None),
    ],
)
def test_hints(name: str, hint: str | None) -> None:
    assert meant(name, KNOWN) == hint


def test_no_variable_is_taken_for_another() -> None:
    for each in KNOWN:
        assert meant(each, KNOWN) == each
        others = [other for other in KNOWN if other != each]
        assert meant(each, others) is None or each.startswith("XOSCAR_MAX_CONNECTION")
