"""Showing processes and their connections: once, or again and again."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence

import click

from ..telemetry.snapshot import Snapshot
from ..telemetry.targets import Target, look
from . import keys, tables
from .interrupting import until_interrupted

KEYS = ": q quits; arrows, PgUp, PgDn, j and k scroll"

STYLES = {
    r"\bactive\b": "green",
    r"\bidle\b": "cyan",
    r"\b(retired|closing)\b": "yellow",
    r"\A.*|PID .*": "bold",
}
"""How rich shows what matches."""


def stats(targets: Sequence[Target], as_json: bool) -> int:
    """Print everything about ``targets`` once; the exit status."""

    async def show() -> int:
        snapshots, complaints = await look(targets)
        if as_json:
            click.echo(json.dumps([vars(each) for each in snapshots], indent=2))
        else:
            click.echo("\n\n".join(map(tables.details, snapshots)), nl=bool(snapshots))
        return _complain(complaints)

    return until_interrupted(show())


class View:
    """What is seen of the processes: as much of it as fits on the terminal, from a row on."""

    def __init__(self) -> None:
        self.snapshots: Sequence[Snapshot] = ()
        self.complaints: Sequence[str] = ()
        self.has_keys = False
        self._first = 0
        self._room = 1

    def whole(self) -> str:
        """All of it, for what scrolls by itself."""
        return tables.page(self.snapshots, self.complaints).plain(_terminal()[0])

    def part(self) -> str:
        """What fits, with the time: a page that stands still is seen to be alive."""
        columns, lines = _terminal()
        how = KEYS if self.has_keys else ""
        now = time.strftime("%X")
        page = tables.page(self.snapshots, self.complaints, lines, now, self._first, how)
        self._first, self._room = page.first, page.room
        return "\n".join(page.plain(columns).splitlines()[:lines])

    def scroll(self, key: str) -> None:
        """Begin at another row; :meth:`part` sees that there is one."""
        if key == "home":
            self._first = 0
        elif key == "end":
            self._first = sys.maxsize
        else:
            step = self._room if key.startswith("page") else 1
            self._first = max(0, self._first + (-step if key.endswith("up") else step))


def top(targets: Sequence[Target], interval: float, once: bool) -> int:
    """Show ``targets``, until it is left or once; the exit status."""
    view = View()

    async def show() -> int:
        view.snapshots, view.complaints = await look(targets)
        if once or (targets and view.complaints):
            if view.snapshots and once:
                click.echo(view.whole())
            return _complain(view.complaints)
        with _screen(view) as draw:

            def press(key: str) -> None:
                if key == "quit":
                    signal.raise_signal(signal.SIGINT)  # as Ctrl-C, which may be pressed, too
                else:
                    if key != "resume":
                        view.scroll(key)
                    draw()

            with keys.pressed(press) as view.has_keys:
                while True:
                    draw()
                    await asyncio.sleep(interval)
                    view.snapshots, view.complaints = await look(targets)

    return until_interrupted(show())


def _complain(complaints: Sequence[str]) -> int:
    for each in complaints:
        click.echo(f"xoscar-idle: {each}", err=True)
    return 1 if complaints else 0


def _terminal() -> tuple[int, int]:
    return shutil.get_terminal_size()


@contextlib.contextmanager
def _screen(view: View) -> Iterator[Callable[[], None]]:
    """How to draw: with rich, without it, or one page after the other into a pipe or a file."""
    if not sys.stdout.isatty() or os.environ.get("TERM") == "dumb":
        yield lambda: click.echo(f"{view.whole()}\n")
        return
    try:
        from rich.live import Live
        from rich.text import Text
    except ImportError:

        def redraw() -> None:
            click.clear()
            click.echo(view.part(), nl=False)

        try:
            yield redraw
        finally:
            click.echo()
        return

    def draw() -> None:
        text = Text(view.part(), no_wrap=True)
        for pattern, style in STYLES.items():
            text.highlight_regex(pattern, style)
        live.update(text, refresh=True)

    with Live(screen=True, auto_refresh=False) as live:
        yield draw
