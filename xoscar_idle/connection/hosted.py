"""The pools of this process, and what they are called."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from xoscar.utils import fix_all_zero_ip

MOST_ACTORS = 20
"""So many actors of a pool are named."""

_pools: weakref.WeakSet[Any] = weakref.WeakSet()


@dataclass(frozen=True)
class PoolName:
    """A pool that this process knows by the configuration of one of its own."""

    address: str
    index: int
    """Its number among those of its main pool, which is 0; none gets that of one that is gone."""
    label: str | None
    main: str
    """The address of its main pool."""
    route: str | None
    """That by which those of this machine connect to it, where it is another one."""
    here: bool
    """Whether it is in this process."""
    actors: list[str]
    """The first of those in it, at most :data:`MOST_ACTORS`; of a pool that is here."""
    n_actors: int
    """How many there are."""


def followed(original: Callable[..., None]) -> Callable[..., None]:
    """For ``__init__`` of xoscar's pools: there is one more."""

    @functools.wraps(original)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        add(self)

    return init


def add(pool: Any) -> None:
    """It is in this process."""
    _pools.add(pool)


def pools() -> list[Any]:
    """Those of this process that somebody holds."""
    return list(_pools)


def names() -> list[PoolName]:
    """All pools that those of this process know, each once; from any thread."""
    found: dict[tuple[str, int], PoolName] = {}
    for pool in pools():
        try:
            told = list(_names(pool))
        except Exception:  # it is being made, or changed by its own thread
            continue
        for each in told:
            key = each.main, each.index
            if each.here or key not in found:
                found[key] = each
    return sorted(found.values(), key=lambda each: (each.main, each.index))


def _names(pool: Any) -> Iterator[PoolName]:
    known = [(index, dict(each)) for index, each in list(pool._config.as_dict()["pools"].items())]
    own: str = pool.external_address
    main: str = getattr(pool, "_main_address", own)
    for place, (index, each) in enumerate(known):
        here = index == pool.process_index
        address = each["external_address"][0]
        route = each["internal_address"]
        actors = list(pool._actors) if here else []
        yield PoolName(
            address=own if here else fix_all_zero_ip(address, own),
            index=_number(index, known[0][0], place),
            label=each["label"],
            main=main,
            route=route if route != address else None,
            here=here,
            actors=[_text(uid) for uid in actors[:MOST_ACTORS]],
            n_actors=len(actors),
        )


def _number(index: int, first: int, place: int) -> int:
    """xoscar doubles an index for the next one; where it does not, it is the place among them."""
    times, rest = divmod(index, first) if first > 0 else (0, 0)
    doubled = times > 0 and not rest and not times & (times - 1)
    return times.bit_length() - 1 if doubled else place


def _text(uid: object) -> str:
    return uid.decode(errors="replace") if isinstance(uid, bytes) else str(uid)


def after_fork() -> None:
    """In a forked child: they are the parent's."""
    _pools.clear()
