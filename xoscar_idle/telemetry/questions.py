"""What any process tells whoever asks, be it over the side channel or over xoscar itself.

The line that asks is the same: over xoscar it stands in the content of an ordinary control
message, see :mod:`.pool_query`.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from .. import side_channel
from ..connection import history, underway

PREFIX = "xoscar_idle "

_ANSWERS: dict[str, Callable[[str], Any]] = {
    "calls": underway.told,
    "happened": history.told,
}
"""By the word behind the prefix: what comes behind that, to values that JSON has. Any thread asks.
"""

WAITING = {"calls"}
"""What waits for event loops, and so is not to be answered on one."""


def answer(question: object) -> str | None:
    """One line of JSON; None: it is no question that is answered here."""
    if not (isinstance(question, str) and question.startswith(PREFIX)):
        return None
    word, _, rest = question.removeprefix(PREFIX).partition(" ")
    known = _ANSWERS.get(word)
    return None if known is None else json.dumps(known(rest))


async def answer_there(question: object) -> str | None:
    """The same where an event loop runs, which goes on meanwhile."""
    told = question.removeprefix(PREFIX) if isinstance(question, str) else ""
    if told.partition(" ")[0] not in WAITING:
        return answer(question)
    # Not in the executor of the program, whose threads may all be busy.
    thread = ThreadPoolExecutor(1, "xoscar-idle-answer")
    try:
        return await asyncio.get_running_loop().run_in_executor(thread, answer, question)
    except RuntimeError:  # no thread can be started
        return answer(question)
    finally:
        thread.shutdown(wait=False)


def offer() -> None:
    """Answer who asks over the side channel, where there is one."""
    for word in _ANSWERS:
        for question in (f"{PREFIX}{word}", f"{PREFIX}{word} "):
            side_channel.answer(question, lambda asked: answer(asked) or "")
