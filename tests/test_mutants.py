"""The seeded faults fit the code; ``make mutants`` sees whether the tests find them."""

from __future__ import annotations

import pytest

from .mutants import MUTANTS, ROOT


@pytest.mark.parametrize("name", MUTANTS)
def test_each_edit_has_one_place_and_leaves_python(name: str) -> None:
    sources: dict[str, str] = {}
    for edit in MUTANTS[name]:
        source = sources.get(edit.file) or (ROOT / "xoscar_idle" / edit.file).read_text()
        assert source.count(edit.old) == 1, edit
        sources[edit.file] = source.replace(edit.old, edit.new)
    for file, source in sources.items():
        compile(source, file, "exec")
