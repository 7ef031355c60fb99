"""The age bookkeeping against a model that is slow and plain."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from xoscar_idle.connection.age import AgeQueue

STEPS = st.lists(
    st.tuples(st.sampled_from(["join", "leave", "wait"]), st.integers(0, 7), st.floats(0, 50))
)


@given(STEPS)
def test_expires_what_a_plain_model_expires(steps: list[tuple[str, int, float]]) -> None:
    queue: AgeQueue[int] = AgeQueue()
    model: dict[int, float] = {}
    now = 0.0
    for step, item, number in steps:
        if step == "join":
            model[item] = now + number
            queue.join(item, now + number)
        elif step == "leave":
            model.pop(item, None)
            queue.leave(item)
        else:
            now += number
            due = sorted((time, name) for name, time in model.items() if time <= now)
            assert sorted(queue.expire(now)) == sorted(name for _, name in due)
            for _, name in due:
                del model[name]
        assert queue.next_expiry() == min(model.values(), default=math.inf)
        assert len(queue._heap) <= 2 * len(model) + 17


def test_infinite_age_is_never_reached() -> None:
    queue: AgeQueue[str] = AgeQueue()
    queue.join("a", math.inf)
    assert queue.next_expiry() == math.inf
    assert queue.expire(1e12) == []


def test_what_left_before_its_time_takes_no_room() -> None:
    queue: AgeQueue[int] = AgeQueue()
    for item in range(1000):
        queue.join(item, 2000.0 - item)
        if item % 100:
            queue.leave(item)
    staying = range(900, -1, -100)
    assert len(queue._heap) <= 2 * len(staying) + 17
    assert queue.expire(2000.0) == [*staying]
