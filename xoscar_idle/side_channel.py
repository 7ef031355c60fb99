"""The local socket over which a process answers the user it belongs to.

There is none unless ``XOSCAR_IDLE_MONITOR`` is set, to 1 or to a directory for it. The side thread
serves it, so it answers when the program's event loops are blocked, and when the process is out of
descriptors. Whoever connects sends one line, the question, and gets one line, the answer
that has been registered for it with :func:`answer`. Half a line is no question: it may be the half
of one that means something else. Who has gone before its turn has come is not answered: what it
wanted is not done behind its back.

The socket is ``PID.sock`` in a directory that only its owner can enter. What a killed process
leaves there is removed by the next one that looks.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import select
import socket
import stat
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import psutil

from . import descriptors, logs, side_thread, values
from .locks import process_lock

logger = logging.getLogger("xoscar_idle")

MONITOR = "XOSCAR_IDLE_MONITOR"

TIMEOUT = 2.0
"""Seconds within which the other side must read or answer."""

AVAILABLE = hasattr(socket, "AF_UNIX")
"""Whether the platform has unix sockets; Python on Windows has none."""


QUESTION_TIMEOUT = TIMEOUT / 2
"""Seconds for a whole question, so that who comes next is still answered in time."""

LONGEST_QUESTION = 16 * 1024
"""Bytes of a question, with the end of its line; what is longer is none."""

PRIVATE = "a directory that belongs to this user alone, with mode 700"

LONGEST_PATH = 107 if sys.platform == "linux" else 103
"""Bytes of the path of a unix socket: ``sun_path`` less the zero at its end."""


def wanted(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether the environment asks for the socket.

    Raises
    ------
    ValueError
        The variable is set to something that is neither yes nor no nor a directory.
    """
    value = environ.get(MONITOR, "").strip()
    if value.lower() in ("1", "on") or value.startswith("/"):
        return True
    if value.lower() in ("", "0", "off"):
        return False
    raise ValueError(
        f"{MONITOR}={values.shown(value)} is neither 1 nor 0 nor the absolute path of a directory"
    )


# Where the sockets are


def own_directory(environ: Mapping[str, str] = os.environ) -> Path | None:
    """The directory that the environment names: the only one then; None if it names none."""
    value = environ.get(MONITOR, "").strip()
    return Path(value) if value.startswith("/") else None


def directories() -> list[Path]:
    """Where sockets can be, the preferred place first.

    There are several: a service and the shell of its operator often differ in ``XDG_RUNTIME_DIR``
    and ``TMPDIR``.
    """
    own = own_directory()
    if own is not None:
        return [own]
    places = in_temporary()
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime and is_private(Path(runtime)):
        places.insert(0, Path(runtime) / "xoscar-idle")
    return places


def in_temporary() -> list[Path]:
    """Where something of this user can be among temporary files, the preferred place first."""
    temporary = ["/tmp"]
    with contextlib.suppress(OSError):  # none can be written to
        found = tempfile.gettempdir()
        # The last that Python tries is the working directory, another one for each who looks.
        if found != os.getcwd() or found == os.environ.get("TMPDIR"):
            temporary.insert(0, found)
    places = [Path(place) / f"xoscar-idle-{os.geteuid()}" for place in temporary]
    return list(dict.fromkeys(places))


def directory() -> Path:
    """Where this process can put a socket, made if need be.

    Raises
    ------
    OSError
        There is no such place; the message names each that was tried, and what is wrong with it.
    """
    complaints = []
    for place in directories():
        wrong = _wrong_for_socket(place)
        if wrong is None:
            return place
        complaints.append(f"{place} {wrong}")
    remedy = "" if own_directory() else f"; {MONITOR} can name another directory"
    raise OSError("; ".join(complaints) + remedy)


def _wrong_for_socket(place: Path) -> str | None:
    """Why ``place``, which is made if need be, is none for a socket; None if it is one."""
    if len(os.fsencode(_path(place))) > LONGEST_PATH:
        return f"is too long: the path of a unix socket has {LONGEST_PATH} bytes at most"
    return wrong_with(place)


def wrong_with(place: Path) -> str | None:
    """Why ``place``, which is made if need be, cannot be this user's alone; None if it can."""
    try:
        place.mkdir(0o700)
    except FileExistsError:
        pass
    except OSError as error:
        return f"cannot be made: {error.strerror}"
    if not is_private(place):
        return f"is not {PRIVATE}"
    if not os.access(place, os.W_OK | os.X_OK):
        return "cannot be written to"
    return None


def _path(directory: Path) -> Path:
    return directory / f"{os.getpid()}.sock"


