"""The stderr of a process, over a file: what arrives, what stays, and what nobody waits for."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from xoscar_idle.supervision import capture as captures
from xoscar_idle.supervision import holes
from xoscar_idle.supervision.capture import KEPT, Capture, last_lines, sweep, whole_lines

from ..support.processes import line, run, started, tell
from ..support.waiting import BOUND, eventually

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(sys.platform == "win32", reason="nothing is captured on Windows"),
]


class Stderr:
    """A pipe that this process can have as its stderr."""

    def __init__(self) -> None:
        self.reader, self.writer = os.pipe()
        self._read = b""
        self._before: int | None = None

    def begin(self) -> None:
        """From now on; in the test itself, since pytest has its own before."""
        if self._before is None:
            self._before = os.dup(2)
            os.dup2(self.writer, 2)

    def end(self) -> None:
        if self._before is not None:
            os.dup2(self._before, 2)
            os.close(self._before)
        os.close(self.reader)
        os.close(self.writer)

    def has(self, size: int) -> None:
        """Wait until exactly so many bytes have arrived."""
        eventually(lambda: len(self.read()) == size)

    def read(self) -> bytes:
        """All that has arrived so far."""
        os.set_blocking(self.reader, False)
        with contextlib.suppress(BlockingIOError):
            while data := os.read(self.reader, 1 << 20):
                self._read += data
        return self._read

    def arrives(self, text: bytes) -> None:
        """Wait for it."""
        eventually(lambda: text in self.read())

    def fill(self) -> int:
        """Write to it until nothing more goes in; how many bytes that were."""
        os.set_blocking(self.writer, False)
        filled = 0
        with contextlib.suppress(BlockingIOError):
            while True:
                filled += os.write(self.writer, b"." * captures.PIECE)
        os.set_blocking(self.writer, True)
        return filled


@contextlib.contextmanager
def leading_to(descriptor: int | None) -> Iterator[None]:
    """Stderr leads there meanwhile; None: it is closed."""
    before = os.dup(2)
    try:
        if descriptor is None:
            os.close(2)
        else:
            os.dup2(descriptor, 2)
        yield
    finally:
        os.dup2(before, 2)
        os.close(before)


@pytest.fixture
def stderr() -> Iterator[Stderr]:
    made = Stderr()
    yield made
    made.end()


@pytest.fixture
def place(tmp_path: Path) -> Path:
    made = tmp_path / "own"
    made.mkdir(0o700)
    return made


@pytest.fixture
def opened(place: Path, stderr: Stderr) -> Iterator[Callable[[], Capture]]:
    """Captures that are finished in the end, whatever the test has done."""
    made: list[Capture] = []

    def open() -> Capture:
        stderr.begin()
        made.append(Capture.open(place))
        return made[-1]

    yield open
    for each in made:
        each.finish()


@contextlib.contextmanager
def python(text: str, capture: Capture | None = None) -> Iterator[subprocess.Popen[str]]:
    """A process with that program, which has ``say()`` for its stderr."""
    program = f"import os, sys, time\ndef say(text): os.write(2, text)\n{text}"
    stderr = subprocess.PIPE if capture is None else capture.descriptor
    with started(sys.executable, "-c", program, stderr=stderr) as process:
        if capture is not None:
            capture.close_in_parent()
        yield process


def is_swept(place: Path) -> bool:
    """Whether nothing is left, once it has been swept."""
    sweep(place)
    return not list(place.iterdir())


def on_disk(path: Path) -> int:
    """Bytes that a file takes there."""
    return path.stat().st_blocks * 512


LINES = b"".join(b"line %06d\n" % number for number in range(100_000))
"""1.2 MB, more than any pipe holds."""


# What arrives


def test_what_it_writes_arrives_while_it_lives(
    place: Path, opened: Callable[[], Capture], stderr: Stderr
) -> None:
    capture = opened()
    assert re.fullmatch(rf"stderr-{os.getpid()}-\d+\.log", capture.path.name)
    assert stat.S_IMODE(capture.path.stat().st_mode) == 0o600
    with python("say(b'I live\\n'); sys.stdin.read(); say(b'I end\\n')", capture) as process:
        stderr.arrives(b"I live\n")
        assert capture.tail() == "I live\n"
        process.communicate(timeout=BOUND)
    capture.finish()
    assert stderr.read() == b"I live\nI end\n"
    assert list(place.iterdir()) == []
    assert capture.tail() == "I live\nI end\n", "it is still known"
    capture.finish()


def test_the_last_words_of_a_killed_process_arrive(
    opened: Callable[[], Capture], stderr: Stderr
) -> None:
    capture = opened()
    with python("say(b'no newline: \\xff'); os.kill(os.getpid(), 9)", capture) as process:
        assert process.wait(BOUND) == -signal.SIGKILL
    assert capture.tail() == "no newline: \N{REPLACEMENT CHARACTER}"
    capture.finish()
    assert stderr.read() == b"no newline: \xff"


def test_a_part_of_a_line_is_not_waited_for(opened: Callable[[], Capture], stderr: Stderr) -> None:
    """A bar of progress, or a question."""
    os.write(opened().descriptor, b"are you sure? ")
    stderr.arrives(b"are you sure? ")


def test_lines_of_several_do_not_mix(opened: Callable[[], Capture], stderr: Stderr) -> None:
    each = [opened() for _ in range(5)]
    for number, capture in enumerate(each):
        for at in range(0, 20_000, 100):
            os.write(
                capture.descriptor, b"".join(b"%d %06d\n" % (number, at + i) for i in range(100))
            )
    eventually(lambda: len(stderr.read()) >= 5 * 20_000 * 9)
    lines = stderr.read().splitlines()
    for number in range(5):
        own = [line for line in lines if line.startswith(b"%d " % number)]
        assert own == [b"%d %06d" % (number, i) for i in range(20_000)]
    assert len(lines) == 5 * 20_000


def test_everything_arrives_once_where_stderr_is_slow(
    opened: Callable[[], Capture], stderr: Stderr
) -> None:
    os.set_blocking(stderr.writer, False)
    capture = opened()
    os.write(capture.descriptor, LINES)
    eventually(lambda: len(stderr.read()) >= len(LINES))
    assert stderr.read() == LINES


def test_what_the_process_truncates_is_followed_on(
    opened: Callable[[], Capture], stderr: Stderr
) -> None:
    capture = opened()
    os.write(capture.descriptor, b"a long first line\n")
    stderr.arrives(b"first line\n")
    os.truncate(capture.path, 0)
    os.write(capture.descriptor, b"second\n")
    stderr.arrives(b"second\n")


def test_one_whose_file_is_removed_is_copied_on(
    place: Path, opened: Callable[[], Capture], stderr: Stderr
) -> None:
    capture = opened()
    capture.path.unlink()
    os.write(capture.descriptor, b"still here\n")
    stderr.arrives(b"still here\n")
    assert capture.tail() == "still here\n"
    capture.path.write_text("of somebody else")
    capture.finish()
    assert capture.path.read_text() == "of somebody else"


def test_what_cannot_be_read_costs_one_warning(
    opened: Callable[[], Capture], stderr: Stderr, caplog: pytest.LogCaptureFixture
) -> None:
    broken, other = opened(), opened()
    assert broken._reader is not None
    os.dup2(stderr.reader, broken._reader)  # of which a part cannot be read
    os.set_blocking(stderr.reader, False)
    broken._position = -1
    eventually(lambda: broken not in captures._copier.captures)
    (record,) = caplog.records
    assert f"written to {broken.path} is copied to stderr no more: " in record.getMessage()
    os.write(other.descriptor, b"goes on\n")
    stderr.arrives(b"goes on\n")
    assert broken.tail() == ""


# What nobody waits for


def test_a_stderr_that_takes_nothing_holds_up_nobody(
    place: Path, opened: Callable[[], Capture], stderr: Stderr
) -> None:
    filled = stderr.fill()
    first, second = opened(), opened()
    with python("say(b'all of it\\n' * 100_000); print('done', flush=True)", first) as process:
        assert line(process) == "done", "the process does not wait"
        process.wait(BOUND)
    os.write(second.descriptor, b"and another\n")
    for each in (first, second):
        each.finish(timeout=0.2)
    eventually(lambda: not list(place.iterdir()))
    assert first.tail().endswith("all of it\n")
    eventually(lambda: captures._copier._thread is None)
    third = opened()
    os.write(third.descriptor, b"later\n")
    stderr.arrives(b"later\n")
    assert stderr.read() == b"." * filled + b"later\n"


@pytest.mark.parametrize("how", ["closed", "unread"])
def test_a_stderr_that_is_gone_costs_nothing_but_what_it_was_to_get(
    opened: Callable[[], Capture], stderr: Stderr, how: str
) -> None:
    capture = opened()
    broken_reader, broken = os.pipe()
    os.close(broken_reader)
    try:
        with leading_to(None if how == "closed" else broken):
            os.write(capture.descriptor, LINES)
            eventually(lambda: capture._position == len(LINES))
    finally:
        os.close(broken)
    os.write(capture.descriptor, b"there again\n")
    stderr.arrives(b"there again\n")
    assert stderr.read() == b"there again\n"


def test_a_stderr_that_nobody_reads_kills_no_program_that_would_let_it(place: Path) -> None:
    program = f"""
