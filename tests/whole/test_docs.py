"""The documentation names what there is."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from xoscar_idle import config

from ..support.processes import ROOT

PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])


def anchors(page: Path) -> set[str]:
    """The anchors that the headings of a page have on GitHub."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_each_setting_has_a_row_with_its_default() -> None:
    page = (ROOT / "docs/settings.md").read_text()
    rows = dict(re.findall(r"^\| `(XOSCAR_\w+)` \| ([^|]*) \|", page, re.MULTILINE))
    settings = {config.variable(f.name): f for f in dataclasses.fields(config.Settings)}
    assert sorted(rows) == sorted(settings)
    for variable, setting in settings.items():
        told = setting.metadata["told"].removesuffix(".0")
        cell = rows[variable].replace("`", "")
        assert re.search(rf"(?<!\w){re.escape(told)}(?!\w)", cell), f"{variable}: {told}"


def test_the_readme_has_its_figures_from_the_report() -> None:
    readme = (ROOT / "README.md").read_text()
    report = (ROOT / "benchmarks/results/report.md").read_text()
    (table,) = re.findall(r"^\|---\|---\|---\|\n((?:\|.*\n)+)", readme, re.MULTILINE)
    figures = re.findall(r"\d[\d.,]*\d", table)
    assert len(figures) > 10
    for figure in figures:
        assert re.search(rf"(?<![\d.,]){re.escape(figure)}(?![\d.,]*\d)", report), figure


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\((?!https?:)([^)]+)\)", page.read_text()):
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link
