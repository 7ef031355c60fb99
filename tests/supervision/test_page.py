"""The memory in which a sub-pool tells what it does: nothing written there harms a reader."""

from __future__ import annotations

import dataclasses
import os
import random
from collections.abc import Iterator
from typing import Any

import pytest

from xoscar_idle.supervision import page as pages
from xoscar_idle.supervision.page import SIZE, SLOTS, VARIABLE, Page, Request, Told

pytestmark = pytest.mark.integration  # descriptors are counted


@pytest.fixture
def page() -> Iterator[Page]:
    made = Page.create()
    yield made
    made.close()


@pytest.fixture
def reader(page: Page) -> Iterator[Page]:
    """The same memory, as another process has it."""
    found = given(page)
    yield found
    found.close()


def given(page: Page) -> Page:
    _, device, inode = page.variable().split(":")
    found = Page.given({VARIABLE: f"{os.dup(page.descriptor)}:{device}:{inode}"})
    assert found is not None
    return found


def read(page: Page) -> tuple[Any, ...]:
    """All that can be read."""
    return (
        *(page.writer(), page.told(), page.fault(), page.doing()),
        *(page.requests(), page.stacks(), page.stacks_end()),
    )


def test_what_is_told_is_read(page: Page, reader: Page) -> None:
    assert read(reader) == (None, Told(), "", "", [], "", SIZE)
    told = Told(*range(1, 1 + len(dataclasses.fields(Told))))
    for name, value in vars(told).items():
        page.tell(**{name: value})
    assert reader.told() == told
    page.claim()
    page.tell_fault("CUDA error: lost")
    page.tell_doing('File "model.py", line 7')
    assert (reader.writer(), reader.fault()) == (os.getpid(), "CUDA error: lost")
    assert reader.doing() == 'File "model.py", line 7'
    assert reader.told() == told, "each has its place"


def test_parts_do_not_overlap(page: Page) -> None:
    """The longest text of each leaves the others as they are."""
    page.claim()
    page.tell(**vars(Told(*[2**31] * len(dataclasses.fields(Told)))))
    slots = [page.begin(float(i + 1), b"a" * 100, "m" * 100) for i in range(SLOTS)]
    before = page.told(), page.requests()
    page.tell_fault("f" * 10_000)
    page.tell_doing("d" * 100_000)
    assert (page.told(), page.requests()) == before
    assert page.writer() == os.getpid()
    assert set(page.fault()) == {"f"}
    assert set(page.doing()) == {"d"}
    assert len(page.fault()) < 1024 < len(page.doing()) < 20_000
    assert len(set(slots)) == SLOTS
    assert page.stacks() == ""


def test_requests_are_those_in_process_the_oldest_first(page: Page, reader: Page) -> None:
    slots = [page.begin(since, b"model", f"m{since:.0f}") for since in (3.0, 1.0, 2.0)]
    assert [each.method for each in reader.requests()] == ["m1", "m2", "m3"]
    assert reader.requests()[0] == Request(1.0, "model", "m1")
    page.end(4.0, slots[1])
    assert [each.method for each in reader.requests()] == ["m2", "m3"]
    assert (reader.told().in_process, reader.told().begun) == (2, 3)
    assert reader.told().progress == 4.0
    page.begin(5.0, b"", "")
    assert reader.requests()[-1] == Request(5.0, "", "")


def test_more_requests_than_there_is_room_for_are_counted_all_the_same(page: Page) -> None:
    slots = [page.begin(1.0, b"model", "chat") for _ in range(3 * SLOTS)]
    assert (page.told().in_process, len(page.requests())) == (3 * SLOTS, SLOTS)
    random.Random(1).shuffle(slots)
    for slot in slots:
        page.end(2.0, slot)
    assert (page.told().in_process, page.told().begun) == (0, 3 * SLOTS)
    assert page.requests() == []
    assert sorted(page.begin(1.0, b"", "") for _ in range(SLOTS)) == list(range(SLOTS))


@pytest.mark.parametrize(
    ("actor", "method", "told"),
    [
        (b"model-" + b"x" * 200, "chat", ("model-" + "x" * 54, "chat")),
        (b"model", "m" * 200, ("model", "m" * 58)),
        ("модель".encode(), "größe", ("модель", "größe")),
        (b"\xff\xfe", "chat", ("fffe", "chat")),
        (b"\xff\0" * 16, "chat", ("ff00" * 4, "chat")),
        (b"a\0b", "chat", ("a", "b\\x00chat")),
        (b"a\x1b[31m", "two\nlines", ("a\\x1b[31m", "two\\nlines")),
        (b"model", "\ud800", ("model", "?")),
    ],
)
def test_names_of_any_kind(page: Page, actor: bytes, method: str, told: tuple[str, str]) -> None:
    slot = page.begin(1.0, actor, method)
    assert page.requests() == [Request(1.0, *told)]
    page.end(2.0, slot)
    assert page.told().in_process == 0


def test_a_long_name_in_many_bytes_is_cut_between_none(page: Page) -> None:
    page.begin(1.0, "я".encode() * 100, "я" * 100)
    (request,) = page.requests()
    assert set(request.actor + request.method) <= {"я", "\ufffd"}
    page.tell_fault("я" * 1000)
    assert set(page.fault()) <= {"я", "\ufffd"}
    page.tell_fault("short \ud800")
    assert page.fault() == "short ?"