import os, signal
from pathlib import Path
from xoscar_idle.supervision import capture as captures
signal.signal(signal.SIGPIPE, signal.SIG_DFL)
reader, writer = os.pipe()
os.dup2(writer, 2)
os.close(reader)
capture = captures.Capture.open(Path({str(place)!r}))
os.write(capture.descriptor, b'into nothing')
capture.finish()
print('lives')
"""
    assert run(sys.executable, "-c", program).stdout == "lives\n"


def test_a_file_that_would_be_stderr_itself_is_not_copied_to_itself(
    place: Path,
) -> None:
    with leading_to(None):
        capture = Capture.open(place)
        assert capture.descriptor > 2
        os.write(capture.descriptor, b"once\n")
        eventually(lambda: capture._position == 5)
        capture.finish()
    assert capture.tail() == "once\n"


def test_a_main_pool_that_is_stopped_or_gone_does_not_hold_up_its_process(
    place: Path, stderr: Stderr
) -> None:
    """Then another one takes it over."""
    with main_pool(place, CHATTY) as main:
        pid = int(line(main))
        (path,) = place.iterdir()
        main.send_signal(signal.SIGSTOP)
        tell(main, LINES.decode()[:1_000_000].count("\n"))
        eventually(lambda: path.stat().st_size >= 100_000)
        main.kill()
        main.wait()
        sweep(place)
        assert path.exists(), "its process lives"
        eventually(lambda: path.read_bytes().endswith(b"end\n"))

        stderr.begin()
        adopted = Capture.adopt(pid, place)
        assert adopted is not None
        try:
            assert re.fullmatch(rf"stderr-{os.getpid()}-\d+\.log", adopted.path.name)
            assert list(place.iterdir()) == [adopted.path]
            assert adopted.tail().endswith("chat\nend\n"), "the tail has what was before"
            with pytest.raises(ValueError, match="no longer open for a process"):
                _ = adopted.descriptor
            with adopted.path.open("a") as appended:
                appended.write("from now on\n")
            stderr.arrives(b"from now on\n")
            assert stderr.read() == b"from now on\n"
        finally:
            os.kill(pid, signal.SIGKILL)
            eventually(lambda: not os.path.exists(f"/proc/{pid}/fd/2"))
            adopted.finish()
    assert list(place.iterdir()) == []


CHATTY = """
for _ in range(int(sys.stdin.readline())):
    os.write(2, b'chat\\n')
