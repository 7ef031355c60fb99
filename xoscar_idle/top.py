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
from collections.abc import Callable, Coroutine, Iterator, Sequence
from typing import Any

import click

from . import tables
from .observe import Target, look
from .snapshot import Snapshot

Draw = Callable[[Sequence[Snapshot], Sequence[str]], None]

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

    return _run(show())


def top(targets: Sequence[Target], interval: float, once: bool) -> int:
    """Show ``targets``, until interrupted or once; the exit status."""

    async def show() -> int:
        snapshots, complaints = await look(targets)
        if once or (targets and complaints):
            if snapshots and once:
                click.echo(tables.page(snapshots).plain(_width()))
            return _complain(complaints)
        with _screen() as draw:
            while True:
                draw(snapshots, complaints)
                await asyncio.sleep(interval)
                snapshots, complaints = await look(targets)

    return _run(show())


def _complain(complaints: Sequence[str]) -> int:
    for each in complaints:
        click.echo(f"xoscar-idle: {each}", err=True)
    return 1 if complaints else 0


def _run(show: Coroutine[Any, Any, int]) -> int:
    """Run it until it ends, or a signal says so: Ctrl-C is how to leave, and no error."""

    async def main() -> int:
        loop = asyncio.get_running_loop()
        task, received = loop.create_task(show), loop.create_future()

        def leave(number: int) -> None:
            if not received.done():
                received.set_result(number)

        for name in ("SIGINT", "SIGTERM", "SIGHUP"):
            with contextlib.suppress(AttributeError, NotImplementedError):  # Windows
                loop.add_signal_handler(getattr(signal, name), leave, getattr(signal, name))
        await asyncio.wait([task, received], return_when=asyncio.FIRST_COMPLETED)
        if not received.done():
            return task.result()
        # Once may not do: before Python 3.12 a wait_for, xoscar's too, can swallow it.
        while not task.done():
            task.cancel()
            await asyncio.wait([task], timeout=0.1)
        return 0 if received.result() == signal.SIGINT else 128 + received.result()

    try:
        return asyncio.run(main())
    except KeyboardInterrupt:  # Windows
        return 0


def _width() -> int:
    return shutil.get_terminal_size().columns


def _text(snapshots: Sequence[Snapshot], complaints: Sequence[str]) -> str:
    """What fits on the terminal, with the time: a page that stands still is seen to be alive."""
    columns, lines = shutil.get_terminal_size()
    text = tables.page(snapshots, complaints, lines, time.strftime("%X")).plain(columns)
    return "\n".join(text.splitlines()[:lines])


@contextlib.contextmanager
def _screen() -> Iterator[Draw]:
    """How to draw: with rich, without it, or one page after the other into a pipe or a file."""
    if not sys.stdout.isatty() or os.environ.get("TERM") == "dumb":
        yield lambda *page: click.echo(f"{tables.page(*page).plain(_width())}\n")
        return
    try:
        from rich.live import Live
        from rich.text import Text
    except ImportError:
        try:
            yield _redraw
        finally:
            click.echo()
        return

    def draw(snapshots: Sequence[Snapshot], complaints: Sequence[str]) -> None:
        text = Text(_text(snapshots, complaints), no_wrap=True)
        for pattern, style in STYLES.items():
            text.highlight_regex(pattern, style)
        live.update(text, refresh=True)

    with Live(screen=True, auto_refresh=False) as live:
        yield draw


def _redraw(snapshots: Sequence[Snapshot], complaints: Sequence[str]) -> None:
    click.clear()
    click.echo(_text(snapshots, complaints), nl=False)
