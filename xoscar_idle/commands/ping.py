"""Asking pools for a sign of life from the command line, as probes do."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import errno
import json
import os
import re
import signal
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import click

from .. import descriptors
from .tables import printable

AT_ONCE = 1000
"""How many are asked, as far as there are descriptors."""

SPARE = 64
"""Descriptors for other things."""

THREADS = 64
"""In which names of hosts are looked up."""

REFUSED, TIMED_OUT, UNREACHABLE, NO_POOL = "refused", "timed_out", "unreachable", "no_pool"


@dataclass(frozen=True)
class Answer:
    """What has come of asking one address once."""

    address: str
    answered: bool
    seconds: float | None = None
    """That connecting and the answer took."""
    reason: str | None = None
    """Why there is none: ``refused``, ``timed_out``, ``unreachable`` or ``no_pool``."""
    text: str = ""
    """The same for people."""


def ping(addresses: Sequence[str], timeout: float, count: int, quiet: bool, as_json: bool) -> int:
    """Ask each address ``count`` times and print what comes of it; the exit status.

    ``timeout`` is that of each time, in seconds. Where one has not answered it does not return, but
    ends the process with that status.

    Raises
    ------
    click.UsageError
        An address is none to xoscar; nobody has been asked.
    """
    # An interrupt ends it at once, and so does what ends it here: the name of a host may be being
    # looked up, which Python would wait for, however long that takes.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    from ..connection.addresses import check  # imports xoscar, which takes a while

    for each in addresses:
        try:
            check(each)
        except ValueError as error:
            raise click.UsageError(str(error)) from None
    return asyncio.run(_ping(addresses, timeout, count, quiet, as_json))


async def _ping(
    addresses: Sequence[str], timeout: float, count: int, quiet: bool, as_json: bool
) -> int:
    loop = asyncio.get_running_loop()
    loop.set_default_executor(ThreadPoolExecutor(THREADS, "xoscar-idle-lookup"))
    at_once = asyncio.Semaphore(_at_once(len(addresses)))

    async def ask(address: str) -> list[Answer]:
        async with at_once:
            answers = []
            for _ in range(count):
                answers.append(await _ask(address, timeout))
                _tell(answers[-1], quiet or as_json)
            return answers

    answers = [each for all_ in await asyncio.gather(*map(ask, addresses)) for each in all_]
    if as_json:
        click.echo(json.dumps([dataclasses.asdict(each) for each in answers], indent=2))
    if not all(each.answered for each in answers):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)
    return 0


async def _ask(address: str, timeout: float) -> Answer:
    from ..connection import probe

    try:
        seconds = await probe.ping(address, timeout)
    except OSError as error:
        return Answer(address, False, None, *explained(error, timeout))
    return Answer(address, True, seconds, text=f"answered in {seconds * 1000:.1f} ms")


def _tell(answer: Answer, quiet: bool) -> None:
    line = printable(f"{answer.address} {answer.text}")
    if not answer.answered:
        click.echo(f"xoscar-idle: {line}", err=True)
    elif not quiet:
        click.echo(line)


def explained(error: OSError, timeout: float) -> tuple[str, str]:
    """Why there is no answer, in a word and for people."""
    if isinstance(error, ConnectionRefusedError):
        return REFUSED, "refused it: nobody listens there"
    if isinstance(error, TimeoutError) and error.errno is None:
        return TIMED_OUT, f"timed out: it gave no sign of life in {timeout:g} s"
    if isinstance(error, TimeoutError):
        return TIMED_OUT, "timed out: nothing answers at that host"
    why = str(error)
    if set(re.findall(r"\[Errno (\d+)\]", why)) == {str(errno.ECONNREFUSED)}:
        return explained(ConnectionRefusedError(), timeout)  # at each address of a name
    if why.startswith("cannot connect to "):
        return UNREACHABLE, f"cannot be reached: {why.partition(': ')[2] or why}"
    return NO_POOL, f"is no pool: {why}"


def _at_once(wanted: int) -> int:
    """How many can be asked at the same time, of so many."""
    wanted = min(wanted, AT_ONCE)
    with contextlib.suppress(OSError, ValueError):  # it cannot be raised as far as that
        descriptors.allow(wanted + SPARE)
    limit, _ = descriptors.limits()
    return wanted if limit is None else max(1, min(wanted, limit - SPARE))