os.write(2, b'end\\n')
time.sleep(600)
"""


@contextlib.contextmanager
def main_pool(
    place: Path, child: str, then: str = "child.wait()"
) -> Iterator[subprocess.Popen[str]]:
    """A process that captures the stderr of one with the program ``child``, whose pid it prints."""
    program = f"""
import os, subprocess, sys
from pathlib import Path
from xoscar_idle.supervision import capture as captures
capture = captures.Capture.open(Path({str(place)!r}))
program = "import os, sys, time" + {child!r}
child = [sys.executable, "-c", program]
child = subprocess.Popen(child, stdout=subprocess.DEVNULL, stderr=capture.descriptor)
capture.close_in_parent()
print(child.pid, flush=True)
{then}
"""
    with started(sys.executable, "-c", program, stderr=subprocess.PIPE) as process:
        yield process


# The ends


def test_what_has_arrived_is_copied_at_exit(place: Path) -> None:
    child = "\nos.write(2, b'word\\n' * 100_000); os.write(2, b'end'); time.sleep(600)"
    then = """
import time
while not capture.tail().endswith('end'):
    time.sleep(0.01)
"""
    with main_pool(place, child, then) as main:
        pid = int(line(main))
        try:
            _, told = main.communicate(timeout=BOUND)
            assert told == "word\n" * 100_000 + "end"
            sweep(place)
            assert len(list(place.iterdir())) == 1, "the process lives"
        finally:
            os.kill(pid, signal.SIGKILL)
    eventually(lambda: is_swept(place))


def test_exit_does_not_wait_for_a_stderr_that_takes_nothing(place: Path) -> None:
    child = "\nos.write(2, b'word\\n' * 100_000)"
    with main_pool(place, child, "child.wait()") as main:
        line(main)
        assert main.wait(BOUND) == 0
    eventually(lambda: is_swept(place))


def test_what_the_process_has_left_behind_is_copied_on(
    place: Path, opened: Callable[[], Capture], stderr: Stderr
) -> None:
    text = """
