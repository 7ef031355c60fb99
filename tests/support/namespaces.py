"""Network namespaces, and what runs in them; nothing outside of them is touched.

They need root, and Debian's ``iproute2``.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .processes import run, started

NAMESPACES = Path("/var/run/netns")
PREFIX = "xoscar-idle-test"

_numbers = itertools.count()


class Namespaces:
    """Those of :func:`namespaces`, each by the name that it has here."""

    def __init__(self, *where: str) -> None:
        own = f"{PREFIX}-{os.getpid()}-{next(_numbers)}"
        self._names = {each: f"{own}-{each}" for each in where}
        self._processes = contextlib.ExitStack()

    def add(self) -> None:
        """Make them, each with nothing but its loopback device."""
        for name in self._names.values():
            _do("ip", "netns", "add", name)
            _do("ip", "-n", name, "link", "set", "lo", "up")

    def join(self, one: str, other: str, own: list[str], others: list[str]) -> None:
        """Lay a cable between two, to devices each called as the other, with these addresses."""
        here, there = self._names[one], self._names[other]
        # Made where they belong: no interface appears in the host's namespace.
        pair = f"link add name {other} netns {here} type veth peer name {one} netns {there}"
        _do("ip", *pair.split())
        for name, device, addresses in ((here, other, own), (there, one, others)):
            for each in addresses:
                _do("ip", "-n", name, "address", "add", each, "dev", device)
            _do("ip", "-n", name, "link", "set", "dev", device, "up")

    def route(self, where: str, gateway: str) -> None:
        """Let all that is elsewhere be reached by way of ``gateway``."""
        _do("ip", "-n", self._names[where], "route", "add", "default", "via", gateway)

    def path(self, where: str) -> Path:
        """The file by which a process can enter one."""
        return NAMESPACES / self._names[where]

    def command(self, where: str, *command: str | Path) -> list[str]:
        """What runs a command in one of them; the pid is that of the command."""
        return ["ip", "netns", "exec", self._names[where], *map(str, command)]

    def do(self, where: str, *command: str, text: str = "") -> None:
        """Run a command there to its end, which is to succeed."""
        _do(*self.command(where, *command), text=text)

    def run(self, where: str, argv: list[str], **popen: Any) -> subprocess.Popen[str]:
        """Start a process there, which ends with the namespaces."""
        return self._processes.enter_context(started(*self.command(where, *argv), **popen))

    def end(self) -> None:
        """End what runs in them."""
        self._processes.close()

    def remove(self) -> None:
        """The same, and remove them."""
        try:
            self.end()
        finally:
            for name in self._names.values():
                if (NAMESPACES / name).exists():
                    _remove(name)


@contextlib.contextmanager
def namespaces(*where: str) -> Iterator[Namespaces]:
    """Network namespaces of these names, joined with nothing."""
    _sweep()
    made = Namespaces(*where)
    try:
        made.add()
        yield made
    finally:
        made.remove()


def unavailable(*tools: str) -> str | None:
    """Why there can be none here, or not with these commands; None if there can."""
    if sys.platform != "linux":
        return "network namespaces are Linux's"
    if os.geteuid() != 0:
        return "network namespaces need root"
    for tool in ("ip", *tools):
        if shutil.which(tool) is None:
            return f"there is no command {tool!r}"
    return None


def _do(*command: str, text: str = "") -> str:
    done = run(*command, input=text, status=None)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout


def _remove(name: str) -> None:
    for pid in _do("ip", "netns", "pids", name).split():
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGKILL)
    _do("ip", "netns", "delete", name)


def _sweep() -> None:
    """Remove what test processes that were killed have left."""
    for path in NAMESPACES.glob(f"{PREFIX}-*"):
        pid = path.name.removeprefix(PREFIX).split("-")[1]
        if not Path("/proc", pid).exists():
            with contextlib.suppress(RuntimeError):  # another process sweeps, too
                _remove(path.name)
