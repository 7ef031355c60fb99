"""The local socket: who can open it, what is left behind, and by whom."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from xoscar_idle import side_channel, side_thread
from xoscar_idle.telemetry import snapshot
from xoscar_idle.telemetry.snapshot import Snapshot
from xoscar_idle.telemetry.targets import nobody

from .support.processes import line, started
from .support.programs import missing
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
        monkeypatch.setattr(side_channel, "_foreign_peer", lambda _: (1, 7))
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


NOBODY = """
import os, socket, sys
os.setgroups([]); os.setgid(65534); os.setuid(65534)
for _ in range(2):
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(60)
        sock.connect(sys.argv[1])  # from the working directory, to which no path leads
        try:
            sock.sendall(b"told\\n")
            print(sock.recv(100), flush=True)
        except ConnectionError:
            print(b"", flush=True)
"""


def test_another_user_is_refused_unread(
    place: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Even where somebody has opened the directory; it is warned of once, and told each time."""
    if os.geteuid() != 0:
        missing("only root can be somebody else")
    refused = list[tuple[int, int]]()
    monkeypatch.setattr(side_channel, "_warned_of", set())
    monkeypatch.setattr(side_channel, "_refused", None)
    monkeypatch.setattr(side_channel, "_answers", {"told": lambda _: "yes"})
    side_channel.on_refused(lambda pid, uid: refused.append((pid, uid)))
    side_channel.start()
    try:
        place.chmod(0o755)
        (place / f"{os.getpid()}.sock").chmod(0o666)
        command = (sys.executable, "-c", NOBODY, f"{os.getpid()}.sock")
        with started(*command, cwd=place) as process:
            assert line(process) == line(process) == "b''"
            eventually(lambda: len(refused) == 2)
            assert refused == [(process.pid, 65534)] * 2
        place.chmod(0o700)
        assert side_channel.ask(os.getpid(), "told") == b"yes\n"
    finally:
        side_channel.stop()
    (record,) = caplog.records
    says = f"process {process.pid} of user 65534 is not answered: the monitor answers its own"
    assert says in record.getMessage()


@pytest.fixture
def asked(place: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What has been asked for in this process."""
    asked: list[str] = []

    def answer(question: str) -> str:
        asked.append(question)
        return "yes"

    monkeypatch.setattr(side_channel, "_answers", {})
    side_channel.answer("told", answer)
    side_channel.answer("told at ", answer)
    side_channel.start()
    yield asked
    side_channel.stop()
    assert list(place.iterdir()) == []


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"told",
        b"told\0",
        b"t" * side_channel.LONGEST_QUESTION,
        b"told at " + b"x" * side_channel.LONGEST_QUESTION + b"\n",
        random.Random(7).randbytes(side_channel.LONGEST_QUESTION).replace(b"\n", b" "),
        b"\xff\xfe\n",
        b"told \xff\n",
        b"\n",
        b" told\n",
    ],
    ids=lambda sent: f"{sent[:10]!r} {len(sent)}",
)
def test_what_is_no_question_is_not_answered(place: Path, asked: list[str], sent: bytes) -> None:
    """Half a line is none, nor is one that is too long, or no text."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(BOUND)
        sock.connect(f"{place / str(os.getpid())}.sock")
        with contextlib.suppress(ConnectionError):  # it does not read as much
            sock.sendall(sent)
            sock.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionError):
            assert sock.recv(1) == b""
    assert side_channel.ask(os.getpid(), "told") == b"yes\n"
    assert asked == ["told"]


def test_the_longest_question(place: Path, asked: list[str]) -> None:
    longest = "told at ".ljust(side_channel.LONGEST_QUESTION - 1, "x")
    assert side_channel.ask(os.getpid(), longest) == b"yes\n"
    assert side_channel.ask(os.getpid(), f"{longest}x") is None
    assert asked == [longest]