if os.fork():
    os._exit(1)
print(os.getpid(), flush=True)
sys.stdin.readline()
say(b'left behind\\n')
sys.stdin.readline()
"""
    capture = opened()
    with python(text, capture) as process:
        orphan = int(line(process))
        process.wait(BOUND)
        try:
            capture.finish()
            assert capture.path.exists()
            tell(process)
            stderr.arrives(b"left behind\n")
        finally:
            os.kill(orphan, signal.SIGKILL)
    eventually(lambda: not capture.path.exists())
    assert stderr.read() == b"left behind\n"


def test_one_left_to_another_main_pool_keeps_its_file(
    place: Path, opened: Callable[[], Capture], stderr: Stderr
) -> None:
    capture = opened()
    with python("say(b'before\\n'); sys.stdin.read()", capture) as process:
        eventually(lambda: capture.tail())
        capture.leave()
        assert stderr.read() == b"before\n"
        adopted = Capture.adopt(process.pid, place)
        assert adopted is not None
        process.communicate(timeout=BOUND)
        adopted.finish()
    assert stderr.read() == b"before\n", "it is not copied twice"
    assert list(place.iterdir()) == []


def test_a_forked_child_copies_nothing(place: Path) -> None:
    then = """
pid = os.fork()
if not pid:
    captures.after_fork()
    capture.finish()
    assert not captures._copier.captures
    subprocess.run([sys.executable, '-c', ''], check=True)
    sys.exit()
assert not os.waitpid(pid, 0)[1]
assert capture.path.exists()
os.write(1, b'forked\\n')
child.wait()
capture.finish()
"""
    with main_pool(place, "\nsys.stdin.readline(); os.write(2, b'once\\n')", then) as main:
        line(main)
        assert line(main) == "forked"
        _, told = main.communicate("\n", timeout=BOUND)
        assert told == "once\n"
        assert main.returncode == 0
    assert list(place.iterdir()) == []


def test_a_process_is_started_through_a_fork_that_forgets(place: Path) -> None:
    """With a ``preexec_fn`` the functions after a fork run in the child, before it has stderr."""
    program = f"""
