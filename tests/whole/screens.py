"""Writes docs/screens.md: what commands show of a fleet of which more than half is not well.

``python -m tests.whole.screens``, as root; it takes some minutes.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass

from ..support.fleets import (
    BLOCKED,
    FOREIGN,
    GONE,
    INACTIVE,
    POOLS,
    ROLES,
    STOPPED,
    Fleet,
    fleet,
    unavailable,
)
from ..support.processes import ROOT

PAGE = ROOT / "docs/screens.md"

NARROW, WIDE = 80, 160

ALL = "@fleet.txt"


@dataclass(frozen=True)
class Shown:
    """A command, with the PIDs of processes by their names, and what there is to see."""

    command: str
    sees: str
    widths: tuple[int, ...] = (NARROW,)


SCREENS = {
    "top": [
        Shown(
            f"top --once {ALL}",
            "Each process is a row, be it well or not, with its connections below and, at the end, "
            "what is to be said of those that are not: `bob` has told over its local socket, and "
            "`cyd` is seen from outside. Without `--once` it is the same, live.",
            (NARROW, WIDE),
        ),
        Shown(
            f"top --once --view connections --filter active {ALL}",
            "Two calls are under way, both from `eve`: one trains a model at `ada`, the other is "
            "what blocks `bob`.",
            (NARROW, WIDE),
        ),
        Shown(
            "top --once --view peers --sort calls '10.201.[1-2].2:9[1-2]00'",
            "Whom four processes, named by a range, are connected to, added up by address, the one "
            "with most calls first.",
            (NARROW, WIDE),
        ),
        Shown(
            "top --once --view accepted {ada} {bob} {eve} {fay}",
            "The other side: who has connected to them. Over TCP it has the port of the moment, "
            "behind which are those that are looked at, too.",
            (NARROW, WIDE),
        ),
        Shown(
            "top --once",
            "With nobody named, those of the own user that offer a monitor. `hal` offers none, "
            "since it is not active; `dan` is another user's.",
        ),
    ],
    "stats": [
        Shown(
            f"stats --by-peer {ALL}",
            "What all together hold to whom, and below it whose part is not in it.",
            (NARROW, WIDE),
        ),
        Shown(
            f"stats {ALL}",
            "All that there is to know of each process: what it has opened and closed, and why, "
            "calls, accepted connections (those of who looks are among them), settings that were "
            "given.",
        ),
        Shown(
            "stats 10.201.1.2:9200 10.201.1.2:9300",
            "The two that are blocked: what runs there is in the way of its event loop, or of all.",
            (WIDE,),
        ),
    ],
    "doctor": [
        Shown(
            f"doctor {ALL}",
            "Who closes idle connections at all: `hal` was started without `XOSCAR_IDLE_TIMEOUT`.",
        ),
    ],
    "ping": [
        Shown(
            "ping --timeout 2 '10.201.[1-2].2:9[1-4]00'",
            "A sign of life from eight addresses at once, each as it comes: `dan` and `hal` give "
            "one, too, and the exit status is that of a probe that has failed.",
        ),
    ],
    "calls": [
        Shown(
            "calls {ada} {bob} {eve}",
            "What is under way, from both sides, and what blocks `bob`.",
            (WIDE,),  # its paths whole, so that they can be told as others
        ),
    ],
    "events": [
        Shown(
            "events --last 12 {ada} {eve}",
            "What happened last to the connections of two processes: `gus` was killed.",
        ),
    ],
    "configure": [
        Shown(
            "configure {ada} {bob} {cyd} idle_timeout=1200",
            "A setting changes while they run, also in `bob`, which is blocked; `cyd`, which is "
            "stopped, cannot be asked.",
        ),
    ],
    "close": [
        Shown(
            "close {ada} {eve} '10.201.1.2:9?00'",
            "What is idle is closed at once; what is in use, by `eve`, once its call has ended.",
        ),
    ],
}
"""By command, in this order: the last ones change what is to be seen. One that is not there is
passed over."""

FATES = {
    BLOCKED: "one of its methods blocks its event loop",
    STOPPED: "stopped by a signal",
    GONE: "killed",
    INACTIVE: "started without xoscar-idle",
    FOREIGN: "runs as another user, `nobody`",
}


def page(shown: Fleet) -> str:
    """All of it."""
    return "\n".join([*_head(shown), *_sections(shown)])


def _head(shown: Fleet) -> Iterator[str]:
    members = shown.members.values()
    yield "# Screens\n"
    yield _prose(
        "This page is written by `python -m tests.whole.screens`, which starts what is seen here "
        "and runs the commands.",
    )
    yield _prose(
        f"{len(members) * len(POOLS)} main pools run in {len(members)} processes on two nodes, "
        f"{len(POOLS)} in each process, each with a label and an actor. They have called each "
        f"other, and then something has become of five of the processes.",
    )
    yield "| process | node | addresses | |\n|---|---|---|---|"
    for one in members:
        node, _ = ROLES[one.name]
        span = re.sub(r"0$", "[0-4]", one.addresses[0])
        yield f"| `{one.name}` | `{node}` | `{span}` | {FATES.get(one.role, 'well')} |"
    yield ""
    yield _prose(
        "The operator looks from node `a`, and names each process in a file, by one of its "
        "addresses, but `dan` by its PID:",
    )
    yield f"{_block(f'$ cat {ALL[1:]}', (shown.directory / ALL[1:]).read_text())}\n"
    yield _prose(
        "Behind each screen is its exit status. What the columns are: `xoscar-idle top --help`.",
    )


def _sections(shown: Fleet) -> Iterator[str]:
    for command, screens in SCREENS.items():
        if not screens or shown.run(command, "--help").returncode:
            continue
        yield f"## {command}\n"
        for each in screens:
            yield _prose(each.sees)
            for width in each.widths:
                yield f"{_screen(shown, each.command, width)}\n"


def _screen(shown: Fleet, command: str, width: int) -> str:
    pids = {name: one.pid for name, one in shown.members.items()}
    line = command.format(**pids)
    done = shown.run(
        *shlex.split(line),
        columns=width,
        cwd=shown.directory,
        stderr=subprocess.STDOUT,  # as on a terminal
    )
    assert done.returncode != 2, done.stdout  # it wants to be asked in another way
    text = done.stdout
    for path, name in (
        (shown.monitor, "/run/pools"),
        (sys.prefix, "/opt/venv"),
        (sys.base_prefix, "/usr"),
        (ROOT, "/srv"),
    ):
        text = text.replace(f"{path}", name)
    assert f"{shown.directory}" not in text
    block = _block(f"$ xoscar-idle {line}", text, f"$ echo $?\n{done.returncode}")
    return f"{width} columns:\n\n{block}"


def _prose(text: str) -> str:
    return f"{textwrap.fill(text, 120, break_on_hyphens=False)}\n"


def _block(*texts: str) -> str:
    return "\n".join(["```text", *(each.rstrip() for each in texts), "```"])


def main() -> None:
    """Write the page."""
    if reason := unavailable():
        sys.exit(f"no fleet: {reason}")
    with fleet() as shown:
        (shown.directory / ALL[1:]).write_text(
            "".join(
                f"{one.pid}\n" if one.role == FOREIGN else f"{one.addresses[0]}\n"
                for one in shown.members.values()
            )
        )
        PAGE.write_text(page(shown), encoding="utf-8")


if __name__ == "__main__":
    main()
