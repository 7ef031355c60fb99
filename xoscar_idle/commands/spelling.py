"""Which variable is meant by one that does not exist."""

from __future__ import annotations

from collections.abc import Iterable

# What people call a transport that xoscar calls otherwise.
_OTHER_WORDS = {
    "TCP": "SOCKET",
    "SOCKETS": "SOCKET",
    "UNIX": "UNIXSOCKET",
    "UDS": "UNIXSOCKET",
    "LOCAL": "UNIXSOCKET",
}

_FEW = 2
"""How many letters may be wrong."""

_SHORT = 4
"""In words of up to so many letters none may be another: UDP is not UCX."""


def meant(name: str, known: Iterable[str]) -> str | None:
    """The one of ``known`` that is meant by ``name``; None where that is not clear."""
    known = list(known)
    words = name.upper().split("_")
    translated = "_".join(_OTHER_WORDS.get(each, each) for each in words)
    unix_socket = translated.replace("UNIXSOCKET_SOCKET", "UNIXSOCKET")
    if unix_socket in known:
        return unix_socket
    near = sorted(
        (distance, each)
        for each in known
        if (distance := _distance(name.upper(), each)) <= _FEW and _short_words_fit(name, each)
    )
    if not near or (len(near) > 1 and near[0][0] == near[1][0]):
        return None
    return near[0][1]


def _short_words_fit(one: str, other: str) -> bool:
    ours, theirs = one.upper().split("_"), other.split("_")
    if len(ours) != len(theirs):
        return "".join(ours) == "".join(theirs)
    return all(
        min(len(a), len(b)) > _SHORT or sorted(a) == sorted(b) or _one_more(a, b)
        for a, b in zip(ours, theirs, strict=True)
    )


def _one_more(one: str, other: str) -> bool:
    return len(one) != len(other) and _distance(one, other) == 1


def _distance(one: str, other: str) -> int:
    """Letters that are wrong, missing or superfluous, and neighbours that are swapped."""
    before: list[int] = []
    row = list(range(len(other) + 1))
    for i, a in enumerate(one):
        above, before = before, row
        row = [i + 1]
        for j, b in enumerate(other):
            cost = min(before[j] + (a != b), before[j + 1] + 1, row[j] + 1)
            if i and j and (a, one[i - 1]) == (other[j - 1], b):
                cost = min(cost, above[j - 1] + 1)
            row.append(cost)
    return row[-1]