import os, subprocess, sys
from pathlib import Path
from xoscar_idle.supervision import capture as captures
os.register_at_fork(after_in_child=captures.after_fork)
capture = captures.Capture.open(Path({str(place)!r}))
child = [sys.executable, '-c', 'import os; os.write(2, b"started")']
subprocess.run(child, stderr=capture.descriptor, preexec_fn=lambda: None, check=True)
capture.finish()
"""
    assert run(sys.executable, "-c", program).stderr == "started"


# The disk


def test_what_has_been_copied_is_given_back(
    place: Path, opened: Callable[[], Capture], stderr: Stderr
) -> None:
    if not gives_back(place):
        pytest.skip("this file system cannot give back a part of a file")
    capture = opened()
    for _ in range(4):
        os.write(capture.descriptor, LINES)
    stderr.has(4 * len(LINES))
    eventually(lambda: on_disk(capture.path) <= 2 * KEPT + 4096)
    assert capture.path.stat().st_size == 4 * len(LINES)
    assert capture.tail(KEPT) == LINES[-KEPT:].decode().partition("\n")[2]
    assert stderr.read() == 4 * LINES


def gives_back(place: Path) -> bool:
    with (place / "tried").open("wb") as file:
        file.write(b"." * KEPT)
        file.flush()
        (place / "tried").unlink()
        with contextlib.suppress(OSError):
            holes.punch(file.fileno(), 0, KEPT)
            return True
    return False


@pytest.mark.parametrize("number", [errno.EOPNOTSUPP, errno.ENOSYS])
def test_where_nothing_can_be_given_back_the_file_is_emptied(
    opened: Callable[[], Capture],
    stderr: Stderr,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    number: int,
) -> None:
    def punch(*_: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(holes, "punch", punch)
    monkeypatch.setattr(captures, "BACKLOG", 1 << 20)
    caplog.set_level(logging.DEBUG, "xoscar_idle")
    capture = opened()
    most = LINES[: 90_000 * 12]
    for times in (1, 2):
        os.write(capture.descriptor, most)
        stderr.has(times * len(most))
        eventually(lambda: not capture.path.stat().st_size)
        assert capture.tail(KEPT) == most[-KEPT:].decode().partition("\n")[2]
    os.write(capture.descriptor, b"the end\n")
    stderr.arrives(b"the end\n")
    assert stderr.read() == most + most + b"the end\n"
    assert capture.tail().endswith("\nline 089999\nthe end\n")
    (record,) = caplog.records
    assert f"{capture.path} cannot be given back to the disk in parts" in record.getMessage()


@pytest.mark.parametrize("punching", [True, False])
def test_what_stderr_does_not_take_does_not_fill_the_disk(
    opened: Callable[[], Capture],
    stderr: Stderr,
    monkeypatch: pytest.MonkeyPatch,
    punching: bool,
) -> None:
    monkeypatch.setattr(captures, "BACKLOG", 1 << 20)
    filled = stderr.fill()
    capture = opened()
    capture._punching = punching
    os.write(capture.descriptor, b"first\n")
    eventually(lambda: capture._waits)
    for _ in range(10):
        os.write(capture.descriptor, LINES)
    if punching:
        eventually(lambda: on_disk(capture.path) <= 3 * KEPT + 4096)
    else:
        eventually(lambda: not capture.path.stat().st_size)
    assert capture.tail().endswith("\nline 099999\n")
    os.write(capture.descriptor, b"the end\n")
    stderr.arrives(b"the end\n")
    told = stderr.read()[filled:]
    note = b"[xoscar_idle: 11 MiB of %s are left out here: " % capture.path.name.encode()
    assert told.startswith(note)
    assert told.count(b"left out") == 1


def test_a_full_disk_is_no_end(opened: Callable[[], Capture], stderr: Stderr) -> None:
    """A limit on the size of files, for which one needs not be root."""
    text = """
import resource
say(b'there is room\\n')
resource.setrlimit(resource.RLIMIT_FSIZE, (20, 20))
try:
    say(b'there is none any more')
    say(b'there is none any more')
except OSError as error:
    print(error.strerror, flush=True)
print('goes on', file=sys.stdout, flush=True)
"""
    capture = opened()
    with python(text, capture) as process:
        assert line(process) == os.strerror(errno.EFBIG)
        assert line(process) == "goes on"
        assert process.wait(BOUND) == 0
    capture.finish()
    assert stderr.read() == b"there is room\nthere "


@pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("unshare"), reason="needs root, to mount a small disk"
)
def test_a_disk_that_is_really_full_is_no_end(place: Path) -> None:
    program = f'''
import os, subprocess, sys
from pathlib import Path
from xoscar_idle.supervision import capture as captures
capture = captures.Capture.open(Path({str(place)!r}))
other = open({str(place / "other")!r}, 'wb', buffering=0)
try:
    while True:
        other.write(b'.' * 4096)
except OSError as error:
    print(error.strerror)
text = """
import sys
try:
    print("lost", file=sys.stderr)