def test_a_question_in_pieces(place: Path, asked: list[str]) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(BOUND)
        sock.connect(f"{place / str(os.getpid())}.sock")
        for each in (b"to", b"ld", b"\nand more"):
            sock.sendall(each)
        assert sock.recv(100) == b"yes\n"
    assert asked == ["told"]


def test_one_that_ends_its_half_is_answered(place: Path, asked: list[str]) -> None:
    """As netcat does; only who has closed all of it has gone."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(BOUND)
        sock.connect(f"{place / str(os.getpid())}.sock")
        sock.sendall(b"told\n")
        sock.shutdown(socket.SHUT_WR)
        assert sock.recv(100) == b"yes\n"
    assert asked == ["told"]


def test_who_has_gone_before_its_turn_is_not_answered(place: Path, asked: list[str]) -> None:
    """As who has asked a process that is stopped: what it wanted is not done an hour later."""
    path = f"{place / str(os.getpid())}.sock"
    entered, go_on = threading.Event(), threading.Event()

    def slow(_: str) -> str:
        entered.set()
        go_on.wait(BOUND)
        return "slow"

    side_channel.answer("slow", slow)
    with socket.socket(socket.AF_UNIX) as first:
        first.settimeout(BOUND)
        first.connect(path)
        first.sendall(b"slow\n")
        assert entered.wait(BOUND)
        for _ in range(5):
            with socket.socket(socket.AF_UNIX) as sock:
                sock.connect(path)
                sock.sendall(b"told at once\n")
        go_on.set()
        assert first.recv(100) == b"slow\n"
    assert side_channel.ask(os.getpid(), "told") == b"yes\n"
    assert asked == ["told"]


def test_who_answers_knows_who_asks(place: Path, asked: list[str]) -> None:
    known = list[int | None]()

    def who(_: str) -> str:
        known.append(side_channel.asker())
        if len(known) == 2:
            raise ValueError("it could not be answered")
        return "you"

    side_channel.answer("who", who)
    asks = f"from xoscar_idle import side_channel; print(side_channel.ask({os.getpid()}, 'who'))"
    assert side_channel.asker() is None
    with started(sys.executable, "-c", asks, env=os.environ) as process:
        assert line(process) == "b'you\\n'"
        assert known == [process.pid]
    assert side_channel.ask(os.getpid(), "who") is None
    assert side_channel.ask(os.getpid(), "who") == b"you\n"
    assert known == [process.pid, os.getpid(), os.getpid()]
    assert side_channel.asker() is None


def test_what_was_asked_is_not_logged(
    place: Path, asked: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    """It may have a secret in it."""
    caplog.set_level("DEBUG", "xoscar_idle")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(BOUND)
        sock.connect(f"{place / str(os.getpid())}.sock")
        sock.sendall(b"told at my-secret \xff\n")
        assert sock.recv(1) == b""
    assert "the side channel could not answer: " in eventually(lambda: caplog.text)
    assert "secret" not in caplog.text


FOREIGN_SERVER = """
import os, socket
os.setgroups([]); os.setgid(65534); os.setuid(65534)
with socket.socket(socket.AF_UNIX) as server:
    server.bind("there.sock")
    server.listen()
    print("ready", flush=True)
    asked, _ = server.accept()
    print(asked.recv(100), flush=True)
