"""The ring in which a journal keeps its entries; what it tells is in supervision/test_events.py."""

from __future__ import annotations

import dataclasses
import gc
import itertools
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xoscar_idle.journal import UNNAMED, Journal


@dataclass(frozen=True)
class Entry:
    sequence: int
    when: float
    text: str = ""


def add(journal: Journal[Entry], text: str = "") -> int:
    return journal.add(lambda sequence, when: Entry(sequence, when, text))


def filled(remembered: int, count: int) -> Journal[Entry]:
    """Its entries have their number for a time."""
    made: Journal[Entry] = Journal(remembered)
    for _ in range(count):
        made.add(lambda sequence, _: Entry(sequence, sequence))
    return made


def numbers(journal: Journal[Entry], since: int = 0) -> list[int]:
    return [each.sequence for each in journal.since(since)[1]]


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(1, 12)),
        st.tuples(st.just("remember"), st.integers(0, 9)),
    ),
    max_size=30,
)


@given(st.integers(0, 9), STEPS)
def test_it_keeps_what_a_deque_keeps(remembered: int, steps: list[tuple[str, int]]) -> None:
    journal: Journal[Entry] = Journal(remembered)
    model: deque[int] = deque(maxlen=remembered)
    last = 0
    for step, number in steps:
        if step == "add":
            for _ in range(number):
                last += 1
                assert add(journal) == last
                model.append(last)
        else:
            journal.remember(number)
            model = deque(model, maxlen=number)
        assert journal.last == last
        assert journal.remembered == model.maxlen
        oldest = journal.oldest
        assert (None if oldest is None else oldest.sequence) == (model[0] if model else None)
        for since in range(last + 2):
            missed, found = journal.since(since)
            assert [each.sequence for each in found] == [each for each in model if each > since]
            assert missed + len(found) == max(0, last - since)


@given(st.integers(0, 9), st.integers(0, 25), st.integers(1, 9))
def test_in_parts_it_is_the_same(remembered: int, count: int, most: int) -> None:
    journal = filled(remembered, count)
    name, number, missed, seen = UNNAMED, 0, 0, list[int]()
    while number < journal.last:
        told = journal.told(name, number, most)
        assert len(told["events"]) <= most
        assert told["last"] > number, "it goes on"
        name, number = told["journal"], told["last"]
        missed += told["missed"]
        seen += [each["sequence"] for each in told["events"]]
    assert (missed, seen) == (max(0, count - remembered), numbers(journal))
    assert journal.told(name, number, most)["events"] == []


@given(st.integers(0, 9), st.integers(0, 25), st.integers(1, 9), st.integers(0, 27))
def test_without_what_was_before(remembered: int, count: int, most: int, earliest: int) -> None:
    journal = filled(remembered, count)
    number, seen, asked = 0, list[int](), 0
    while number < journal.last:
        told = journal.told(journal.name, number, most, earliest)
        number, asked = told["last"], asked + 1
        seen += [each["sequence"] for each in told["events"]]
    expected = [each for each in numbers(journal) if each >= earliest]
    assert seen == expected
    assert asked <= len(expected) // most + 1, "what is passed over takes no turn of its own"


def test_it_is_told_by_its_fields() -> None:
    journal: Journal[Entry] = Journal(3)
    add(journal, "why")
    (told,) = journal.told(UNNAMED, 0)["events"]
    assert told == dataclasses.asdict(journal.since(0)[1][0])


def test_what_is_forgotten_for_good_is_told_once() -> None:
    """Where nothing is remembered any more, whoever asks in turns comes to the end all the same."""
    journal = filled(9, 5)
    journal.remember(0)
    told = journal.told(UNNAMED, 0)
    assert (told["missed"], told["last"], told["events"]) == (5, 5, [])
    told = journal.told(told["journal"], told["last"])
    assert (told["missed"], told["last"]) == (0, 5)
    assert add(journal) == 6
    assert (journal.told(journal.name, 5)["missed"], journal.oldest) == (1, None)


def test_one_that_could_not_be_made_is_missing() -> None:
    journal = filled(3, 2)

    def fail(_: int, __: float) -> Entry:
        raise MemoryError

    with pytest.raises(MemoryError):
        journal.add(fail)
    assert add(journal) == 4
    missed, found = journal.since(1)
    assert (missed, [each.sequence for each in found]) == (1, [2, 4])


# -- changing what is there ------------------------------------------------------------------------


def renamed(entry: Entry) -> Entry:
    return dataclasses.replace(entry, text="renamed")


def test_amend() -> None:
    journal, heard = filled(3, 5), list[int]()
    journal.listen(lambda: heard.append(journal.last))
    assert journal.amend(4, renamed)
    assert [(each.sequence, each.text) for each in journal.since(0)[1]] == [
        (3, ""),
        (4, "renamed"),
        (5, ""),
    ]
    assert not journal.amend(4, lambda _: None)
    for number in (0, 1, 2, 6, 7):
        assert not journal.amend(number, renamed), "it is forgotten, or never was"
    assert (journal.last, heard) == (5, [])
    journal.remember(0)
    assert not journal.amend(5, renamed)


def test_amend_what_is_forgotten_meanwhile() -> None:
    """A finalizer adds one where the new one is made."""
    journal = filled(1, 1)

    def change(entry: Entry) -> Entry:
        add(journal, "later")
        return renamed(entry)

    assert journal.amend(1, change)
    assert [each.text for each in journal.since(0)[1]] == ["later"]


# -- finalizers ------------------------------------------------------------------------------------


class Ending:
    """Adds one wherever it is collected."""

    def __init__(self, end: Callable[[], object]) -> None:
        self._end = end
        self._self = self  # so that only the collector finds it

    def __del__(self) -> None:
        self._end()


@pytest.mark.parametrize("remembered", [0, 1, 2, 9])
def test_a_finalizer_adds_one_while_one_is_made(remembered: int) -> None:
    journal: Journal[Entry] = Journal(remembered)

    def make(sequence: int, when: float) -> Entry:
        Ending(lambda: add(journal, "finalizer"))
        gc.collect()
        return Entry(sequence, when, "made")

    for number in itertools.count(1):
        assert journal.add(make) == 2 * number - 1
        if number == 6:
            break
    missed, found = journal.since(0)
    kept = min(remembered, 12)
    assert (journal.last, missed) == (12, 12 - kept)
    assert [each.sequence for each in found] == list(range(13 - kept, 13)), "in their order"
    assert {each.text for each in found if not each.sequence % 2} <= {"finalizer"}
