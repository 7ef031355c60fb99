"""Which rows of a listing are shown, and in which order."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from .listings import Listing, Seen
from .tables import Column, Table, printable, row

MOST_NEEDED = 36
"""Characters of an address and a label for which columns are left out."""


@dataclass(frozen=True)
class Sort:
    """By one column: numbers from the largest, text from A; the other way round if reversed."""

    header: str
    reversed: bool = False


def parse(text: str, headers: Sequence[str]) -> Sort:
    """The header of one of these columns, be it in lower case; behind ``-`` reversed.

    Raises
    ------
    ValueError
        There is no such column.
    """
    name = text.removeprefix("-").strip().casefold()
    for each in headers:
        if each.casefold() == name:
            return Sort(each, text.startswith("-"))
    raise ValueError(f"{printable(text)!r} is none of its columns: {', '.join(headers)}")


def moved(sort: Sort | None, headers: Sequence[str], step: int) -> Sort | None:
    """By the next column or the one before; between the last and the first is the default order."""
    places: list[str | None] = [None, *headers]
    at = places.index(sort.header) if sort is not None and sort.header in places else 0
    header = places[(at + step) % len(places)]
    return None if header is None else Sort(header)


@dataclass(frozen=True)
class Arranged:
    """The rows of a listing that are shown."""

    listing: Listing
    rows: Sequence[Sequence[str]]
    total: int
    """How many there are without a filter."""
    sort: Sort | None = None
    """None, too, where the listing has no such column."""

    def table(self, first: int, end: int) -> Table:
        """Some of them, without what can be spared on a narrow terminal."""
        columns, wide = self.listing.columns, self.listing.wide
        named = self.listing.named
        needed = max((_needed(each[wide], named) for each in self.rows), default=8)
        table = Table(columns, self.rows[first:end], needed, wide)
        if self.sort is None:
            return table
        marked = self.listing.headers.index(self.sort.header)
        falls = columns[marked].value is not None
        return replace(table, marked=marked, mark="▼" if falls != self.sort.reversed else "▲")


def _needed(text: str, named: bool) -> int:
    """How much of a cell is not to be clipped.

    That is the address with which it begins; of one that is ``named`` also the label of whose it
    is, up to its actors.
    """
    found = re.match(r"(pid [0-9]+|\S*)( \([^:()]*.)?", text)
    assert found is not None  # it matches nothing, too
    address = len(found[1])
    return max(address, min(len(found[0]), MOST_NEEDED)) if named else address


def arranged(listing: Listing, seen: Seen, sort: Sort | None = None, text: str = "") -> Arranged:
    """The rows with a cell that has ``text`` in it, whatever its case, sorted."""
    about = listing.about(seen)
    rows = [(each, list(map(printable, row(listing.columns, each)))) for each in about]
    wanted = text.casefold()
    shown = [each for each in rows if any(wanted in cell.casefold() for cell in each[1])]
    if sort is None or sort.header not in listing.headers:
        return Arranged(listing, [cells for _, cells in shown], len(rows))
    number = listing.headers.index(sort.header)
    column = listing.columns[number]
    keyed = [(_key(column, each, cells[number]), cells) for each, cells in shown]
    known = [each for each in keyed if each[0]]
    known.sort(key=lambda each: each[0], reverse=(column.value is not None) != sort.reversed)
    unknown = [each for each in keyed if not each[0]]
    return Arranged(listing, [cells for _, cells in [*known, *unknown]], len(rows), sort)


def _key(column: Column, about: Any, cell: str) -> tuple[Any, ...]:
    """What comes first if it is less; empty if it is not known."""
    if column.value is not None:
        value = column.value(about)
        return () if value is None else (value,)
    if cell in ("", "-"):
        return ()
    # Numbers in a text are compared as such: 10.0.0.9 is before 10.0.0.10.
    pieces = re.split(r"([0-9]{1,18})", cell.casefold())
    return tuple(int(each) if i % 2 else each for i, each in enumerate(pieces))
