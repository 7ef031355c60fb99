"""What processes of tests find around them: nothing that the machine's user has set or left."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from pathlib import Path

from xoscar_idle.config import unset_everywhere

RUN = "TESTS_OF_XOSCAR_IDLE"
"""The variable that names the directory of this run; it tells children that there is one."""

FOREIGN = ("XOSCAR_", "PROMETHEUS_", "XDG_RUNTIME_DIR", "PYTHONDONTWRITEBYTECODE")
"""How variables begin that would change what is tested, or let each process compile all anew."""

ASKED = ("XOSCAR_IDLE_FUZZ", "XOSCAR_IDLE_NO_SHRINK", "XOSCAR_IDLE_TEST_CALLS")
"""What can be asked of the tests themselves."""


def isolate() -> None:
    """Give this run a directory of its own, gone with it, for all that it and its children leave.

    Temporary files are there, and the unix sockets of pools and the records of crashes, which would
    be in the home directory. Each worker of pytest-xdist has a part of it.
    """
    given, worker = os.environ.get(RUN), os.environ.get("PYTEST_XDIST_WORKER")
    if given is None:
        for name in [n for n in os.environ if n.startswith(FOREIGN) and n not in ASKED]:
            del os.environ[name]
        own = Path(tempfile.mkdtemp(prefix="xoscar-idle-"))
        atexit.register(_remove, own, os.getpid())
    elif worker and Path(given).name != worker:
        own = Path(given) / worker
        own.mkdir()
    else:
        return  # a child of the run
    for name in (RUN, "TMPDIR", "XOSCAR_DIR", "XDG_STATE_HOME"):
        os.environ[name] = str(own)
    tempfile.tempdir = None  # it may have been found already


def _remove(directory: Path, owner: int) -> None:
    if os.getpid() == owner:
        shutil.rmtree(directory, ignore_errors=True)


def environment(**settings: str) -> dict[str, str]:
    """The environment for a process with these settings of xoscar and of ours, and no other."""
    return unset_everywhere(os.environ) | {"XOSCAR_DIR": os.environ[RUN]} | settings
