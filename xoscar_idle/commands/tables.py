"""Rows of cells as plain text that fits its width and does nothing to a terminal."""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rich.cells import cell_len, set_cell_size

GAP = "  "


@dataclass(frozen=True)
class Column:
    """A column: its header, and its cell for what a row is about."""

    header: str
    cell: Callable[[Any], str]
    text: bool = False
    """Left-aligned; all others are numbers."""
    spare: int = 0
    """Where there is no room, the columns that can be spared are left out, 1 first; 0 never."""
    value: Callable[[Any], float | None] | None = None
    """What rows are sorted by, None if it is not known; without it, by the text of the cell."""


@dataclass(frozen=True)
class Table:
    """Rows of cells under headers.

    The column number ``wide`` takes what room is left. Where that is less than ``needed``
    characters, columns that can be spared are left out, but not the one that is ``marked``.
    """

    columns: Sequence[Column]
    rows: Sequence[Sequence[str]]
    needed: int = 8
    wide: int = 1
    marked: int | None = None
    """The number of the column whose header has ``mark`` behind it."""
    mark: str = ""

    def plain(self, width: int) -> list[str]:
        """Its lines, none of them longer than ``width``."""
        headers = [each.header for each in self.columns]
        if self.marked is not None:
            headers[self.marked] += self.mark
        cells = [headers, *self.rows]
        widths = [max(map(cell_len, column)) for column in zip(*cells, strict=True)]
        wide = self.wide
        least = min(widths[wide], 8)
        needed, shown = max(least, min(widths[wide], self.needed)), list(range(len(widths)))
        spare = [i for i in shown if self.columns[i].spare and i != self.marked]
        for each in sorted(spare, key=lambda i: self.columns[i].spare):
            if self._room(widths, shown, width) >= needed:
                break
            shown.remove(each)
        widths[wide] = max(least, min(widths[wide], self._room(widths, shown, width)))
        return [cut(self._line(row, widths, shown), width).rstrip() for row in cells]

    def _line(self, row: Sequence[str], widths: list[int], shown: list[int]) -> str:
        return GAP.join(
            set_cell_size(clipped(row[i], widths[i]), widths[i])
            if self.columns[i].text
            else " " * (widths[i] - cell_len(row[i])) + row[i]
            for i in shown
        )

    def _room(self, widths: list[int], shown: list[int], width: int) -> int:
        """What is left for the wide column."""
        return width - sum(len(GAP) + widths[i] for i in shown if i != self.wide)


def columns() -> int:
    """How long a line may be: as ``COLUMNS`` says, or the terminal; where there is none, any."""
    # A terminal may say 0, as one of a container does until its client has told its size.
    unknown = 80 if sys.stdout.isatty() else sys.maxsize
    return shutil.get_terminal_size((0, 0)).columns or unknown


def cut(text: str, width: int) -> str:
    """As much of it as there is room for; some characters take the room of two."""
    return text if cell_len(text) <= width else set_cell_size(text, width)


def clipped(text: str, width: int) -> str:
    """As much as there is room for; an address at the beginning keeps its end, the port."""
    if cell_len(text) <= width:
        return text
    address = text.partition(" ")[0]
    if len(address) == width:
        return address
    if len(address) < width or ":" not in address:
        return cut(text, width - 1) + "…"
    end = (width - 1) * 2 // 3
    return f"{address[: width - 1 - end]}…{address[-end:]}"


def row(columns: Sequence[Column], about: Any) -> list[str]:
    """The cells of what a row is about."""
    return [each.cell(about) for each in columns]


def printable(text: str) -> str:
    """``text`` on one line, without what would do something to a terminal."""
    return _harmless(" ".join(text.split()))


def paragraphs(text: str, width: int, indent: str = "") -> list[str]:
    """The lines of ``text``, each as deep as it was, printable, and none longer than ``width``."""
    lines = []
    for line in map(_harmless, text.expandtabs().splitlines()):
        depth = indent + line[: len(line) - len(line.lstrip())]
        lines += textwrap.wrap(
            line.strip(),
            width,
            initial_indent=depth,
            subsequent_indent=depth,
            break_on_hyphens=False,
        )
    return lines


def hanging(text: str, width: int, indent: str) -> list[str]:
    """``text``, which is printable, on as many lines as it takes, all but the first indented."""
    return textwrap.wrap(text, width, subsequent_indent=indent, break_on_hyphens=False)


def _harmless(line: str) -> str:
    if line.isprintable():
        return line
    return "".join(each if each.isprintable() else "?" for each in line)


def name_of(pid: int | None, address: str | None) -> str:
    """What a process is called in a line about it."""
    if pid is None:
        return printable(str(address))
    return f"{pid}" if address is None else f"{pid} at {printable(address)}"


def cell(value: object) -> str:
    """A figure, where it is known."""
    return "-" if value is None else str(value)


def duration(seconds: float | None) -> str:
    """As short as a table needs it."""
    if seconds is None:
        return "-"
    if seconds < 60:
        return f"{seconds:.1f}s"
    minutes = int(seconds) // 60
    if minutes < 60:
        return f"{minutes}m{int(seconds) % 60:02}s"
    if minutes < 60 * 24:
        return f"{minutes // 60}h{minutes % 60:02}m"
    return f"{minutes // 1440}d{minutes // 60 % 24:02}h"