"""


def test_a_link_to_somebody_elses_socket(short: Path, place: Path) -> None:
    """Whoever asks sees who listens there, and says nothing."""
    if os.geteuid() != 0:
        missing("only root can be somebody else")
    place.mkdir(0o700)
    theirs = short / "theirs"
    theirs.mkdir()
    os.chown(theirs, 65534, 65534)
    short.chmod(0o711)
    with started(sys.executable, "-c", FOREIGN_SERVER, cwd=theirs) as process:
        assert line(process) == "ready"
        (place / f"{process.pid}.sock").symlink_to(theirs / "there.sock")
        assert side_channel.ask(process.pid, "a secret") is None
        assert line(process) == "b''"


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_very_many_ask_one_after_the_other(place: Path, asked: list[str]) -> None:
    path = f"{place / str(os.getpid())}.sock"
    side_channel.ask(os.getpid(), "told")
    before = open_descriptors()
    for number in range(10_000):
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(BOUND)
            sock.connect(path)
            if number % 2:
                sock.sendall(b"told\n")
                assert sock.recv(100) == b"yes\n"
    assert side_channel.ask(os.getpid(), "told") == b"yes\n"
    assert len(asked) == 5002
    eventually(lambda: open_descriptors() <= before)


def test_very_many_ask_at_once(
    place: Path, asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """More than the kernel lets wait."""
    monkeypatch.setattr(side_channel, "TIMEOUT", BOUND)
    side_channel.ask(os.getpid(), "told")
    before, told = open_descriptors(), list[bytes | None]()
    at_once = threading.Barrier(500)

    def ask() -> None:
        at_once.wait(BOUND)
        told.append(side_channel.ask(os.getpid(), "told"))

    asking = [threading.Thread(target=ask) for _ in range(500)]
    for each in asking:
        each.start()
    for each in asking:
        each.join(BOUND)
    assert told == [b"yes\n"] * 500
    assert side_channel.ask(os.getpid(), "told") == b"yes\n"
    eventually(lambda: open_descriptors() <= before)


def test_one_that_accepts_nobody_does_not_answer(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one that is stopped, once enough have asked; it is not taken for one without a monitor."""
    monkeypatch.setattr(side_channel, "TIMEOUT", 0.1)
    place.mkdir(0o700)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(f"{place / str(os.getpid())}.sock")
        sock.listen(0)
        for _ in range(3):
            with pytest.raises(TimeoutError, match=f"process {os.getpid()} did not answer in 0.1"):
                side_channel.ask(os.getpid(), "told")


