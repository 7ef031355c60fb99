"""Comparing, and writing down what came out: JSON, Markdown and plots in ``results/``."""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

import xoscar_idle

RESULTS = Path(__file__).parent / "results"
STOCK, OURS = "stock", "ours"
COLOURS = {STOCK: "#c2610c", OURS: "#2274e6"}
"""On the front page."""


@dataclass(frozen=True)
class Ratio:
    """A ratio of paired measurements: the median of the pairs' ratios, and their quartiles."""

    median: float
    low: float
    high: float
    pairs: int

    @classmethod
    def of(cls, numerators: Sequence[float], denominators: Sequence[float]) -> Ratio:
        ratios = [a / b for a, b in zip(numerators, denominators, strict=True)]
        if len(ratios) == 1:
            return cls(ratios[0], ratios[0], ratios[0], 1)
        low, median, high = statistics.quantiles(ratios, n=4, method="inclusive")
        return cls(median, low, high, len(ratios))

    @property
    def spread(self) -> str:
        return f"({self.low:.3f} to {self.high:.3f})"

    def __str__(self) -> str:
        return f"{self.median:.3f} {self.spread}"


@dataclass
class Table:
    """Rows of a report; what is no text is formatted when it is written."""

    title: str
    columns: Sequence[str]
    rows: list[Sequence[Any]] = field(default_factory=list)


@dataclass
class Reach:
    """A goal of the project, and the figure that was measured."""

    goal: str
    figure: float
    limit: float
    spread: str = ""

    @property
    def met(self) -> bool:
        return self.figure <= self.limit


@dataclass
class Result:
    """What one scenario found."""

    scenario: str
    title: str
    setting: str
    """What ran and how, so that a reader can judge whether it is fair."""
    tables: list[Table] = field(default_factory=list)
    reaches: list[Reach] = field(default_factory=list)
    plots: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    data: dict[str, Any] = field(default_factory=dict)
    """The measurements that the tables were made of."""

    def table(self, title: str, *columns: str) -> Table:
        made = Table(title, columns)
        self.tables.append(made)
        return made


def interleave(
    sides: Mapping[str, Callable[[], float]], rounds: int, warm_up: int = 1
) -> dict[str, list[float]]:
    """Measure all sides in turn, ``rounds`` times; the first rounds are not counted."""
    measured: dict[str, list[float]] = {side: [] for side in sides}
    for number in range(warm_up + rounds):
        for side, measure in sides.items():
            value = measure()
            if number >= warm_up:
                measured[side].append(value)
    return measured


def percentile(values: Iterable[float], percent: float) -> float:
    """The smallest value that is not exceeded by so many percent of the values."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


_started = time.monotonic()


def progress(text: str) -> None:
    """Tell whoever waits what is being done."""
    print(f"{time.monotonic() - _started:6.1f} s  {text}", file=sys.stderr, flush=True)


def plot(
    name: str, draw: Callable[[Any], None], size: tuple[float, float] = (9, 5), front: bool = False
) -> str:
    """Let ``draw(figure)`` draw, and save it; the name of its file.

    What is for the ``front`` page is an SVG on no background, in greys and colours that can be read
    on white and on black: which of them a page has, the picture cannot know.
    """
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.{'svg' if front else 'png'}"
    with matplotlib.rc_context(_front_style(name) if front else {}):
        figure = pyplot.figure(figsize=size, layout="constrained")
        draw(figure)
        metadata = dict.fromkeys(("Creator", "Date", "Format", "Type")) if front else {}
        figure.savefig(path, dpi=100, transparent=front, metadata=metadata)
        pyplot.close(figure)
    return path.name


def _front_style(name: str) -> dict[str, Any]:
    grey = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color")
    return {
        **dict.fromkeys(grey, "#727a86"),
        "axes.prop_cycle": f"cycler('color', {[COLOURS[STOCK], COLOURS[OURS]]})",
        "axes.spines.right": False,
        "axes.spines.top": False,
        "font.size": 14,
        "lines.linewidth": 2.5,
        "svg.fonttype": "none",  # text that is text: small, and read aloud
        "svg.hashsalt": name,  # the same picture is the same file
    }


def _brief(value: Any) -> Any:
    """The same with no more digits than have a meaning."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {str(key): _brief(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_brief(each) for each in value]
    return value


def publish(result: Result) -> None:
    """Write the result, and the report of all results that there are."""
    RESULTS.mkdir(exist_ok=True)
    document = asdict(result) | {"machine": _machine()}
    for reach, written in zip(result.reaches, document["reaches"], strict=True):
        written["met"] = reach.met
    parts = [f"{json.dumps(key)}: {json.dumps(_brief(value))}" for key, value in document.items()]
    text = "{\n" + ",\n".join(parts) + "\n}\n"
    (RESULTS / f"{result.scenario}.json").write_text(text)
    for reach in result.reaches:
        progress(f"{result.scenario}: {reach.goal}: {_number(reach.figure)} {_verdict(reach.met)}")


def write_report(order: Sequence[str]) -> None:
    """Write ``report.md`` from the results of the scenarios, in this order."""
    paths = [RESULTS / f"{scenario}.json" for scenario in order]
    documents = [json.loads(path.read_text()) for path in paths if path.exists()]
    lines = ["# What xoscar-idle brings and what it costs", ""]
    lines += ["Written by `python -m benchmarks`; do not edit.", ""]
    lines += sorted({f"Machine: {each['machine']}" for each in documents})
    lines += ["", "A ratio is ours to stock's: the median of interleaved pairs and its quartiles."]
    lines += ["", "## Goals", "", "| scenario | goal | figure | limit | |", "|---|---|---|---|---|"]
    for each in documents:
        lines += [
            f"| {each['scenario']} | {reach['goal']} | {_number(reach['figure'])}"
            f"{' ' + reach['spread'] if reach['spread'] else ''} | {_number(reach['limit'])} "
            f"| {_verdict(reach['met'])} |"
            for reach in each["reaches"]
        ]
    for each in documents:
        lines += ["", f"## {each['title']}", "", each["setting"]]
        for table in each["tables"]:
            lines += ["", f"**{table['title']}**", ""]
            lines += [_row(table["columns"]), "|---" * len(table["columns"]) + "|"]
            lines += [_row(row) for row in table["rows"]]
        lines += [f"\n{note}" for note in each["notes"]]
        lines += [f"\n![{name}]({name})" for name in each["plots"]]
    (RESULTS / "report.md").write_text("\n".join(lines) + "\n")


def _row(cells: Sequence[Any]) -> str:
    return f"| {' | '.join(_number(cell) for cell in cells)} |"


def _number(cell: Any) -> str:
    if isinstance(cell, dict):  # a Ratio that has been through JSON
        return str(Ratio(**cell))
    if not isinstance(cell, float):
        return f"{cell:,}" if isinstance(cell, int) else str(cell)
    return f"{cell:,.0f}" if abs(cell) >= 1000 else f"{cell:.3g}"


def _verdict(met: bool) -> str:
    return "met" if met else "**falls short**"


def _machine() -> str:
    memory = psutil.virtual_memory().total / 2**30
    return (
        f"{os.cpu_count()} cores, {memory:.0f} GiB, {platform.system()} {platform.release()}, "
        f"Python {platform.python_version()}, xoscar {version('xoscar')}, "
        f"xoscar-idle {xoscar_idle.__version__}, {time.strftime('%Y-%m-%d', time.gmtime())}"
    )
