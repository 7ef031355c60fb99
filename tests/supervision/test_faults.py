"""Which errors of actors' methods say that their process is broken."""

from __future__ import annotations

import pytest

from xoscar_idle.logs import one_line
from xoscar_idle.supervision.beat import is_fault


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


@pytest.mark.parametrize(
    ("pattern", "matches"),
    [
        ("CUDA error*", True),
        ("RuntimeError", True),
        ("RuntimeError: CUDA*", True),
        ("Runtime*: * lost", True),
        ("*device [0-3] is?lost", True),
        ("*device [4-7] is lost", False),
        ("cuda error*", False),
        ("CUDA error", False),
        ("Error*", False),
        ("[", False),
    ],
)
def test_type_and_text_and_both_are_matched(pattern: str, matches: bool) -> None:
    error = RuntimeError("CUDA error: an illegal access\n\ndevice 3 is lost")
    assert is_fault(error, ("ValueError", pattern)) is matches


def test_an_error_that_cannot_be_told_is_matched_by_its_type() -> None:
    """Its call is answered all the same."""
    assert is_fault(Unspeakable(), ("Unspeak*",))
    assert not is_fault(Unspeakable(), ("*words*",))
    assert "Unspeakable" in one_line(Unspeakable())
