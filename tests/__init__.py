"""Tests of xoscar_idle."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile

# The unix sockets of pools, which xoscar would put into the home directory: those of this run
# alone, gone with it.
if "XOSCAR_IDLE_TESTS" not in os.environ:
    os.environ["XOSCAR_IDLE_TESTS"] = os.environ["XOSCAR_DIR"] = tempfile.mkdtemp(
        prefix="xoscar-idle-"
    )
    _owner = os.getpid()
    atexit.register(
        lambda: (
            os.getpid() == _owner and shutil.rmtree(os.environ["XOSCAR_DIR"], ignore_errors=True)
        )
    )


def environment(**settings: str) -> dict[str, str]:
    """The environment for a process with these settings of xoscar and of ours, and no other."""
    kept = ("XOSCAR_DIR", "XOSCAR_IDLE_TESTS")
    inherited = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith("XOSCAR_") or key in kept
    }
    return inherited | settings
