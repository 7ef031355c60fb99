"""The seeded faults fit the code; ``make mutants`` sees whether the tests find them."""

from __future__ import annotations

import pytest

from .mutants import MUTANTS, ROOT


@pytest.mark.parametrize("name", MUTANTS)
def test_each_edit_has_one_place(name: str) -> None:
    for edit in MUTANTS[name]:
        assert (ROOT / "xoscar_idle" / edit.file).read_text().count(edit.old) == 1, edit
