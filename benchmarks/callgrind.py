"""Counting instructions: the steadiest measure of a piece of work.

What is counted is a module that runs under callgrind, ``python -m MODULE SIDE CALLS``, and calls
:func:`count` before and after its work.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path


def counted(module: str, sides: Iterable[str], calls: int) -> dict[str, dict[str, float]]:
    """What callgrind counts per call, for each side: instructions, and allocations.

    The latter are calls of Python's allocator, where its name is known.
    """

    def run(side: str) -> dict[str, float]:
        with tempfile.TemporaryDirectory() as directory:
            out = Path(directory, "out")
            tool = ["valgrind", "--tool=callgrind", "--instr-atstart=no", "--compress-strings=no"]
            subprocess.run(
                [
                    *(*tool, f"--callgrind-out-file={out}"),
                    *(sys.executable, "-m", module, side, f"{calls}"),
                ],
                env=os.environ | {"PYTHONHASHSEED": "0"},
                capture_output=True,
                check=True,
                timeout=200,
            )
            return {what: count / calls for what, count in _read(out.read_text()).items()}

    sides = list(sides)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return dict(zip(sides, pool.map(run, sides), strict=True))


def _read(profile: str) -> dict[str, int]:
    totals = re.search(r"^totals: (\d+)", profile, re.MULTILINE)
    assert totals is not None
    allocator = r"^cfn=_?Py(?:Object|Mem)_[MC]alloc\b.*\ncalls=(\d+)"
    return {
        "instructions": int(totals[1]),
        "allocations": sum(map(int, re.findall(allocator, profile, re.MULTILINE))),
    }


def count(switch: str) -> None:
    """Let callgrind, under which this process runs, count from now on, or no longer."""
    command = ["callgrind_control", f"--instr={switch}", f"{os.getpid()}"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
