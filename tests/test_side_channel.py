"""The local socket: who can open it, what is left behind, and by whom."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from xoscar_idle import side_channel, side_thread
from xoscar_idle.telemetry import snapshot
from xoscar_idle.telemetry.snapshot import Snapshot
from xoscar_idle.telemetry.targets import nobody

from .support.processes import line, started
from .support.waiting import BOUND, eventually

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(not side_channel.AVAILABLE, reason="no unix sockets here"),
]


@pytest.fixture
def short() -> Iterator[Path]:
    """A directory with a short path, since that of a socket is limited."""
    with tempfile.TemporaryDirectory() as directory:
        yield Path(directory)


@pytest.fixture
def place(short: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the sockets are, for this test alone."""
    monkeypatch.setenv("XOSCAR_IDLE_MONITOR", f"{short / 'own'}")
    return short / "own"


@pytest.fixture
def runtime(short: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where they are if no directory is named, the preferred place."""
    monkeypatch.setenv("XOSCAR_IDLE_MONITOR", "1")
    monkeypatch.setenv("XDG_RUNTIME_DIR", f"{short}")
    return short / "xoscar-idle"


@contextlib.contextmanager
def program(text: str, **variables: str) -> Iterator[subprocess.Popen[str]]:
    """A program that has xoscar extended; it reads stdin at its end."""
    text = f"import xoscar, os, sys\n{text}\nsys.stdin.read()"
    env = os.environ | {"XOSCAR_IDLE_TIMEOUT": "5"} | variables
    with started(sys.executable, "-c", text, env=env) as process:
        yield process


READY = "print('ready', flush=True)"


def test_only_its_owner_can_open_it(place: Path) -> None:
    with program(READY) as process:
        assert line(process) == "ready"
        assert stat.S_IMODE(place.stat().st_mode) == 0o700
        path = place / f"{process.pid}.sock"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert side_channel.offered() == [process.pid]
        told = snapshot.ask(process.pid)
        assert told is not None
        assert (told.pid, told.note) == (process.pid, "")
        assert told.statistics is not None
        assert told.statistics["settings"]["idle_timeout"] == 5
        assert told.descriptors is not None
        assert told.descriptor_limit is not None
        process.communicate(timeout=BOUND)
        assert not path.exists()
        assert snapshot.ask(process.pid) is None


@pytest.mark.parametrize("value", ["0", "", "off"])
def test_nothing_is_there_unless_it_is_asked_for(place: Path, value: str) -> None:
    with program(READY, XOSCAR_IDLE_MONITOR=value) as process:
        assert line(process) == "ready"
        assert not place.exists()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("yes please", "XOSCAR_IDLE_MONITOR='yes please' is neither 1 nor 0 nor the absolute path"),
        ("here/below", "XOSCAR_IDLE_MONITOR='here/below' is neither"),
        ("{open}", "{open} is not a directory that belongs to this user alone, with mode 700"),
        ("{file}", "{file} is not a directory that belongs to this user alone"),
        ("{open}/a/b", "{open}/a/b cannot be made: No such file or directory"),
        ("{file}/a", "{file}/a cannot be made: Not a directory"),
        ("{open}/" + 60 * "long", "long is too long: the path of a unix socket has 10"),
    ],
)
def test_what_prevents_it_costs_one_warning(
    short: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    text: str,
    says: str,
) -> None:
    places = {"open": short / "open", "file": short / "file"}
    places["open"].mkdir()
    places["open"].chmod(0o755)
    places["file"].touch()
    monkeypatch.setenv("XOSCAR_IDLE_MONITOR", text.format(**places))
    side_channel.start()
    side_channel.stop()
    (record,) = caplog.records
    assert says.format(**places) in record.getMessage()
    assert list(places["open"].iterdir()) == []


def test_what_the_kernel_refuses_is_told_with_the_path(
    place: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (place / f"{os.getpid()}.sock").mkdir(parents=True)
    place.chmod(0o700)
    monkeypatch.setattr(Path, "unlink", lambda *_, **__: None)
    side_channel.start()
    (record,) = caplog.records
    assert f"{place}/{os.getpid()}.sock: Address already in use" in record.getMessage()


def test_the_directory_for_temporary_files_is_used(
    short: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``TMPDIR`` is all that can be written to where the root file system is read-only."""
    monkeypatch.setattr(tempfile, "tempdir", f"{short}")
    monkeypatch.setenv("XOSCAR_IDLE_MONITOR", "1")
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    name = f"xoscar-idle-{os.geteuid()}"
    assert side_channel.directories() == [short / name, Path("/tmp") / name]
    assert side_channel.directory() == short / name
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_get_default_tempdir", raise_not_found)
    assert side_channel.directories() == [Path("/tmp") / name]


def test_a_process_with_its_own_directory_for_temporary_files(short: Path) -> None:
    variables = {"TMPDIR": f"{short}", "XDG_RUNTIME_DIR": "", "XOSCAR_IDLE_MONITOR": "1"}
    with program(READY, **variables) as process:
        assert line(process) == "ready"
        assert (short / f"xoscar-idle-{os.geteuid()}" / f"{process.pid}.sock").exists()


def raise_not_found() -> str:
    raise FileNotFoundError("No usable temporary directory found")


def test_no_place_at_all_is_told_with_each(
    short: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (short / "file").touch()
    gone = [short / "file" / "a", short / "gone" / "b"]
    monkeypatch.setattr(side_channel, "directories", lambda: gone)
    monkeypatch.setenv("XOSCAR_IDLE_MONITOR", "1")
    side_channel.start()
    (record,) = caplog.records
    told = record.getMessage()
    assert f"{gone[0]} cannot be made: Not a directory; {gone[1]} cannot be made: No such" in told
    assert told.endswith("; XOSCAR_IDLE_MONITOR can name another directory")


def test_another_place_is_used_where_somebody_else_could_get_at_it(runtime: Path) -> None:
    assert side_channel.directory() == side_channel.directories()[0] == runtime
    runtime.rmdir()
    elsewhere = runtime.with_name("elsewhere")
    elsewhere.mkdir(0o700)
    runtime.symlink_to(elsewhere)
    assert side_channel.directory() == side_channel.directories()[1]
    runtime.unlink()
    runtime.parent.chmod(0o755)
    assert runtime not in side_channel.directories()


def test_it_is_found_in_any_of_the_places(runtime: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A service and the shell of its operator differ in their environments."""
    with program(READY) as process, tempfile.TemporaryDirectory() as elsewhere:
        assert line(process) == "ready"
        monkeypatch.setattr(tempfile, "tempdir", elsewhere)
        assert process.pid in side_channel.offered()
        assert snapshot.ask(process.pid) is not None
        monkeypatch.setenv("XOSCAR_IDLE_MONITOR", elsewhere)
        assert side_channel.offered() == []
        assert snapshot.ask(process.pid) is None, "in the one that is named, and only there"
        monkeypatch.setenv("XOSCAR_IDLE_MONITOR", f"{runtime}")
        assert side_channel.offered() == [process.pid]


def test_what_a_killed_process_left_is_swept(place: Path) -> None:
    with program(READY) as living, program(READY) as killed:
        assert (line(living), line(killed)) == ("ready", "ready")
        killed.kill()
        killed.wait()
        assert (place / f"{killed.pid}.sock").exists()
        (place / "notes.txt").touch()
        with program(READY) as next_one:
            assert line(next_one) == "ready"
            assert not (place / f"{killed.pid}.sock").exists()
        assert side_channel.offered() == [living.pid]
        assert (place / "notes.txt").exists()


def test_a_forked_child_has_its_own(place: Path) -> None:
    forks = """
import time
pid = os.fork()
if not pid:
    print(os.getpid(), flush=True)
    time.sleep(600)
"""
    with program(forks) as process:
        child = int(line(process))
        try:
            eventually(lambda: side_channel.offered() == sorted([process.pid, child]))
            for pid in (process.pid, child):
                told = snapshot.ask(pid)
                assert told is not None
                assert told.pid == pid
            assert process.stdin is not None
            process.stdin.close()
            process.stdin = None
            process.wait(BOUND)
            # The child holds no copy of its parent's socket, and the parent has not removed its.
            assert side_channel.offered() == [child]
            assert snapshot.ask(child) is not None
        finally:
            os.kill(child, signal.SIGKILL)


def test_the_end_of_a_forked_child_leaves_its_parents(place: Path) -> None:
    forks = """
if not os.fork():
    sys.exit()
os.wait()
print('ready', flush=True)
"""
    with program(forks) as process:
        assert line(process) == "ready"
        assert [path.name for path in place.iterdir()] == [f"{process.pid}.sock"]
        assert snapshot.ask(process.pid) is not None


def test_it_answers_when_there_are_no_descriptors(place: Path) -> None:
    exhaust = """
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
taken = []
try:
    while True:
        taken.append(os.open(os.devnull, os.O_RDONLY))
except OSError:
    print('ready', flush=True)
"""
    with program(exhaust) as process:
        assert line(process) == "ready"
        for _ in range(2):
            told = snapshot.ask(process.pid)
            assert told is not None
            assert told.descriptor_limit == 64
            assert told.statistics is not None


def test_nobody_else_is_answered(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot.offer()
    try:
        assert snapshot.ask(os.getpid()) is not None
        monkeypatch.setattr(side_channel, "_is_own_user", lambda _: False)
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(BOUND)
            sock.connect(str(place / f"{os.getpid()}.sock"))
            assert sock.recv(1) == b""
        assert snapshot.ask(os.getpid()) is None, "nor is another user's socket believed"
    finally:
        side_channel.stop()
    assert list(place.iterdir()) == []


def test_what_nobody_has_registered_is_not_answered(place: Path) -> None:
    snapshot.offer()
    try:
        assert side_channel.ask(os.getpid(), "anything else") is None
        assert side_channel.ask(os.getpid(), "x" * 100_000) is None
        assert side_channel.ask(os.getpid(), snapshot.QUESTION) is not None
    finally:
        side_channel.stop()


@pytest.mark.parametrize("asks", [b"", b"snap", b"snapshot\n"])
def test_one_who_does_not_go_on_delays_others_but_not_for_ever(
    place: Path, monkeypatch: pytest.MonkeyPatch, asks: bytes
) -> None:
    monkeypatch.setattr(side_channel, "TIMEOUT", 0.3)
    long = json.dumps({"pid": 1, "command": "x" * 10_000_000})
    monkeypatch.setattr(Snapshot, "to_json", lambda _: long)
    snapshot.offer()
    try:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(place / f"{os.getpid()}.sock"))
            sock.sendall(asks)

            def ask() -> Snapshot | None:
                with contextlib.suppress(TimeoutError):
                    return snapshot.ask(os.getpid())
                return None

            told = eventually(ask)
            assert told is not None
            assert told.pid == 1
    finally:
        side_channel.stop()


def test_its_end_does_not_wait_for_one_who_asks_nothing(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for bound in ("TIMEOUT", "QUESTION_TIMEOUT"):
        monkeypatch.setattr(side_channel, bound, 1000)
    snapshot.offer()
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(place / f"{os.getpid()}.sock"))
        channel = side_channel._channel
        assert channel is not None
        eventually(lambda: channel._served)
        side_channel.stop()
        assert side_thread._running is None


def test_the_working_directory_is_no_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It is Python's last resort, and another one for each who looks."""
    monkeypatch.delenv("XOSCAR_IDLE_MONITOR", raising=False)
    monkeypatch.delenv("TMPDIR", raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(tmp_path))
    assert all(tmp_path not in place.parents for place in side_channel.directories())
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    assert any(tmp_path in place.parents for place in side_channel.directories())


@pytest.mark.parametrize("own", ["relative", "yes", "/tmp"])
def test_the_command_says_what_is_wrong_with_its_own_directory(
    own: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XOSCAR_IDLE_MONITOR", own)
    assert f"{own}" in nobody()
    assert "start it with" not in nobody()