except OSError as error:
    print(error.strerror)
print("goes on")
"""
subprocess.run([sys.executable, '-c', text], stderr=capture.descriptor)
try:
    captures.Capture.open(Path({str(place / "missing")!r}))
except OSError as error:
    print(error)
capture.finish()
'''
    script = place.parent / "program.py"
    script.write_text(program)
    mount = f"mount -t tmpfs -o size=64k tmpfs '{place}' && exec '{sys.executable}' '{script}'"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONUNBUFFERED": "1"}
    done = run("unshare", "--mount", "sh", "-c", mount, env=env, status=None)
    if "mount" in done.stderr:
        pytest.skip(f"nothing can be mounted: {done.stderr.strip()}")
    full = os.strerror(errno.ENOSPC)
    assert done.stdout.splitlines()[:3] == [full, full, "goes on"]
    assert done.returncode == 0


def test_the_end_of_a_huge_log_is_read_alone(
    opened: Callable[[], Capture], stderr: Stderr, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as not_yet:  # or the copier could look between the two
        not_yet.setattr(Capture, "_begin", lambda self: None)
        capture = opened()
    capture._position = size = 10 * 2**30  # as if it had been copied
    os.truncate(capture.path, size)
    capture._begin()
    os.write(capture.descriptor, b"last words\n")
    assert capture.tail() == "last words\n"
    os.write(capture.descriptor, LINES[:120_000])
    assert capture.tail(100) == LINES[120_000 - 96 : 120_000].decode()
    assert capture.tail(0) == ""
    stderr.has(len(b"last words\n") + 120_000)


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"", ""),
        (b"one\ntwo\n", "one\ntwo\n"),
        (b"0123456789", "0123456789"),
        (b"half\nwhole\n", "whole\n"),
        (b"\nwhole line", "whole line"),
        (b"without end", "ithout end"),
        (b"to the end\n", "o the end\n"),
        (b"\0\0\0\0\0\0word\n", "word\n"),
        (b"\xff\xfe\n", "\N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER}\n"),
    ],
)
def test_what_is_told_of_the_end(data: bytes, told: str) -> None:
    assert last_lines(data, 10) == told


def test_whole_lines() -> None:
    assert [whole_lines(data) for data in (b"", b"a", b"a\n", b"a\nb", b"\n\n")] == [0, 0, 2, 2, 2]


# Where there can be none


@pytest.mark.parametrize(
    ("where", "says"),
    [("missing", "No such file or directory"), ("file", "Not a directory")],
)
def test_what_prevents_it_is_told_with_the_path(tmp_path: Path, where: str, says: str) -> None:
    (tmp_path / "file").touch()
    path = re.escape(f"{tmp_path / where}/stderr-{os.getpid()}-")
    with pytest.raises(OSError, match=rf"captured in {path}\d+\.log: {says}; XOSCAR_SUPERVISE_DIR"):
        Capture.open(tmp_path / where)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_directory_that_cannot_be_written_to(place: Path) -> None:
    place.chmod(0o500)
    with pytest.raises(OSError, match="Permission denied; XOSCAR_SUPERVISE_DIR can name another"):
        Capture.open(place)


def test_without_descriptors_there_is_none(place: Path) -> None:
    program = f"""
import os, resource
from pathlib import Path
from xoscar_idle.supervision import capture as captures
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
taken = []
try:
    while True:
        taken.append(os.open(os.devnull, os.O_RDONLY))
except OSError:
    pass
for free in (0, 1):
    try:
        captures.Capture.open(Path({str(place)!r}))
    except OSError as error:
        print(error)
    os.close(taken.pop())
