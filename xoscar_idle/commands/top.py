"""Showing processes and their connections: once, or again and again."""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from collections.abc import Sequence

import click

from ..telemetry.snapshot import MISSING
from ..telemetry.targets import Target, exit_status, look, nobody
from . import keys, ordering, screen
from .interrupting import until_interrupted
from .listings import Seen, headers
from .output import until_closed
from .page import note, page
from .rates import Look
from .screen import Screen
from .tables import columns
from .view import View

PATIENCE = 1.0
"""Seconds after which it is said that there is nothing to show yet."""


def top(
    targets: Sequence[Target], interval: float, once: bool, name: str, sort: str, text: str
) -> int:
    """Show ``targets``, until it is left or once; the exit status.

    Parameters
    ----------
    interval
        Seconds between two looks.
    name
        The view with which it begins.
    sort
        What it is sorted by, as :func:`.ordering.parse` knows it; empty: the default order.
    text
        Only rows with it are shown.

    Raises
    ------
    click.UsageError
        The view has no column ``sort``.
    """
    try:
        order = ordering.parse(sort, headers(name)) if sort else None
    except ValueError as error:
        raise click.UsageError(f"--sort: {error}") from None
    view = View(name, order, text)
    show = _once(targets, view) if once else _live(targets, view, interval)
    return until_closed(lambda: until_interrupted(show))


async def _once(targets: Sequence[Target], view: View) -> int:
    seen = Seen.of(await _first_look(targets))
    if not seen.snapshots:
        click.echo(f"xoscar-idle: {nobody()}", err=True)
        return 1
    width = columns()
    click.echo(page(seen, view, width=width).plain(width))
    return exit_status(seen.snapshots)


async def _live(targets: Sequence[Target], view: View, interval: float) -> int:
    now = await _first_look(targets)
    if targets and all(each.status in MISSING for each in now.snapshots):
        for each in now.snapshots:
            click.echo(f"xoscar-idle: {note(each)}", err=True)
        return exit_status(now.snapshots)
    with screen.opened() as where:
        shown = _Shown(view, where, now)
        with keys.pressed(shown.press) as shown.has_keys:
            while True:
                shown.draw()
                await asyncio.sleep(interval)
                shown.look(await _look(targets))


async def _first_look(targets: Sequence[Target]) -> Look:
    """While it lasts there is nothing to show, so that is said."""
    looking = asyncio.ensure_future(_look(targets))
    try:
        await asyncio.wait([looking], timeout=PATIENCE)
        if not looking.done() and sys.stderr.isatty():
            click.echo("xoscar-idle: some have not answered yet", err=True)
        return await looking
    finally:
        looking.cancel()


async def _look(targets: Sequence[Target]) -> Look:
    when = time.monotonic()  # one that does not answer makes a look long, not the others late
    return Look(await look(targets), when)


class _Shown:
    """What is on the screen."""

    def __init__(self, view: View, where: Screen, first: Look) -> None:
        self.has_keys = False
        self._view = view
        self._screen = where
        self._last = first
        self._seen = Seen.of(first)

    def look(self, now: Look) -> None:
        """From the next time on it is this that is drawn."""
        self._seen, self._last = Seen.of(now, self._last), now

    def press(self, key: str) -> None:
        """Do what a key says."""
        self._view = self._view.press(key)
        if self._view.left:
            signal.raise_signal(signal.SIGINT)  # as Ctrl-C, which may be pressed, too
        else:
            self.draw()

    def draw(self) -> None:
        """On a screen with the time: a page that stands still is seen to be alive."""
        width, height = self._screen.width(), self._screen.height()
        when = "" if height is None else time.strftime("%X")
        complaint = "" if self._seen.snapshots else nobody()
        drawn = page(self._seen, self._view, height, when, complaint, self.has_keys, width)
        self._view = self._view.at(drawn.first, drawn.room)
        self._screen.draw(drawn)
