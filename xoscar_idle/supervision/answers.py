"""What a main pool's process answers to whoever asks for its sub-pools.

Over xoscar the question is an ordinary control message, for the pool's configuration, with ours in
its content. A pool without us passes over that and answers with its configuration: so it is told
apart. Over the side channel the same line is the question.
"""

from __future__ import annotations

import json
import os
from typing import Any

from .. import side_channel
from . import supervisor

PREFIX = "xoscar_idle "

PATIENCE = 0.9
"""Seconds for which the end of a process is waited for; who asks has a second."""


def end_of(address: str, open_for: float) -> str:
    """The question how the process at ``address`` ended, for who was connected to it so long."""
    return f"{PREFIX}end {open_for:.3f} {address}"


def why_down(address: str) -> str:
    """The question why the pool at ``address`` refuses connections."""
    return f"{PREFIX}down {address}"


def info_of(address: str) -> str:
    """The question how the pool at ``address`` is."""
    return f"{PREFIX}info {address}"


ALL = f"{PREFIX}pools"
"""The question for all sub-pools."""


def is_question(content: object) -> bool:
    """Whether it is one of ours, and not telemetry's."""
    return isinstance(content, str) and content.startswith(PREFIX)


async def answer(question: str) -> Any:
    """The answer, in values that JSON has; None: there is nothing to say."""
    verb, _, rest = question.removeprefix(PREFIX).partition(" ")
    if verb == "pools":
        return pools()
    if verb in ("down", "info"):
        found = supervisor.of(rest)
        if found is None:
            return None
        return found.down(rest) if verb == "down" else found.info(rest)
    if verb == "end":
        seconds, _, address = rest.partition(" ")
        return await end(address, float(seconds), PATIENCE)
    return None


def pools() -> dict[str, Any]:
    """All sub-pools of this process."""
    told = [vars(info) for each in supervisor.everywhere() for info in each.pools()]
    return {"pid": os.getpid(), "pools": told}


async def end(address: str, open_for: float, patience: float) -> dict[str, Any] | None:
    """How the process at ``address`` ended, to which a connection was open for so many seconds."""
    found = supervisor.of(address)
    if found is None:
        return None
    ended = await found.explain(address, open_for, patience)
    if ended is None:
        return None
    record = {**vars(ended.record), "state": ended.lineage.state.value}
    return {"requested": ended.requested, "record": record}


def offer() -> None:
    """Answer who asks over the side channel, where there is one."""
    side_channel.answer(ALL, lambda: json.dumps(pools()))
