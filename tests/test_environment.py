"""What tests find around them is theirs: whatever the user has set, and whoever else runs."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from .support.environment import RUN
from .support.processes import line, run, started

pytestmark = pytest.mark.integration

SHOWS = "import os, tempfile, tests; print(tempfile.gettempdir(), *sorted(os.environ), flush=True)"
SET = {
    "XOSCAR_IDLE_TIMEOUT": "5",
    "XOSCAR_SUPERVISE": "observe",
    "XOSCAR_SUPERVISE_DIR": "/var/crash",
    "XOSCAR_IDLE_MONITOR": "1",
    "XDG_RUNTIME_DIR": "/run",
}


def without_run(**variables: str) -> dict[str, str]:
    """The environment of a user who starts the tests."""
    kept = {name: value for name, value in os.environ.items() if name != RUN}
    return kept | SET | variables


def test_a_run_forgets_what_its_user_has_set_and_takes_its_files_with_it(tmp_path: Path) -> None:
    env = without_run(TMPDIR=str(tmp_path), PYTEST_XDIST_WORKER="")
    directory, *names = run(sys.executable, "-c", SHOWS, env=env).stdout.split()
    assert Path(directory).parent == tmp_path
    assert not SET.keys() & set(names)
    assert not list(tmp_path.iterdir())


def test_its_children_are_given_what_they_are_to_have(tmp_path: Path) -> None:
    env = without_run(TMPDIR=str(tmp_path), **{RUN: str(tmp_path), "PYTEST_XDIST_WORKER": ""})
    with started(sys.executable, "-c", f"{SHOWS}; input()", env=env) as killed:
        directory, *names = line(killed).split()
    assert directory == str(tmp_path)
    assert SET.keys() <= set(names)
    assert not list(tmp_path.iterdir())


def test_each_worker_has_a_part_of_the_directory(tmp_path: Path) -> None:
    for worker in ("gw0", "gw1"):
        env = without_run(**{RUN: str(tmp_path), "PYTEST_XDIST_WORKER": worker})
        directory = run(sys.executable, "-c", SHOWS, env=env).stdout.split()[0]
        assert directory == str(tmp_path / worker)
        # Its children share it.
        env[RUN] = env["TMPDIR"] = directory
        assert run(sys.executable, "-c", SHOWS, env=env).stdout.split()[0] == directory