def test_a_link_in_place_of_the_directory(
    short: Path, place: Path, asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not believed, wherever it leads."""
    link = short / "link"
    link.symlink_to(place)
    monkeypatch.setenv("XOSCAR_IDLE_MONITOR", f"{link}")
    assert side_channel.offered() == []
    assert side_channel.ask(os.getpid(), "told") is None
    with pytest.raises(OSError, match="is not a directory that belongs to this user alone"):
        side_channel.directory()
    assert asked == []


def test_a_link_in_place_of_the_socket(short: Path, place: Path) -> None:
    """It is replaced, and what it leads to is left alone."""
    place.mkdir(0o700)
    kept, path = short / "kept", place / f"{os.getpid()}.sock"
    kept.write_text("mine")
    kept.chmod(0o644)
    path.symlink_to(kept)
    side_channel.start()
    try:
        assert stat.S_ISSOCK(path.lstat().st_mode)
        assert kept.read_text() == "mine"
        assert stat.S_IMODE(kept.stat().st_mode) == 0o644
    finally:
        side_channel.stop()
    assert kept.exists()


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


# -- what is run at intervals, and sooner ----------------------------------------------------------


@pytest.fixture(params=["alone", "with a source"])
def beside(request: pytest.FixtureRequest, place: Path) -> Iterator[None]:
    """The side thread waits for nothing but its time, or for who asks, too."""
    if request.param == "with a source":
        snapshot.offer()
    yield
    side_channel.stop()
    assert side_thread._running is None


def test_what_is_wanted_soon_is_not_waited_for(beside: None) -> None:
    """It is run in the side thread, at once, and others only when their time has come."""
    ran, others = list[str](), list[None]()

    def work() -> None:
        ran.append(threading.current_thread().name)

    def other() -> None:
        others.append(None)

    for each in (work, other):
        side_thread.every(2 * BOUND, each)
    try:
        eventually(lambda: len(ran) == len(others) == 1)
        for count in (2, 3, 4):
            side_thread.soon(work)
            eventually(lambda count=count: len(ran) == count)  # type: ignore[misc]
        assert set(ran) == {"xoscar-idle-side"}
        assert len(others) == 1
    finally:
        for each in (work, other):
            side_thread.never(each)


def test_what_is_wanted_while_it_runs_is_run_once_more(beside: None) -> None:
    """However often it is wanted by then, also by itself."""
    ran, go_on = list[None](), threading.Event()

    def work() -> None:
        ran.append(None)
        if len(ran) == 1:
            go_on.wait(BOUND)
            side_thread.soon(work)

    side_thread.every(2 * BOUND, work)
    try:
        eventually(lambda: ran)
        for _ in range(50):
            side_thread.soon(work)
        go_on.set()
        eventually(lambda: len(ran) >= 2)
        after = list[None]()

        def last() -> None:
            after.append(None)

        side_thread.every(2 * BOUND, last)
        eventually(lambda: after)
        assert len(ran) <= 3, "no more than there was a reason for"
        side_thread.never(last)
    finally:
        go_on.set()
        side_thread.never(work)


def test_wanting_does_not_wait_for_a_thread_that_is_busy(place: Path) -> None:
    """Whoever wants it is the program's event loop, and more may happen than a queue takes."""
    snapshot.offer()
    entered, go_on = threading.Event(), threading.Event()

    def busy() -> None:
        entered.set()
        go_on.wait(BOUND)

    def work() -> None:
        pass

    side_thread.every(2 * BOUND, work)
    side_thread.every(2 * BOUND, busy)
    try:
        assert entered.wait(BOUND)
        slowest = 0.0
        for _ in range(2000):
            begun = time.monotonic()
            side_thread.soon(work)
            slowest = max(slowest, time.monotonic() - begun)
            if slowest >= side_channel.TIMEOUT:
                break
        assert slowest < side_channel.TIMEOUT, "it has waited for a place in the queue"
    finally:
        go_on.set()
        side_thread.never(work)
        side_thread.never(busy)
        side_channel.stop()


def test_what_is_not_run_at_intervals_is_not_wanted(beside: None) -> None:
    ran = list[str]()

    def work() -> None:
        ran.append("work")

    def other() -> None:
        ran.append("other")

    side_thread.soon(work)
    side_thread.every(2 * BOUND, other)
    try:
        eventually(lambda: ran)
        side_thread.soon(work)
        side_thread.soon(other)
        eventually(lambda: len(ran) == 2)
        assert ran == ["other", "other"]
    finally:
        side_thread.never(other)
    side_thread.soon(other)
    assert ran == ["other", "other"]


def test_what_is_wanted_soon_keeps_its_interval_then(beside: None) -> None:
    """It goes on at intervals, from that time on."""
    ran = list[float]()

    def work() -> None:
        ran.append(time.monotonic())

    side_thread.every(0.05, work)
    try:
        side_thread.soon(work)
        eventually(lambda: len(ran) >= 5)
        assert sum(b - a < 0.04 for a, b in itertools.pairwise(ran)) <= 1
    finally:
        side_thread.never(work)


def test_many_threads_want_it(beside: None) -> None:
    """Each time there is a run that has begun after that."""
    begun, ran = [0], [0]

    def work() -> None:
        begun[0] += 1
        ran[0] = begun[0]

    def want() -> None:
        for _ in range(30):
            before = begun[0]
            side_thread.soon(work)
            eventually(lambda before=before: ran[0] > before)  # type: ignore[misc]

    side_thread.every(2 * BOUND, work)
    try:
        wanting = [threading.Thread(target=want) for _ in range(4)]
        for thread in wanting:
            thread.start()
        for thread in wanting:
            thread.join(BOUND)
            assert not thread.is_alive()
        assert ran[0] >= 31
    finally:
        side_thread.never(work)
