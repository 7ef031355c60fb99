"""Whether calls can come, from what pools are."""

from __future__ import annotations

import dataclasses

import pytest

from xoscar_idle.http.readiness import MainInfo, reasons, status
from xoscar_idle.supervision.state import PoolInfo, State

MAIN = MainInfo("127.0.0.1:1", "healthy", 0.0, "")
BLOCKED = MainInfo("127.0.0.1:1", "busy", 3.14, "File …")


def pool(state: State, **changes: object) -> PoolInfo:
    made = PoolInfo("127.0.0.1:2", 4711, 1, 1, state.value, 0.0, 5.0, 0)
    return dataclasses.replace(made, **changes)  # type: ignore[arg-type]


SERVING = (State.HEALTHY, State.BUSY, State.PAUSED)


@pytest.mark.parametrize("state", State)
def test_which_states_serve(state: State) -> None:
    one = pool(state, reason="it is so")
    expected = "healthy" if state in SERVING else "dead" if state is State.DEAD else "unhealthy"
    assert status(one) == expected
    found = reasons([MAIN], [one])
    assert found == ([] if state in SERVING else [f"pool 127.0.0.1:2 is {state.value}: it is so"])


def test_one_that_is_paused_and_has_died() -> None:
    one = pool(State.PAUSED, uptime=0.0)
    assert (status(one), one.serves, one.is_down) == ("unhealthy", False, True)


@pytest.mark.parametrize("state", State)
def test_which_are_down(state: State) -> None:
    down = (State.UNHEALTHY, State.RECOVERING, State.STARTING, State.DEGRADED, State.DEAD)
    assert pool(state).is_down == (state in down)
    first = pool(state, incarnation=0)
    assert first.is_down == (state in down and state is not State.STARTING), "it has not been up"


def test_so_many_are_needed() -> None:
    pools = [pool(State.HEALTHY), pool(State.BUSY), pool(State.DEAD)]
    assert reasons([MAIN], pools, 2) == []
    assert reasons([MAIN], pools) == ["pool 127.0.0.1:2 is dead"]
    assert reasons([MAIN], pools, 3) == [
        "2 of 3 sub-pools serve, 3 are needed",
        "pool 127.0.0.1:2 is dead",
    ]
    assert reasons([MAIN], [], 1) == ["0 of 0 sub-pools serve, 1 are needed"]
    assert reasons([MAIN], pools, 0) == []


def test_an_empty_pool_is_ready() -> None:
    assert reasons([MAIN], []) == []


def test_a_main_pool_that_is_blocked_or_gone() -> None:
    (told,) = reasons([MAIN, BLOCKED], [], 0)
    assert told == "main pool 127.0.0.1:1 is busy: its event loop has not answered for 3.1 s"
    assert reasons([], []) == ["there is no main pool any more"]
