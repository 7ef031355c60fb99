"""The supported combinations, for ``make compat``.

A Python that is not there is skipped; those of pyenv are found.
"""

from __future__ import annotations

import os
from pathlib import Path

import nox

PYTHONS = ["3.10", "3.11", "3.12", "3.13", "3.14"]
XOSCARS = ["0.11.0", "0.11.2", "0.12.0", "0.12.*"]

# What depends on the interpreter or on xoscar; the loops are asyncio and uvloop within the tests.
TESTS = [
    "tests/test_accepted.py",
    "tests/test_activation.py",
    "tests/test_places.py",
    "tests/test_caller.py",
    "tests/test_churn.py",
    "tests/test_deadlines.py",
    "tests/test_fork.py",
    "tests/test_imports.py",
    "tests/test_limits.py",
    "tests/test_loops.py",
    "tests/test_mixed.py",
    "tests/test_pools.py",
    "tests/test_settings_table.py",
    "tests/test_silent_peers.py",
    "tests/test_stock.py",
    "tests/test_transfer.py",
]

nox.options.error_on_missing_interpreters = False
nox.options.default_venv_backend = "venv"

pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
os.environ["PATH"] = os.pathsep.join(
    [os.environ["PATH"], *(str(version / "bin") for version in sorted(pyenv.glob("3.*")))]
)


@nox.session(python=PYTHONS)
@nox.parametrize("xoscar", XOSCARS)
def tests(session: nox.Session, xoscar: str) -> None:
    """The tests that depend on the combination."""
    session.install("--quiet", "--editable", ".[test]", f"xoscar=={xoscar}")
    session.run("python", "-m", "pytest", "-q", *(session.posargs or TESTS))
