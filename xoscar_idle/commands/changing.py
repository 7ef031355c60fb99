"""Changing processes of this machine while they run: their settings, and their connections."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import click
import psutil

from .. import changes, side_channel, values
from ..telemetry import kernel, snapshot, targets
from ..telemetry.targets import PROCESSES_AT_ONCE, Target
from .spelling import meant
from .tables import printable

ELSEWHERE = (
    "nothing listens there that this user may look at: a process is changed on its own machine, as "
    "its own user"
)


@dataclass(frozen=True)
class Answer:
    """What became of it in a process."""

    pid: int | None
    """None: it is an address at which no process of this machine was found."""
    name: str
    """What it is called in a line about it."""
    error: str = ""
    """Why nothing was done; empty: it was."""
    told: Mapping[str, Any] = field(default_factory=dict)

    @property
    def has_none(self) -> bool:
        """Whether nothing was done since there was nothing to do."""
        return bool(self.told.get("none"))


def configure(arguments: Sequence[str], everything: bool, as_json: bool) -> int:
    """Change settings, print what became of it, one line per process; the exit status.

    Parameters
    ----------
    arguments
        ``NAME=VALUE``, and the processes among them.
    everything
        All processes of this user that offer a monitor, in their place.

    Raises
    ------
    ValueError
        What is asked for makes no sense; nobody was asked.
    """
    texts = [each for each in arguments if "=" in each and not each.startswith("@")]
    others = [each for each in arguments if each not in texts]
    for each in others:
        if each in changes.known():
            raise ValueError(f"{each} has no value: give {each}=VALUE")
    question = _question(changes.CONFIGURE, _settings(texts))
    answers = _asked(_named(others, everything), everything, question)
    if as_json:
        _print([_json(each, not each.error, changed=each.told.get("changed")) for each in answers])
    else:
        _lines(answers, lambda told: ", ".join(_changed(told["changed"])), "not changed")
    return 1 if any(each.error for each in answers) else 0


def close(
    arguments: Sequence[str], everything: bool, now: bool, those_accepted: bool, as_json: bool
) -> int:
    """Close connections; see :func:`configure`. The last of ``arguments`` is the peer.

    A process without such a peer is none that could not, where another one has it.
    """
    *others, peer = arguments
    if peer.isdecimal():
        raise ValueError(f"{peer} is no PEER: give its HOST:PORT, or a pattern like '10.0.0.*:*'")
    asked = {"peer": peer, "now": now, "accepted": those_accepted}
    question = _question(changes.CLOSE, asked)
    answers = _asked(_named(others, everything), everything, question)
    done = [not each.error and not each.told["late"] for each in answers]
    if as_json:
        counts = ("closed", "draining", "late")
        found = [
            _json(each, ok, **{name: each.told.get(name, 0) for name in counts})
            for each, ok in zip(answers, done, strict=True)
        ]
        _print(found)
    else:
        _lines(answers, changes.outcome, "nothing closed")
    could = [ok or each.has_none for each, ok in zip(answers, done, strict=True)]
    return 0 if all(could) and any(done) else 1


# What is asked


def _settings(texts: Sequence[str]) -> dict[str, str]:
    """What is to be changed; it is looked at here, too, so that no process changes alone."""
    if not texts:
        raise ValueError("there is no NAME=VALUE: give idle_timeout=10, say")
    given: dict[str, str] = {}
    for each in texts:
        name, _, value = each.partition("=")
        if name in given:
            raise ValueError(f"{name} is given twice")
        if name not in changes.known() and (known := _meant(name)):
            raise ValueError(f"unknown setting {values.shown(name)}: is {known} meant?")
        given[name] = value
    changes.parsed(given)
    return given


def _meant(name: str) -> str | None:
    own = {f"XOSCAR_{each.upper()}": each for each in changes.known().values()}
    return own.get(meant(f"XOSCAR_{name.upper().removeprefix('XOSCAR_')}", own) or "")


def _question(begin: str, fields: Mapping[str, object]) -> str:
    question = f"{begin} {json.dumps(fields)}"
    if len(question) >= side_channel.LONGEST_QUESTION:
        raise ValueError(f"that is too long: {side_channel.LONGEST_QUESTION} bytes at most")
    return question


# Who is asked


def _named(texts: Sequence[str], everything: bool) -> list[Target]:
    if everything and texts:
        raise ValueError(f"--all is all processes, and {values.shown(texts[0])} is one of them")
    if not (everything or texts):
        raise ValueError("name processes, by PID or by HOST:PORT of their pool, or all with --all")
    return [*side_channel.offered()] if everything else targets.named(texts)


def _asked(named: Sequence[Target], everything: bool, question: str) -> list[Answer]:
    """What those answer that are named, each process once."""
    found = _processes(named)
    if not found:
        return [Answer(None, "nobody", targets.nobody())]
    threads = ThreadPoolExecutor(min(PROCESSES_AT_ONCE, len(found)), "xoscar-idle-change")
    try:
        answers = list(threads.map(lambda each: _ask(each, question), found))
    finally:
        threads.shutdown(wait=False, cancel_futures=True)  # who has been interrupted goes at once
    # Of all that there are, one may have ended just now.
    return [each for each in answers if not (everything and _has_gone(each))]


def _processes(named: Sequence[Target]) -> list[Answer]:
    """Those that are named; of a pool all of its own, which the one tells that listens there."""
    addresses = [each for each in named if isinstance(each, str)]
    heard = kernel.listeners(addresses)
    others = {each: _others(heard[each], each) for each in addresses if each in heard}
    heard |= kernel.listeners(each for all_ in others.values() for each in all_)
    found: dict[str, Answer] = {}
    for each in named:
        for one in [each, *others.get(each, ())] if isinstance(each, str) else [each]:
            pid = heard.get(one) if isinstance(one, str) else one
            name = f"{one if pid is None else pid}"
            found.setdefault(name, Answer(pid, name, ELSEWHERE if pid is None else ""))
    return list(found.values())


def _others(pid: int, address: str) -> list[str]:
    """The addresses of the other processes of the pool that a process listens for there."""
    try:
        seen = snapshot.ask(pid)
    except TimeoutError:
        return []  # which is told when it is asked what it is to do
    pools = [] if seen is None else seen.pools
    here = [each for each in pools if each["here"]]
    port = address.rpartition(":")[2]
    mains = {each["main"] for each in here if each["address"].rpartition(":")[2] == port}
    return [each["address"] for each in pools if each["main"] in mains and not each["here"]]


def _ask(process: Answer, question: str) -> Answer:
    pid = process.pid
    if pid is None:
        return process
    try:
        told = side_channel.ask(pid, question)
        if told is None:
            return Answer(pid, process.name, _why_silent(pid))
        given = json.loads(told)
        return Answer(pid, process.name, str(given.get("error", "")), given)
    except TimeoutError as error:
        why = f"{error}, so whether it was done is not known: look, or ask again"
        return Answer(pid, process.name, why)
    except (AttributeError, TypeError, ValueError) as error:
        return Answer(pid, process.name, f"it answers in another way than expected: {error!r}")


def _why_silent(pid: int) -> str:
    """Why a process does not answer this question."""
    if not side_channel.AVAILABLE:
        return "Python has no unix sockets on this platform"
    if (seen := snapshot.ask(pid)) is not None:
        return seen.note or "the xoscar-idle in it is older"
    try:
        process = psutil.Process(pid)
        if process.uids().effective != os.geteuid():
            return (
                f"process {pid} belongs to {process.username()}, who alone can change it; not even "
                "root can"
            )
    except (psutil.NoSuchProcess, OverflowError):
        return f"there is no process {pid}"
    except psutil.AccessDenied:
        pass
    return f"it offers this user no monitor: start it with {side_channel.MONITOR}=1"


def _has_gone(answer: Answer) -> bool:
    return bool(answer.error) and answer.pid is not None and not psutil.pid_exists(answer.pid)


# What is printed


def _lines(
    answers: Sequence[Answer], text: Callable[[Mapping[str, Any]], str], not_done: str
) -> None:
    width = max((len(each.name) for each in answers), default=0)
    for each in answers:
        told = f"{not_done}: {each.error}" if each.error else text(each.told)
        click.echo(f"{printable(each.name):{width}}  {printable(told)}")


def _changed(changed: Mapping[str, Mapping[str, str | None]]) -> Iterator[str]:
    for name, each in changed.items():
        after, before = ("default" if each[at] is None else each[at] for at in ("after", "before"))
        yield f"{name}={after} (was {before})"


def _json(answer: Answer, done: bool, **fields: object) -> dict[str, object]:
    """What became of it; ``target`` is what was named, where no process was found."""
    target = None if answer.pid is not None else answer.name
    return {"pid": answer.pid, "target": target, "done": done, "error": answer.error} | fields


def _print(found: object) -> None:
    click.echo(json.dumps(found, indent=2))
