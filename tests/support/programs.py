"""Programs that tests need: without them these are skipped, but where all have to run."""

from __future__ import annotations

import os
import shutil
from typing import NoReturn

import pytest


def program(package: str, *names: str) -> str:
    """The path of a program that Debian has in that package, by one of its names."""
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None:
        missing(f"there is no {names[0]}: install Debian's package {package}")
    return found


def missing(reason: str) -> NoReturn:
    """What a test needs is not there: it is skipped, and fails in continuous integration."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"continuous integration must run this: {reason}")
    pytest.skip(reason)
