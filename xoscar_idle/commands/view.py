"""What of the processes is looked at, and what keys change about it."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace

from . import ordering
from .listings import VIEWS, headers
from .ordering import Sort

SCROLL = {
    "up": "up",
    "k": "up",
    "down": "down",
    "j": "down",
    "page up": "page up",
    "page down": "page down",
    " ": "page down",
    "home": "home",
    "g": "home",
    "end": "end",
    "G": "end",
}
"""Keys that begin at another row."""

HELP = """\
1 2 3 4           processes, connections, peers, accepted connections
v                 the next of these
< >               sort by the column before or behind; before the first and
                  behind the last is the order without
r                 sort the other way round
/                 show only rows with what is typed; Enter keeps, Esc clears it
arrows, j, k      scroll
PgUp, PgDn, space by a page
Home, End, g, G   to the beginning or the end
h, ?              this, until a key is pressed
q, Ctrl-C         quit"""

HINT = "q quits, h shows the keys, 1 to 4 are views, / filters"


@dataclass(frozen=True)
class View:
    """What is looked at. Keys are named as :mod:`.keys` does."""

    name: str = "processes"
    sort: Sort | None = None
    filter: str = ""
    typing: bool = False
    """Whether characters go to the filter."""
    help: bool = False
    """Whether the keys are shown instead."""
    left: bool = False
    """Whether it is over."""
    first: int = 0
    """The row with which it begins; there may be less."""
    room: int = 1
    """How many rows there was room for."""

    def at(self, first: int, room: int) -> View:
        """Where it has turned out to be, once it was drawn."""
        return replace(self, first=first, room=room)

    def press(self, key: str) -> View:
        """What is looked at after a key."""
        if self.help:
            return replace(self, help=False, left=key in ("q", "Q"))
        if self.typing:
            return self._typed(key)
        if key in SCROLL:
            return self._scrolled(SCROLL[key])
        if key in ("<", ">"):
            step = -1 if key == "<" else 1
            return replace(self, sort=ordering.moved(self.sort, headers(self.name), step))
        if key == "r" and self.sort is not None:
            return replace(self, sort=replace(self.sort, reversed=not self.sort.reversed))
        if key == "/":
            return replace(self, typing=True)
        if key == "escape":
            return self._filtered("")
        if key in ("h", "?"):
            return replace(self, help=True)
        if key in ("q", "Q"):
            return replace(self, left=True)
        return self._of(key)

    def _of(self, key: str) -> View:
        views = list(VIEWS)
        if key == "v":
            name = views[(views.index(self.name) + 1) % len(views)]
        elif key in ("1", "2", "3", "4"):
            name = views[int(key) - 1]
        else:
            return self
        return replace(self, name=name, first=0)

    def _scrolled(self, where: str) -> View:
        if where in ("home", "end"):
            return replace(self, first=0 if where == "home" else sys.maxsize)
        step = self.room if where.startswith("page") else 1
        return replace(self, first=max(0, self.first + (-step if where.endswith("up") else step)))

    def _typed(self, key: str) -> View:
        if key == "enter":
            return replace(self, typing=False)
        if key == "escape":
            return replace(self._filtered(""), typing=False)
        if key == "backspace":
            return self._filtered(self.filter[:-1])
        if len(key) == 1:
            return self._filtered(self.filter + key)
        return self._scrolled(SCROLL[key]) if key in SCROLL else self

    def _filtered(self, text: str) -> View:
        return replace(self, filter=text, first=0)
