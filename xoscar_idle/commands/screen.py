"""Drawing pages: on a terminal, or one after the other into a pipe or a file."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from collections.abc import Iterator
from typing import Protocol

import click
from rich.live import Live
from rich.text import Text

from .page import FOOT, HEADER, ROW, TITLE, Page
from .tables import columns

STYLES = {TITLE: "bold", HEADER: "bold", FOOT: "dim"}
"""How a line is shown, by what it is."""

STATES = {
    r"\bactive\b": "green",
    r"\bidle\b": "cyan",
    r"\b(retired|closing|inactive)\b": "yellow",
    r"\b(blocked|gone|foreign)\b": "red",
}
"""How what matches in a row is shown."""


class Screen(Protocol):
    """Where pages are drawn."""

    def width(self) -> int:
        """How many characters fit on a line."""

    def height(self) -> int | None:
        """How many lines fit; None: any number."""

    def draw(self, page: Page) -> None:
        """Show a page."""


class Pages:
    """What has no screen: plain text, without escape codes."""

    def width(self) -> int:
        """Any number, unless ``COLUMNS`` says one: what is cut off cannot be searched."""
        return columns()

    def height(self) -> int | None:
        """There is no end."""
        return None

    def draw(self, page: Page) -> None:
        """Behind the one before."""
        click.echo(f"{page.plain(columns())}\n")


class Terminal:
    """A page in place of the one before."""

    def __init__(self, live: Live) -> None:
        self._live = live

    def width(self) -> int:
        """As wide as it is now."""
        return columns()

    def height(self) -> int | None:
        """As high as it is now."""
        return shutil.get_terminal_size((0, 0)).lines or 24  # see columns()

    def draw(self, page: Page) -> None:
        """In place of the one before."""
        lines = page.lines(columns())[: self.height()]
        text = Text("\n", no_wrap=True).join(_styled(*each) for each in lines)
        self._live.update(text, refresh=True)


def _styled(kind: str, line: str) -> Text:
    text = Text(line, STYLES.get(kind, ""), no_wrap=True)
    if kind in (TITLE, ROW):
        for pattern, style in STATES.items():
            text.highlight_regex(pattern, style)
    return text


@contextlib.contextmanager
def opened() -> Iterator[Screen]:
    """The terminal, which is as before after the block; plain text where there is none."""
    if not sys.stdout.isatty() or os.environ.get("TERM") == "dumb":
        yield Pages()
        return
    with Live(screen=True, auto_refresh=False) as live:
        yield Terminal(live)
