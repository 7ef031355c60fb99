"""Who is behind an address, as far as the processes that are shown tell."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import Any

from ..telemetry.snapshot import Snapshot
from .tables import printable


@dataclass(frozen=True)
class Name:
    """A pool, or a process without one."""

    pid: int | None = None
    """None, too, of a pool that only its siblings tell of."""
    index: int | None = None
    """Its number among the pools of its main pool."""
    label: str | None = None
    actors: tuple[str, ...] = ()
    n_actors: int = 0
    """How many there are; not all of them need to be named."""
    process: str = ""
    """What else tells which process it is, where the PID is known anyway."""

    def __str__(self) -> str:
        """Like ``4711 #2 gpu: model-a, model-b``."""
        who = [
            "" if self.pid is None else f"{self.pid}",
            self.process,
            "" if self.index is None else f"#{self.index}",
            self.label or "",
        ]
        text = " ".join(filter(None, who))
        actors = list(self.actors)
        if actors and (rest := self.n_actors - len(actors)) > 0:
            actors.append(f"{rest} more")
        return printable(f"{text}: {', '.join(actors)}" if actors else text)


Names = Mapping[str, Name]
"""For each address, each route, ``pid 4711`` of unix sockets, and both ends of connections."""


Claim = tuple[str, Hashable, Name]
"""An address or what else is looked up, who claims it, and as whom."""


def names(snapshots: Sequence[Snapshot]) -> Names:
    """Who is behind which address; nobody where several processes say that it is they."""
    own = _claimed(snapshots, _own)
    beside = _claimed(snapshots, _beside)
    silent = _claimed(snapshots, lambda one: _silent(one, beside))
    by_pid = _claimed(snapshots, _by_pid)
    local = _claimed(snapshots, lambda one: _local(one, beside))
    return {
        key: next(iter(claims.values()))
        for key, claims in {**beside, **silent, **own, **by_pid, **local}.items()
        if len(claims) == 1
    }


def _claimed(
    snapshots: Sequence[Snapshot], claims: Callable[[Snapshot], Iterator[Claim]]
) -> dict[str, dict[Hashable, Name]]:
    found: defaultdict[str, dict[Hashable, Name]] = defaultdict(dict)
    for one in snapshots:
        for key, who, name in claims(one):
            found[key][who] = name
    return found


def _own(one: Snapshot) -> Iterator[Claim]:
    """What a process tells of itself."""
    here = [_name(each, one.pid) for each in _here(one)]
    for pool, name in zip(_here(one), here, strict=True):
        for key in _keys(pool):
            yield key, (one.process or one.pid, name.index, name.label), name
    if one.address and len(here) == 1:  # it may listen on all, and know no other address
        yield one.address, (one.process or one.pid, here[0].index, here[0].label), here[0]


def _beside(one: Snapshot) -> Iterator[Claim]:
    """What it tells of its siblings: all that is known of those that are not shown."""
    for pool in one.pools:
        if not pool.get("here"):
            name = _name(pool)
            for key in _keys(pool):
                yield key, (name.index, name.label), name


def _silent(one: Snapshot, beside: Mapping[str, Mapping[Hashable, Name]]) -> Iterator[Claim]:
    """What is known of one that does not tell itself, being blocked perhaps."""
    if one.address and one.pid is not None:
        name = _told_beside(one.address, beside)
        yield one.address, one.process or one.pid, replace(name, pid=one.pid)


def _told_beside(address: str | None, beside: Mapping[str, Mapping[Hashable, Name]]) -> Name:
    siblings = list(beside.get(address or "", {}).values())
    return siblings[0] if len(siblings) == 1 else Name()


def _by_pid(one: Snapshot) -> Iterator[Claim]:
    if one.pid is None:
        return
    here = _here(one)
    address = one.address or (_text(here[0], "address") if here else "")
    name = _name(here[0]) if len(here) == 1 else Name()
    yield f"pid {one.pid}", id(one), replace(name, process=address or program(one.command))


def _local(one: Snapshot, beside: Mapping[str, Mapping[Hashable, Name]]) -> Iterator[Claim]:
    """This side of the connections that a process has opened, as who accepted them sees it."""
    here = _here(one)
    name = _name(here[0]) if len(here) == 1 else Name()
    if not here:
        name = _told_beside(one.address, beside)
    if name == Name():  # of several pools, nobody knows which it was
        name = Name(process=f"at {one.address}" if one.address else program(one.command))
    name = replace(name, pid=one.pid)
    for each in one.connections:
        if (local := _text(each, "local")) and (route := _text(each, "route")):
            for key in _ends(local, route):
                yield key, one.process or id(one), name


def _ends(local: str, route: str) -> tuple[str, str]:
    """Both ends of a connection; and without the host of the other one.

    It may be known to one side by a name, or it is 0.0.0.0 there. Of two machines, or to two hosts,
    there may be connections with the same own end.
    """
    return f"{local} to {route}", f"{local} to port {route.rpartition(':')[2]}"


def of_peer(told: Mapping[str, Any], names: Names) -> Name | None:
    """That of the other side: where an own ``address`` is told, who has connected to it."""
    peer, address = _text(told, "peer"), _text(told, "address")
    keys = _ends(peer, address) if address and not peer.startswith("pid ") else (peer,)
    return next((names[each] for each in keys if each in names), None)


def of_pools(one: Snapshot) -> Iterator[Name]:
    """Those of the pools in a process, as it tells, without its PID."""
    return map(_name, _here(one))


def of_address(address: str | None, names: Names) -> Iterator[Name]:
    """That of the pool at an address, if it is known, without its PID."""
    if address is not None and address in names:
        yield replace(names[address], pid=None)


def program(command: str) -> str:
    """A command line, without the directory of its program."""
    name, *arguments = printable(command).split(" ")
    return " ".join([PurePath(name).name, *arguments])


def _here(one: Snapshot) -> list[dict[str, Any]]:
    return [each for each in one.pools if each.get("here")]


def _keys(pool: dict[str, Any]) -> list[str]:
    return [text for field in ("address", "route") if (text := _text(pool, field))]


def _name(pool: dict[str, Any], pid: int | None = None) -> Name:
    actors = tuple(map(str, pool.get("actors") or ()))
    index, count = pool.get("index"), pool.get("n_actors")
    return Name(
        pid,
        index if isinstance(index, int) else None,
        _text(pool, "label") or None,
        actors,
        count if isinstance(count, int) else len(actors),
    )


def _text(pool: Mapping[str, Any], field: str) -> str:
    value = pool.get(field)
    return value if isinstance(value, str) else ""
