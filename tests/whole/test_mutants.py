"""The seeded faults fit the code; ``make mutants`` sees whether the tests find them."""

from __future__ import annotations

import pytest

from .mutants import MUTANTS, mutated


@pytest.mark.parametrize("name", MUTANTS)
def test_each_edit_has_one_place_and_leaves_python(name: str) -> None:
    assert mutated(MUTANTS[name])
