"""What an operator changes in this process from outside, while it runs.

It is asked for over the side channel alone, which answers its own user alone: over xoscar and HTTP
nobody can. What was done, and who was refused, is in the history; what was done is logged, too.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import time
from collections.abc import Callable, Mapping
from typing import Any

from . import config, logs, patching, side_channel, values
from .config import Settings
from .connection import history

logger = logging.getLogger("xoscar_idle")

CONFIGURE = "xoscar_idle configure"
"""What is asked to change settings; behind it is a JSON object of names and texts."""

CLOSE = "xoscar_idle close"
"""The same to close connections; the fields are the arguments of :func:`.closing.close`."""

LOG = "log"
"""What the level of :data:`.logs.LOG` is called beside the settings."""

REFUSED_EVERY = 10.0
"""Seconds in which one refusal of a user is noted: the history has room for so much else."""

LONGEST = 200
"""Characters that are logged, and noted, of a value."""


class NotNow(Exception):
    """It cannot be done as things are; the message says why, in a line for the operator."""


Change = Callable[[Mapping[str, Any], str | None], tuple[Settings, Settings]]
"""Puts settings in force, and a level of our log, all or nothing; the settings before and after."""


def known() -> dict[str, str]:
    """What can be changed, by each name that it has: its own, and that of its variable."""
    names = {LOG: LOG, logs.LOG: LOG}
    for each in dataclasses.fields(Settings):
        names[each.name] = names[config.variable(each.name)] = each.name
    return names


def parsed(given: Mapping[str, object]) -> tuple[dict[str, Any], str | None]:
    """What is to be changed: settings, and the level of the log, of what their names are given.

    Parameters
    ----------
    given
        Texts, as in the variables, by the name of a setting or that of its variable. An empty text
        is the default.

    Raises
    ------
    ValueError
        A name is unknown, or given twice, or a value is bad.
    """
    defaults = {each.name: each.default for each in dataclasses.fields(Settings)}
    names = known()
    changes: dict[str, Any] = {}
    for alias, value in given.items():
        name = names.get(alias)
        if name is None:
            raise ValueError(
                f"unknown setting {values.shown(alias)}; there are {', '.join(defaults)}, {LOG}"
            )
        if name in changes:
            raise ValueError(f"{name} is given twice")
        if not isinstance(value, str):
            raise ValueError(f"{name} must be text, as in its variable")
        changes[name] = value.strip() or defaults.get(name, "")
    level = changes.pop(LOG, None)
    if level is not None:
        try:
            level = logs.parsed(level or "off")
        except ValueError as error:
            raise ValueError(f"{LOG} {error}, got {values.shown(level)}") from None
    Settings().changed(**changes)
    return changes, level


def offer(change: Change) -> None:
    """Answer who asks over the side channel, where there is one. It imports xoscar.

    ``change`` carries out what was :func:`parsed`, without waiting for long, or raises
    :class:`NotNow`.
    """
    from .connection import closing  # now: when it is asked for there may be no descriptor left

    def configured(given: Mapping[str, Any]) -> dict[str, Any]:
        changes, level = parsed(given)
        level_before = logs.in_force()
        before, after = change(changes, level)
        told = {name: _change(name, before, after) for name in changes}
        if level is not None:
            told[LOG] = {"before": level_before, "after": logs.in_force()}
        if told:
            _tell(", ".join(f"{name}={_shown(each)}" for name, each in told.items()))
        return {"changed": told}

    def closed(given: Mapping[str, Any]) -> dict[str, Any]:
        peer, now = given.get("peer"), given.get("now") is True
        those_accepted = given.get("accepted") is True
        if not isinstance(peer, str):
            raise ValueError("it names no peer")
        if not patching.is_active():
            raise NotNow(inactive())
        try:
            done = closing.close(peer, now, those_accepted)
        except closing.NoSuchPeer as error:
            return {"error": str(error), "none": True}
        told = dataclasses.asdict(done)
        what = f"close {peer}{' --accepted' * those_accepted}{' --now' * now}"
        _tell(f"{what}: {outcome(told)}")
        return told

    for question, carry_out in ((CONFIGURE, configured), (CLOSE, closed)):
        side_channel.answer(f"{question} ", _answering(question, carry_out))
    side_channel.on_refused(_refused)


def _answering(
    question: str, carry_out: Callable[[Mapping[str, Any]], dict[str, Any]]
) -> Callable[[str], str]:
    """The answer to a question, one line of JSON: ``error`` is why nothing was done."""

    def answer(asked: str) -> str:
        try:
            told = carry_out(_read(asked.removeprefix(question)))
        except (ValueError, NotNow) as error:
            told = {"error": str(error)}
        except Exception as error:
            logger.warning("what an operator wanted could not be done", exc_info=True)
            told = {"error": f"it could not be done: {logs.one_line(error)}"}
        return json.dumps(told)

    return answer


def _read(text: str) -> dict[str, Any]:
    try:
        given = json.loads(text)
    except (ValueError, RecursionError) as error:  # it may be nested as deep as it is long
        raise ValueError(f"what was asked is no JSON: {logs.one_line(error)}") from None
    if not isinstance(given, dict):
        raise ValueError("what was asked is no JSON object")
    return given


def inactive() -> str:
    """Why nothing can be changed where xoscar is not extended."""
    return f"xoscar-idle is not active in it: {patching.why_inactive()}"


def outcome(told: Mapping[str, Any]) -> str:
    """What became of connections, in words: of the fields of :class:`.closing.Closed`."""
    text = f"{told['closed']} closed"
    if draining := told["draining"]:
        text += f", {draining} draining"
    if late := told["late"]:
        loops = logs.counted(late, "event loop")
        text += f"; {loops} blocked or at rest: what is there closes when it runs again"
    return text


def _change(name: str, before: Settings, after: Settings) -> dict[str, str | None]:
    return {"before": _text(name, before), "after": _text(name, after)}


def _text(name: str, settings: Settings) -> str | None:
    """As in the variable, a secret hidden; None: what holds without it."""
    return config.as_variable(name, getattr(settings.without_secrets(), name))


def _shown(change: Mapping[str, str | None]) -> str:
    after, before = (_printable(change[each]) for each in ("after", "before"))
    return f"{after} (was {before})"


def _printable(text: str | None) -> str:
    """On one line, and short."""
    if text is None:
        return "default"
    return text if text.isprintable() and len(text) <= LONGEST else values.shown(text)


def _tell(what: str) -> None:
    pid = side_channel.asker()
    logger.info("an operator (process %s): %s", "unknown" if pid is None else pid, what)
    history.note("operator", _peer(pid), what)


def _peer(pid: int | None) -> str:
    return f"pid {pid}" if pid else ""


_refused_at: dict[int, float] = {}


def _refused(pid: int, uid: int) -> None:
    """Another user has asked."""
    now = time.monotonic()
    if now - _refused_at.get(uid, -math.inf) >= REFUSED_EVERY:
        _refused_at[uid] = now
        history.note("operator", _peer(pid), f"refused: it is a process of user {uid}")
