"""The supported combinations, for ``make compat``.

A Python that is not there is skipped; those on the path are found, and those of pyenv.
"""

from __future__ import annotations

import os
from pathlib import Path

import nox

PYTHONS = ["3.10", "3.11", "3.12", "3.13", "3.14"]
XOSCARS = ["0.11.0", "0.11.2", "0.12.0", "0.12.*"]

# What depends on the interpreter or on xoscar; the loops are asyncio and uvloop within the tests.
TESTS = [
    "tests/connection/test_accepted.py",
    "tests/test_activation.py",
    "tests/whole/test_places.py",
    "tests/connection/test_caller.py",
    "tests/whole/test_churn.py",
    "tests/connection/test_deadlines.py",
    "tests/connection/test_fork.py",
    "tests/test_imports.py",
    "tests/connection/test_limits.py",
    "tests/connection/test_loops.py",
    "tests/whole/test_mixed.py",
    "tests/whole/test_pools.py",
    "tests/whole/test_settings_table.py",
    "tests/whole/test_silent_peers.py",
    "tests/connection/test_preexisting.py",
    "tests/connection/test_transfer.py",
]

nox.options.error_on_missing_interpreters = False

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
