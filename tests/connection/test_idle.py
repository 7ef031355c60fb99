"""The idle bookkeeping against a model that is slow and plain."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from xoscar_idle.connection.idle import IdleQueue, Lane

TIMEOUTS = st.sampled_from([0.0, 1.0, 5.0, 30.0])
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("join"), TIMEOUTS),
        st.tuples(st.sampled_from(["idle", "use", "leave"]), st.integers(0, 9)),
        st.tuples(st.just("wait"), st.floats(0, 40)),
    ),
    max_size=60,
)


@given(STEPS)
def test_expires_what_a_plain_model_expires(steps: list[tuple[str, float]]) -> None:
    queue: IdleQueue[int] = IdleQueue()
    lanes: dict[int, Lane[int]] = {}
    since: dict[int, float] = {}
    now, names = 0.0, iter(range(1000))
    for step, argument in steps:
        item = list(lanes)[int(argument) % len(lanes)] if lanes else None
        if step == "join":
            name = next(names)
            lanes[name] = queue.join(argument)
        elif step == "wait":
            before, now = now, now + argument
            expected = {n for n, t in since.items() if t + lanes[n].timeout <= now}
            horizon = queue.next_expiry(before)
            assert all(horizon <= since[n] + lanes[n].timeout for n in since)
            expired = queue.expire(now)
            assert set(expired) == expected
            assert len(expired) == len(expected)
            for lane in set(lanes.values()):
                mine = [n for n in expired if lanes[n] is lane]
                assert mine == sorted(mine, key=since.__getitem__)
            for name in expired:
                del since[name]
        elif item is not None and step == "idle" and item not in since:
            lanes[item].fell_idle(item, now)
            since[item] = now
        elif item is not None and step == "use":
            lanes[item].in_use(item)
            since.pop(item, None)
        elif item is not None and step == "leave":
            queue.leave(lanes.pop(item), item)
            since.pop(item, None)
        if since:
            oldest = queue.oldest()
            assert oldest is not None
            assert (oldest[0], since[oldest[1]]) == (min(since.values()),) * 2
        else:
            assert queue.oldest() is None
    if not lanes:
        assert queue.next_expiry(now) == math.inf


def test_zero_never_expires() -> None:
    queue: IdleQueue[str] = IdleQueue()
    queue.join(0).fell_idle("a", 0.0)
    assert queue.expire(1e12) == []
    assert queue.next_expiry(0.0) == math.inf


def test_expires_exactly_at_the_deadline() -> None:
    lane: Lane[str] = Lane(2.0)
    lane.fell_idle("a", 10.0)
    assert not lane.expired("a", 11.999)
    assert lane.expired("a", 12.0)
    assert lane.expire(12.0) == ["a"]