"""
    told = run(sys.executable, "-c", program).stdout.splitlines()
    assert len(told) == 2
    for each in told:
        assert each.endswith(": Too many open files; allow more descriptors (ulimit -n)")
    assert list(place.iterdir()) == []


def test_without_a_thread_there_is_none(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def start(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    with pytest.raises(OSError, match=r"captured in .*\.log: can't start new thread"):
        Capture.open(place)
    assert list(place.iterdir()) == []


def test_a_link_where_it_should_go_is_not_followed(
    place: Path, monkeypatch: pytest.MonkeyPatch, stderr: Stderr
) -> None:
    stderr.begin()
    monkeypatch.setattr(captures, "_numbers", iter([1, 2, 3]))
    target = place.parent / "target"
    target.write_text("untouched")
    (place / f"stderr-{os.getpid()}-1.log").symlink_to(target)
    (place / f"stderr-{os.getpid()}-2.log").write_text("left by one with the same pid")
    capture = Capture.open(place)
    assert capture.path.name == f"stderr-{os.getpid()}-3.log"
    capture.finish()
    assert target.read_text() == "untouched"
    assert len(list(place.iterdir())) == 2


# What others have left


def test_what_nobody_has_open_is_swept(
    place: Path, opened: Callable[[], Capture], caplog: pytest.LogCaptureFixture
) -> None:
    own = opened()
    left = place / f"stderr-{os.getpid()}-123456.log"  # whoever has the pid now
    left.write_text("left")
    foreign = [place / name for name in ("notes.txt", "stderr-1-2.log.gz", "xstderr-1-2.log")]
    for each in foreign:
        each.touch()
    (place / "stderr-1-3.log").symlink_to(foreign[0])
    (place / "stderr-1-4.log").mkdir()
    os.mkfifo(place / "stderr-1-5.log")
    before = set(place.iterdir())
    sweep(place)
    assert before - set(place.iterdir()) == {left}
    assert own.path.exists()
    sweep(place / "missing")
    sweep(foreign[0])
    assert not caplog.records


def test_without_locks_a_pid_tells_whose_it_is(
    place: Path, monkeypatch: pytest.MonkeyPatch, stderr: Stderr
) -> None:
    def flock(*_: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    stderr.begin()
    monkeypatch.setattr(fcntl, "flock", flock)
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait(BOUND)
    left = place / f"stderr-{ended.pid}-1.log"
    left.touch()
    capture = Capture.open(place)
    sweep(place)
    assert list(place.iterdir()) == [capture.path]
    os.write(capture.descriptor, b"all the same\n")
    capture.leave()
    assert capture.path.exists()
    again = Capture.open(place)
    again.finish()
    assert not again.path.exists()
    assert stderr.read() == b"all the same\n"


def test_a_sweep_that_is_quicker_than_the_lock_costs_a_name(
    place: Path, monkeypatch: pytest.MonkeyPatch, stderr: Stderr
) -> None:
    stderr.begin()
    quick = iter([True, False])
    share = captures._share

    def shared(descriptor: int) -> bool:
        if next(quick, False):
            sweep(place)
        return share(descriptor)

    monkeypatch.setattr(captures, "_share", shared)
    capture = Capture.open(place)
    assert list(place.iterdir()) == [capture.path]
    capture.finish()


def test_what_is_not_ours_is_not_adopted(
    place: Path, opened: Callable[[], Capture], tmp_path: Path
) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait(BOUND)
    assert Capture.adopt(ended.pid, place) is None
    with python("sys.stdin.read()") as process:
        assert Capture.adopt(process.pid, place) is None, "a pipe"
    with (tmp_path / "stderr-1-1.log").open("w") as file, leading_to(file.fileno()):
        assert Capture.adopt(os.getpid(), place) is None, "a file elsewhere"
    with (place / "other.log").open("w") as file, leading_to(file.fileno()):
        assert Capture.adopt(os.getpid(), place) is None, "a file of another name"
    capture = opened()
    with leading_to(capture.descriptor):
        assert Capture.adopt(os.getpid(), place) is None, "our own"
    with python("sys.stdin.read()", capture) as process:
        assert Capture.adopt(process.pid, tmp_path) is None, "another directory"
        assert Capture.adopt(process.pid, place) is None, "followed already"
        capture.leave()
        capture.path.rename(place / "renamed")
        assert Capture.adopt(process.pid, place) is None, "renamed meanwhile"
        (place / "renamed").unlink()
        assert Capture.adopt(process.pid, place) is None, "removed meanwhile"