@pytest.mark.parametrize("seed", range(20))
def test_garbage_is_read_as_something(page: Page, seed: int) -> None:
    garbage = random.Random(seed).randbytes(SIZE)
    page._map[:] = garbage
    writer, told, *_ = read(page)
    assert writer is None
    assert isinstance(told, Told)
    page._map[:] = b"\xff" * SIZE
    read(page)


@pytest.mark.parametrize(
    "variable",
    ["", "1", "1:2:3", "a:b:c", "-1:2:3", "999999:1:1", "1:2:3:4", "::", f"{2**70}:1:1", "3.0:1:1"],
)
def test_a_variable_that_names_none(variable: str) -> None:
    assert Page.given({VARIABLE: variable}) is None
    assert Page.given({}) is None


def test_a_variable_that_is_not_for_this_process(page: Page) -> None:
    """Another file has the number: it is neither written to nor kept from children."""
    _, device, inode = page.variable().split(":")
    foreign, end = os.pipe()
    os.set_inheritable(foreign, True)
    try:
        assert Page.given({VARIABLE: f"{foreign}:{device}:{inode}"}) is None
        assert os.get_inheritable(foreign)
    finally:
        os.close(foreign)
        os.close(end)


def test_that_of_a_process_is_found_among_its_descriptors(page: Page) -> None:
    page.claim()
    found = Page.of_process(os.getpid())
    assert found is not None
    assert found.writer() == os.getpid()
    found.close()
    assert Page.of_process(2**31 - 1) is None


def test_what_a_killed_writer_told_stays(page: Page) -> None:
    if not (child := os.fork()):
        page.claim()
        page.begin(1.0, b"model", "chat")
        os.kill(os.getpid(), 9)
    os.waitpid(child, 0)
    assert page.writer() == child
    assert page.requests() == [Request(1.0, "model", "chat")]


def test_a_reader_at_the_same_time_sees_what_was_true(page: Page, reader: Page) -> None:
    """A process writes as fast as it can: each request that is read is one that there was."""
    if not (child := os.fork()):
        while True:
            slots = [page.begin(float(i + 1), b"actor", f"m{i + 1}") for i in range(50)]
            page.tell_doing("x" * 5000)
            for slot in slots:
                page.end(1.0, slot)
            page.tell_doing("")
    try:
        seen: set[str] = set()
        for _ in range(3000):
            seen |= {each.method for each in reader.requests()}
            assert reader.told().in_process <= 50
            assert set(reader.doing()) <= {"x"}
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)
    # One that is being written may have the length of what stood there before.
    told = {method.partition("\\x00")[0] for method in seen}
    assert told <= {"", *(f"m{i + 1}" for i in range(50))}


def test_it_goes_with_its_last_reference() -> None:
    """The side thread may look at a process whose death another thread tells just then."""
    one = Page.create()
    other, descriptor = one, one.descriptor
    del one
    read(other)
    del other
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


def test_stacks_are_what_was_written_behind_it(page: Page, reader: Page) -> None:
    os.write(page.descriptor, b"Fatal Python error: first\n")
    begin = reader.stacks_end()
    os.write(page.descriptor, b"second \xff\n")
    assert reader.stacks() == "Fatal Python error: first\nsecond \ufffd\n"
    assert reader.stacks(begin) == "second \ufffd\n"
    assert reader.stacks(10**9) == ""


def test_stacks_take_no_more_memory_than_they_are_read(page: Page, reader: Page) -> None:
    os.write(page.descriptor, b"x" * pages.LONGEST_STACKS)
    page.drop_stacks()
    assert len(reader.stacks()) == pages.LONGEST_STACKS
    os.write(page.descriptor, b"x")
    page.drop_stacks()
    os.write(page.descriptor, b"newest")
    assert reader.stacks() == "newest", "whoever writes goes on where the end is now"


def test_in_a_forked_child_nothing_is_written_to_it_any_more(page: Page) -> None:
    """The interpreter's handlers still have the number of its descriptor."""
    if not (child := os.fork()):
        try:
            page.disown()
            os.write(page.descriptor, b"of the child")
            os._exit(0 if os.fstat(page.descriptor).st_rdev == os.stat(os.devnull).st_rdev else 1)
        finally:
            os._exit(2)
    assert os.waitpid(child, 0)[1] == 0
    assert page.stacks() == ""


def test_of_many_stacks_the_newest_are_read(page: Page) -> None:
    os.write(page.descriptor, b"old" * pages.LONGEST_STACKS + b"newest")
    stacks = page.stacks()
    assert len(stacks) == pages.LONGEST_STACKS
    assert stacks.endswith("newest")


@pytest.mark.parametrize("missing", ["memory", "descriptors"])
def test_where_there_is_none_nothing_is_left(monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "ftruncate" if missing == "memory" else "memfd_create", fail)
    with pytest.raises(OSError, match="No space"):
        Page.create()


def test_without_memfd(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that has no name any more."""
    monkeypatch.delattr(os, "memfd_create")
    made = Page.create()
    try:
        made.claim()
        found = given(made)
        assert found.writer() == os.getpid()
        assert "(deleted)" in os.readlink(f"/proc/self/fd/{found.descriptor}")
        found.close()
    finally:
        made.close()
