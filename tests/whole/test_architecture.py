"""The pages on architecture say what holds."""

from __future__ import annotations

import itertools
import re
from collections import Counter

import grimp
import pytest

from ..support.processes import ROOT

PACKAGE = ROOT / "xoscar_idle"
DOCS = ROOT / "docs/architecture"

SHAPE = ["Modules", "Places", "The walk of", "States", "Invariants"]
"""The headings of each page, in their order; not every package replaces something."""

GROUND = {path.stem for path in PACKAGE.glob("*.py")} - {
    *("__init__", "__main__", "activation", "changes", "metrics", "startup")
}
ACTIVATION = {"activation", "changes"}
OUTSIDE = {"__main__", "commands", "metrics", "startup"}

PAGES = {
    "ground": {f"{name}.py" for name in GROUND},
    "activation": {path.name for path in PACKAGE.glob("*.py") if path.stem not in GROUND},
    **{
        name: {
            f"{path.name}/" if path.is_dir() else path.name
            for path in (PACKAGE / name).iterdir()
            if path.name not in ("__init__.py", "__pycache__")
        }
        for name in ("connection", "supervision", "telemetry", "http", "commands")
    },
}
"""What each page tells of."""


def section(page: str, heading: str) -> str:
    found = re.search(rf"^## {heading}.*?\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL)
    return found[1] if found else ""


@pytest.mark.parametrize("name", PAGES)
def test_a_page_tells_of_each_module(name: str) -> None:
    page = (DOCS / f"{name}.md").read_text()
    rows = re.findall(r"^\| (`[^|]*`) \|", section(page, "Modules"), re.MULTILINE)
    told = [each for row in rows for each in re.findall(r"`([^`]+)`", row)]
    there = {each for each in PAGES[name] if each.endswith(("/", ".py"))}
    assert Counter(each for each in told if each != "xoscar_idle.pth") == Counter(there)


@pytest.mark.parametrize("name", PAGES)
def test_the_pages_are_of_one_shape(name: str) -> None:
    headings = re.findall(r"^## (.*)", (DOCS / f"{name}.md").read_text(), re.MULTILINE)
    at = [next((i for i, h in enumerate(headings) if h.startswith(each)), None) for each in SHAPE]
    there = [place for place in at if place is not None]
    assert there == sorted(there)
    assert [each for each, place in zip(SHAPE, at, strict=True) if place is None] in (
        [],
        ["Places"],
    )


def test_the_picture_has_the_arrows_that_there_are() -> None:
    page = (ROOT / "docs/architecture.md").read_text()
    picture = re.search(r"```mermaid\n(.*?)```", page, re.DOTALL)
    assert picture is not None
    drawn: set[tuple[str, str]] = set()
    for line in picture[1].splitlines():
        ends = line.strip().split(" --> ")
        drawn.update(itertools.pairwise(ends))

    def box(module: str) -> str:
        name = module.split(".")[1]
        boxes = {"ground": GROUND, "activation": ACTIVATION, "outside": OUTSIDE}
        return next((box for box, names in boxes.items() if name in names), name)

    graph = grimp.build_graph("xoscar_idle", exclude_type_checking_imports=True, cache_dir=None)
    there = {
        (box(importer), box(imported))
        for importer in graph.modules
        for imported in graph.find_modules_directly_imported_by(importer)
        if "." in importer and "." in imported
    }
    assert drawn == {(a, b) for a, b in there if a != b}
