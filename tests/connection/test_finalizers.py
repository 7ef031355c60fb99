"""An owner may end wherever memory is allocated, also where one of our locks is held."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

import pytest

from xoscar_idle.connection import counters, statistics
from xoscar_idle.connection.bounds import Bounds
from xoscar_idle.connection.cap import Cap

from ..support.waiting import BOUND


def ends(function: Callable[[], object]) -> bool:
    """Whether it does not wait for itself for ever."""
    thread = threading.Thread(target=function, daemon=True)
    thread.start()
    thread.join(BOUND)
    return not thread.is_alive()


def test_while_the_counts_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counters, "_counters", counters._Counters())

    def collecting(counts: dict[str, int]) -> dict[str, int]:
        counters.count_close("thread")
        return dict(counts)

    monkeypatch.setattr(counters, "dict", collecting, raising=False)
    assert ends(statistics.statistics)
    # What is closed, and why; events; what was accepted and is closed, and why.
    assert counters._counters.closed["thread"] == 3


def test_while_somebody_to_make_room_is_looked_for() -> None:
    cap = Cap(limit=1)

    class Member:
        def __init__(self, ended: bool) -> None:
            self._ended, self.seat = ended, cap.take()

        @property
        def loop(self) -> asyncio.AbstractEventLoop:
            if self._ended:
                cap.leave(self)
                self.seat.leave()
            return asyncio.get_running_loop()

        def idlest(self) -> None:
            return None

    for ended in (True, False):
        cap.join(Member(ended))

    async def shrink() -> None:
        cap.shrink(asyncio.get_running_loop())

    assert ends(lambda: asyncio.run(shrink()))
    assert cap.count == 1


def test_while_a_call_takes_its_place_among_those_that_wait() -> None:
    bounds = Bounds()

    class Pool(str):
        """Another one's calls wait no more as soon as this one is looked for."""

        __slots__ = ()

        def __hash__(self) -> int:
            if bounds.by_pool().get("other"):
                bounds.leave("other", 10)
            return super().__hash__()

    assert bounds.take("other", 10)
    assert ends(lambda: bounds.take(Pool("pool"), 20))
    assert bounds.by_pool() == {"pool": 1}
    assert bounds._bytes == 20