def is_private(directory: Path) -> bool:
    """Whether it is a directory, no link to one, and closed to all but this user."""
    try:
        found = directory.lstat()
    except OSError:
        return False
    ours = stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid()
    return ours and not stat.S_IMODE(found.st_mode) & 0o077


def offered() -> list[int]:
    """The processes of this user that offer a socket; what dead ones left is removed."""
    if not AVAILABLE:
        return []
    private = [place for place in directories() if is_private(place)]
    for place in private:
        _sweep(place)
    return sorted({pid for place in private for pid, _ in _sockets(place)})


def _sockets(directory: Path) -> Iterator[tuple[int, Path]]:
    for path in directory.glob("*.sock"):
        pid = values.whole(path.stem)
        if pid is not None:
            yield pid, path


def _sweep(directory: Path) -> None:
    for pid, path in _sockets(directory):
        # A process of another container has no pid here, but it answers.
        if not psutil.pid_exists(pid) and _refuses(path):
            logger.debug("remove %s: process %d has ended", path, pid)
            path.unlink(missing_ok=True)


def _refuses(path: Path) -> bool:
    with _unix_socket() as sock:
        try:
            sock.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return True
        except OSError:
            pass
        return False


def _unix_socket() -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.settimeout(TIMEOUT)
    return sock


def _foreign_peer(sock: socket.socket) -> tuple[int, int] | None:
    """The process and the user of the other side, if it does not run as this user.

    Where the kernel does not tell, modes guard.
    """
    peer = descriptors.peer_credentials(sock)
    return None if peer is None or peer[1] == os.geteuid() else peer


# Asking


def ask(pid: int, question: str) -> bytes | None:
    """The answer of process ``pid``, a line; None if it offers no socket, or knows none.

    Raises
    ------
    TimeoutError
        It does not answer.
    """
    if not AVAILABLE:
        return None
    for place in directories():
        if not is_private(place):
            continue
        with _unix_socket() as sock:
            try:
                _connect(sock, place / f"{pid}.sock")
                if _foreign_peer(sock) is not None:
                    continue
                sock.sendall(question.encode() + b"\n")
                with sock.makefile("rb") as lines:
                    line = lines.readline()
            except TimeoutError:
                raise TimeoutError(f"process {pid} did not answer in {TIMEOUT:g} s") from None
            except OSError:  # nothing there, or it ends just now
                continue
            if line.endswith(b"\n"):
                return line
    return None


def _connect(sock: socket.socket, path: Path) -> None:
    """Connect, within :data:`TIMEOUT`: the kernel does not wait for a place among those waiting."""
    until = time.monotonic() + TIMEOUT
    while True:
        try:
            sock.connect(str(path))
            return
        except BlockingIOError:
            if time.monotonic() >= until:
                raise TimeoutError from None
            time.sleep(0.01)


# Answering

_answers: dict[str, Callable[[str], str]] = {}


def answer(question: str, with_: Callable[[str], str]) -> None:
    """Answer ``question``, one line, with what ``with_`` returns for it, one line, in our thread.

    Where it ends with a space, it stands for all that begin so.
    """
    _answers[question] = with_


_asker: int | None = None


def asker() -> int | None:
    """The process that asks, while it is being answered; None: the kernel does not tell.

    It does not tell of one in another container.
    """
    return _asker


_refused: Callable[[int, int], None] | None = None
_warned_of: set[int] = set()


def on_refused(function: Callable[[int, int], None]) -> None:
    """Call ``function``, in our thread, with the process and the user of each who is refused.

    Only root gets as far as that: the directory is closed to all others.
    """
    global _refused
    _refused = function


class _Channel:
    """The socket of this process."""

    def __init__(self) -> None:
        self._socket, self.path = _listen()
        self._spare: int | None = os.open(os.devnull, os.O_RDONLY)
        self._stopping = False
        self._served: socket.socket | None = None
        side_thread.wait_for(self)

    def stop(self) -> None:
        """Remove the socket."""
        self._stopping = True
        if (served := self._served) is not None:
            with contextlib.suppress(OSError):  # it has just been closed
                served.shutdown(socket.SHUT_RDWR)
        side_thread.leave()
        self.path.unlink(missing_ok=True)
        self.close()

    def wake(self) -> None:
        """Let :meth:`serve` return."""
        with contextlib.suppress(OSError), _unix_socket() as sock:
            sock.connect(str(self.path))

    def close(self) -> None:
        """Close the descriptors: all there is to do in a forked child, where no thread runs."""
        self._socket.close()
        self._release_spare()

    def serve(self, timeout: float | None) -> None:
        """Answer the next one that asks within ``timeout`` seconds."""
        try:
            self._socket.settimeout(timeout)
            connection, _ = self._socket.accept()
        except (TimeoutError, BlockingIOError):
            return
        except OSError:
            # Out of descriptors is when somebody looks: the spare one serves them.
            if not self._release_spare():
                time.sleep(TIMEOUT if timeout is None else min(timeout, TIMEOUT))
            return
        with connection:
            self._served = connection
            if not self._stopping:
                try:
                    _answer(connection)
                except Exception as error:  # above all: who asked has gone, or does not read
                    # Not its repr, which has all that was asked where that is no text.
                    logger.debug("the side channel could not answer: %s", logs.one_line(error))
        self._keep_spare()

    def _release_spare(self) -> bool:
        spare, self._spare = self._spare, None
        if spare is None:
            return False
        os.close(spare)
        return True

    def _keep_spare(self) -> None:
        if self._spare is None:
            with contextlib.suppress(OSError):
                self._spare = os.open(os.devnull, os.O_RDONLY)


