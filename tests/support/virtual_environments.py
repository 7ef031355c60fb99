"""Virtual environments that tests make."""

from __future__ import annotations

import sys
import sysconfig
import venv
from pathlib import Path

from . import processes
from .environment import environment

OURS = ("xoscar_idle*", "__editable__*xoscar_idle*")
BOUND = 250.0
"""Seconds for pip, which does much."""


def run(*command: str | Path, cwd: Path, timeout: str | None = None) -> str:
    """Run a command with XOSCAR_IDLE_TIMEOUT as given; its stdout."""
    env = environment() if timeout is None else environment(XOSCAR_IDLE_TIMEOUT=timeout)
    env.pop("PYTHONPATH", None)
    return processes.run(*command, cwd=cwd, env=env, timeout=BOUND).stdout


class Environment:
    """A virtual environment that borrows the dependencies of this one, but not xoscar_idle.

    ``borrow=False``: one that has none, and gets them from the index.
    """

    def __init__(self, path: Path, borrow: bool = True) -> None:
        self.path = path
        venv.create(path, symlinks=True)
        self.python = path / "bin" / "python"
        purelib = "import sysconfig; print(sysconfig.get_path('purelib'))"
        self.site = Path(*self.run(purelib, timeout=None))
        if borrow:
            self._borrow(path.with_name("borrowed"))
        self.bare = self.files()

    def _borrow(self, borrowed: Path) -> None:
        borrowed.mkdir()
        for name in ("purelib", "platlib"):
            for entry in Path(sysconfig.get_path(name)).iterdir():
                link = borrowed / entry.name
                if not link.exists() and not any(entry.match(pattern) for pattern in OURS):
                    link.symlink_to(entry)
        # Python puts the folder on sys.path but does not act on the .pth files in it.
        (self.site / "borrowed.pth").write_text(f"{borrowed}\n")

    def files(self) -> set[Path]:
        """Every file and folder of the environment."""
        return set(self.path.rglob("*"))

    def pip(self, *args: str | Path) -> None:
        """Run this environment's pip on that environment."""
        run(sys.executable, "-m", "pip", "--python", self.python, *args, cwd=self.path)

    def run(self, program: str, *, timeout: str | None) -> list[str]:
        """Run a program with XOSCAR_IDLE_TIMEOUT as given; the words that it prints."""
        return run(self.python, "-c", program, cwd=self.path, timeout=timeout).split()
