"""Keys, and what they change about what is looked at: without a terminal."""

from __future__ import annotations

from functools import reduce

import pytest

from xoscar_idle.commands import keys
from xoscar_idle.commands.listings import VIEWS, headers
from xoscar_idle.commands.ordering import Sort
from xoscar_idle.commands.view import View


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("q", ["q"]),
        ("jk/", ["j", "k", "/"]),
        ("\x1b[A\x1bOB\x1b[6~", ["up", "down", "page down"]),
        ("\x1b", ["escape"]),
        ("\x1bx", ["escape", "x"]),
        ("\r\n\x7f\b", ["enter", "enter", "backspace", "backspace"]),
        ("é日", ["é", "日"]),
        ("\x1b[C\x01\x1b[99;5u\t", []),
        ("", []),
    ],
)
def test_keys_have_names(text: str, names: list[str]) -> None:
    assert keys.names(text) == names


def pressed(view: View, *keys: str) -> View:
    return reduce(View.press, keys, view)


def test_views_by_number_and_in_turn() -> None:
    names = list(VIEWS)
    assert [pressed(View(), each).name for each in "1234"] == names
    assert [pressed(View(), *"v" * n).name for n in range(5)] == [*names, names[0]]
    assert pressed(View(first=7), "3").first == 0
    assert pressed(View(), "5", "x", "0") == View()


def test_scrolling() -> None:
    view = View(first=10, room=5)
    assert [pressed(view, each).first for each in ("up", "k", "down", "j")] == [9, 9, 11, 11]
    assert [pressed(view, each).first for each in ("page up", "page down", " ")] == [5, 15, 15]
    assert pressed(view, "home") == pressed(view, "g") == View(first=0, room=5)
    assert pressed(view, "end") == pressed(view, "G")
    assert pressed(view, "end").first > 10**6
    assert pressed(View(), "up", "page up").first == 0


def test_leaving() -> None:
    assert pressed(View(), "q").left
    assert pressed(View(), "Q").left
    assert pressed(View(), "h", "q").left
    assert not pressed(View(), "/", "q").left


def test_the_keys_are_shown_until_one_is_pressed() -> None:
    for key in "h?":
        shown = pressed(View(), key)
        assert shown.help
        assert pressed(shown, "4") == View()


def test_the_column_to_sort_by_goes_round() -> None:
    columns = headers("peers")
    view = View("peers")
    for header in columns:
        view = pressed(view, ">")
        assert view.sort == Sort(header)
    assert pressed(view, ">").sort is None
    assert pressed(View("peers"), "<").sort == Sort(columns[-1])
    assert pressed(View("peers"), ">", "<").sort is None
    assert pressed(View("peers", Sort("FDS")), ">").sort == Sort(columns[0]), "of another view"


def test_sorting_the_other_way_round() -> None:
    assert pressed(View(), ">", "r").sort == Sort("PID", reversed=True)
    assert pressed(View(), ">", "r", "r").sort == Sort("PID")
    assert pressed(View(), "r").sort is None
    assert pressed(View(), ">", "r", ">").sort == Sort("PROCESS")


def test_what_is_typed_is_the_filter() -> None:
    view = pressed(View(first=3), "/", *"q1 é", "backspace", "<")
    assert (view.filter, view.typing, view.first) == ("q1 <", True, 0)
    kept = pressed(view, "enter")
    assert (kept.filter, kept.typing) == ("q1 <", False)
    assert pressed(kept, "/", "x").filter == "q1 <x", "one goes on with it"
    assert pressed(kept, "escape") == View()
    assert pressed(view, "escape") == View()
    assert pressed(view, "backspace", "backspace", "backspace", "backspace", "backspace").typing
    assert pressed(view, "down").first == 1
    assert pressed(view, "resume") == view
    assert pressed(View(), "resume", "enter", "backspace") == View()
