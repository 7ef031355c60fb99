"""What any process tells whoever asks, be it over the side channel or over xoscar itself.

The line that asks is the same: over xoscar it stands in the content of an ordinary control
message, see :mod:`.pool_query`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from .. import side_channel

PREFIX = "xoscar_idle "

_ANSWERS: dict[str, Callable[[str], Any]] = {}
"""By the word behind the prefix: what comes behind that, to values that JSON has. Any thread asks.
"""


def answer(question: object) -> str | None:
    """One line of JSON; None: it is no question that is answered here."""
    if not (isinstance(question, str) and question.startswith(PREFIX)):
        return None
    word, _, rest = question.removeprefix(PREFIX).partition(" ")
    known = _ANSWERS.get(word)
    return None if known is None else json.dumps(known(rest))


def offer() -> None:
    """Answer who asks over the side channel, where there is one."""
    for word in _ANSWERS:
        for question in (f"{PREFIX}{word}", f"{PREFIX}{word} "):
            side_channel.answer(question, lambda asked: answer(asked) or "")
