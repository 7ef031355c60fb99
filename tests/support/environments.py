"""Virtual environments that tests make."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

OURS = ("xoscar_idle*", "__editable__*xoscar_idle*")


def run(*command: str | Path, cwd: Path, timeout: str | None = None) -> str:
    """Run a command with XOSCAR_IDLE_TIMEOUT as given; its stdout."""
    env = {key: value for key, value in os.environ.items() if not key.startswith("XOSCAR_")}
    env.pop("PYTHONPATH", None)
    if timeout is not None:
        env["XOSCAR_IDLE_TIMEOUT"] = timeout
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


class Environment:
    """A virtual environment that borrows the dependencies of this one, but not xoscar_idle."""

    def __init__(self, path: Path) -> None:
        self.path = path
        venv.create(path, symlinks=True)
        self.python = path / "bin" / "python"
        purelib = "import sysconfig; print(sysconfig.get_path('purelib'))"
        self.site = Path(*self.run(purelib, timeout=None))
        borrowed = path.with_name("borrowed")
        borrowed.mkdir()
        for name in ("purelib", "platlib"):
            for entry in Path(sysconfig.get_path(name)).iterdir():
                link = borrowed / entry.name
                if not link.exists() and not any(entry.match(pattern) for pattern in OURS):
                    link.symlink_to(entry)
        # Python puts the folder on sys.path but does not act on the .pth files in it.
        (self.site / "borrowed.pth").write_text(f"{borrowed}\n")
        self.bare = self.files()

    def files(self) -> set[Path]:
        """Every file and folder of the environment."""
        return set(self.path.rglob("*"))

    def pip(self, *args: str | Path) -> None:
        """Run this environment's pip on that environment."""
        run(sys.executable, "-m", "pip", "--python", self.python, *args, cwd=self.path)

    def run(self, program: str, *, timeout: str | None) -> list[str]:
        """Run a program with XOSCAR_IDLE_TIMEOUT as given; the words that it prints."""
        return run(self.python, "-c", program, cwd=self.path, timeout=timeout).split()