def _listen() -> tuple[socket.socket, Path]:
    place = directory()
    _sweep(place)
    path = _path(place)
    path.unlink(missing_ok=True)  # of a dead process that had our number
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.bind(str(path))
        path.chmod(0o600)
        sock.listen()
    except BaseException as error:
        sock.close()
        if isinstance(error, OSError):
            raise OSError(f"{path}: {error.strerror or error}") from None
        raise
    return sock, path


def _answer(connection: socket.socket) -> None:
    try:
        if (peer := _foreign_peer(connection)) is not None:
            _refuse(*peer)
            return
        question = _question(connection)
        if question is None:
            return
        known = _answers.get(question) or _answers.get(_beginning(question))
        if known is not None and not _has_gone(connection):
            told = _told(known, question, descriptors.peer_credentials(connection))
            connection.settimeout(TIMEOUT)
            connection.sendall(told.encode() + b"\n")
    finally:
        # Not only close: a child forked meanwhile has a copy.
        with contextlib.suppress(OSError):  # the other side has gone
            connection.shutdown(socket.SHUT_RDWR)


def _told(known: Callable[[str], str], question: str, peer: tuple[int, int] | None) -> str:
    global _asker
    _asker = (peer[0] or None) if peer is not None else None
    try:
        return known(question)
    finally:
        _asker = None


def _has_gone(connection: socket.socket) -> bool:
    """Whether the other side has closed it, as who asked a process that was stopped since then.

    One that has only ended its own half waits for the answer.
    """
    if not hasattr(select, "poll"):
        return False
    poll = select.poll()
    poll.register(connection, 0)  # a hang-up is told unasked
    return bool(poll.poll(0))


def _refuse(pid: int, uid: int) -> None:
    """Somebody else asks: what, is not read."""
    if uid not in _warned_of:
        _warned_of.add(uid)
        logger.warning(
            "process %d of user %d is not answered: the monitor answers its own user, %d, alone",
            *(pid, uid, os.geteuid()),
        )
    if _refused is not None:
        _refused(pid, uid)


def _beginning(question: str) -> str:
    """Its first two words, and the space behind them."""
    return "".join(f"{word} " for word in question.split(" ", 2)[:2])


def _question(connection: socket.socket) -> str | None:
    """What is asked, without the end of the line, if that has come; others wait meanwhile."""
    until, received = time.monotonic() + QUESTION_TIMEOUT, b""
    while b"\n" not in received and len(received) < LONGEST_QUESTION:
        connection.settimeout(max(0.001, until - time.monotonic()))
        if not (more := connection.recv(LONGEST_QUESTION - len(received))):
            break
        received += more
    line, end, _ = received.partition(b"\n")
    return line.decode() if end else None


_lock = process_lock()
_channel: _Channel | None = None


def start() -> None:
    """Offer the socket, if the environment asks for it; what prevents it costs one warning."""
    global _channel
    with _lock:
        try:
            if _channel is not None or not wanted():
                return
            if not AVAILABLE:
                raise OSError("Python has no unix sockets on this platform")
            _channel = _Channel()
            atexit.register(stop)
            logger.debug("offer %s", _channel.path)
        except (OSError, RuntimeError, ValueError) as error:
            logger.warning("no monitor: %s", error)


def stop() -> None:
    """Remove the socket, if there is one."""
    global _channel
    with _lock:
        channel, _channel = _channel, None
        if channel is not None:
            atexit.unregister(stop)
            channel.stop()


def after_fork() -> None:
    """A child offers its own socket; that of its parent stays where it is."""
    global _channel
    inherited, _channel = _channel, None
    if inherited is not None:
        with contextlib.suppress(OSError):
            inherited.close()
        start()
