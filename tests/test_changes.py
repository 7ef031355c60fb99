"""What an operator changes from outside: all or nothing, told, and by nobody else."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import xoscar as xo
from xoscar.backends.router import Router

import xoscar_idle
from xoscar_idle import activation, changes, config, logs, side_channel
from xoscar_idle.connection import exchange, history
from xoscar_idle.telemetry import questions, snapshot

from .support.endpoints import ELSEWHERE
from .support.hosting import pools, worker
from .support.processes import line, started
from .support.programs import missing
from .support.waiting import BOUND, eventually, eventually_here

pytestmark = pytest.mark.integration

PYTEST = "PYTEST_CURRENT_TEST"

TOKEN = "a-secret-of-24-characters"


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where the sockets are, for this test alone."""
    with tempfile.TemporaryDirectory() as directory:
        monkeypatch.setenv("XOSCAR_IDLE_MONITOR", f"{directory}/own")
        yield Path(directory) / "own"


@pytest.fixture
def last(place: Path, caplog: pytest.LogCaptureFixture) -> Iterator[int]:
    """This process is active, and offers a monitor; the number of what has happened last."""
    caplog.set_level(logging.INFO, "xoscar_idle")
    before = {k: v for k, v in os.environ.items() if k != PYTEST}
    xoscar_idle.install(idle_timeout=30)
    yield history.journal.last
    xoscar_idle.uninstall()
    assert {k: v for k, v in os.environ.items() if k != PYTEST} == before
    assert logs.in_force() == "off"


def ask(question: str, pid: int | None = None) -> Any:
    told = side_channel.ask(pid or os.getpid(), question)
    return None if told is None else json.loads(told)


def configure(pid: int | None = None, **given: object) -> Any:
    return ask(f"{changes.CONFIGURE} {json.dumps(given)}", pid)


def noted(last: int) -> list[tuple[str, str]]:
    """By whom, and what."""
    entries = history.journal.since(last)[1]
    return [(each.peer, each.text) for each in entries if each.kind == "operator"]


ME = f"pid {os.getpid()}"


def test_settings_are_changed_and_told(last: int, caplog: pytest.LogCaptureFixture) -> None:
    told = configure(
        idle_timeout="10", XOSCAR_MAX_CONNECTIONS=" auto ", call_timeout_except="a,b_*"
    )
    half = f"{config.current().max_connections}"
    assert told == {
        "changed": {
            "idle_timeout": {"before": "30", "after": "10"},
            "max_connections": {"before": "0", "after": half},
            "call_timeout_except": {"before": None, "after": "a,b_*"},
        }
    }
    assert (config.current().idle_timeout, int(half) > 0) == (10, True)
    assert config.origins()["idle_timeout"] == "operator"
    given = [os.environ[f"XOSCAR_{each}"] for each in ("IDLE_TIMEOUT", "MAX_CONNECTIONS")]
    assert given == ["10", "auto"], "for child processes"
    what = (
        f"idle_timeout=10 (was 30), max_connections={half} (was 0), "
        "call_timeout_except=a,b_* (was default)"
    )
    assert noted(last) == [(ME, what)]
    record = caplog.records[-1]
    assert record.levelno == logging.INFO
    assert record.getMessage() == f"an operator (process {os.getpid()}): {what}"


def test_asked_twice_it_is_the_same(last: int) -> None:
    configure(idle_timeout="10")
    told = configure(idle_timeout="10.0")
    assert told == {"changed": {"idle_timeout": {"before": "10", "after": "10"}}}
    assert [what for _, what in noted(last)] == [
        "idle_timeout=10 (was 30)",
        "idle_timeout=10 (was 10)",
    ]


def test_an_empty_text_is_the_default(last: int) -> None:
    """As in the variable."""
    configure(idle_timeout="10", keepalive_interval="5", retry="a", log="info")
    told = configure(idle_timeout="", keepalive_interval=" ", retry="", log="")
    assert told["changed"] == {
        "idle_timeout": {"before": "10", "after": "30"},
        "keepalive_interval": {"before": "5", "after": None},
        "retry": {"before": "unsent,a", "after": "unsent"},
        "log": {"before": "info", "after": "off"},
    }
    assert config.current() == config.Settings()
    assert "XOSCAR_KEEPALIVE_INTERVAL" not in os.environ


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"idle_timout": "5"}, "unknown setting 'idle_timout'; there are idle_timeout, "),
        ({"IDLE_TIMEOUT": "5"}, "unknown setting 'IDLE_TIMEOUT'"),
        ({"XOSCAR_LOG": "info"}, "unknown setting 'XOSCAR_LOG'"),
        ({"self": "5"}, "unknown setting 'self'"),
        ({"": "5"}, "unknown setting ''"),
        ({"a\nb\x1b[2J": "5"}, r"unknown setting 'a\nb\x1b[2J'"),
        ({"\ud800": "5"}, r"unknown setting '\ud800'"),
        ({"idle_timeout": "-1"}, "idle_timeout must be a finite number of seconds, zero or more"),
        ({"idle_timeout": "5\0"}, r"idle_timeout must be a number of seconds, got '5\x00'"),
        ({"idle_timeout": "5\n6"}, r"idle_timeout must be a number of seconds, got '5\n6'"),
        ({"idle_timeout": 5}, "idle_timeout must be text, as in its variable"),
        ({"idle_timeout": None}, "idle_timeout must be text"),
        ({"idle_timeout": ["5"]}, "idle_timeout must be text"),
        ({"XOSCAR_IDLE_TIMEOUT": "6"}, "idle_timeout is given twice"),
        ({"max_connections": "many"}, "max_connections must be a whole number of connections"),
        ({"supervise": "acts"}, "supervise must be off, observe or act, got 'acts'"),
        ({"supervise_dir": "here"}, "supervise_dir must be the absolute path of a directory"),
        ({"health_token": "short"}, "health_token must be 8 to 1000 visible characters"),
        ({"log": "loud"}, "log must be off, debug, info, warning or error, got 'loud'"),
        ({"log": "info", "XOSCAR_IDLE_LOG": "debug"}, "log is given twice"),
    ],
    ids=lambda each: repr(each)[:40],
)
def test_all_or_nothing(
    last: int, given: dict[str, Any], says: str, caplog: pytest.LogCaptureFixture
) -> None:
    """What is good beside it does not hold either, wherever it stands."""
    before, environment, lines = config.current(), dict(os.environ), len(caplog.records)
    given = {"log": "debug", "idle_timeout": "7", **given, "connect_timeout": "3"}
    told = configure(**given)
    assert told.keys() == {"error"}
    assert told["error"].startswith(says)
    assert told["error"].isprintable()
    assert "short" not in told["error"]
    assert (config.current(), dict(os.environ)) == (before, environment)
    assert logs.in_force() == "off"
    assert noted(last) == []
    assert len(caplog.records) == lines


@pytest.mark.parametrize(
    "text",
    [
        *("", "{", "[]", "null", "7", '"idle_timeout"', "{}{}", '{"idle_timeout": "5"', "idle=5"),
        *("[" * 10_000, '{"a":' * 2500, "9" * 10_000, '{"idle_timeout": NaN}', "\0", "{}\0"),
    ],
    ids=lambda text: text[:20],
)
@pytest.mark.parametrize("question", [changes.CONFIGURE, changes.CLOSE])
def test_what_is_no_question(
    last: int, question: str, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    before, lines = config.current(), len(caplog.records)
    told = ask(f"{question} {text}")
    assert told.keys() == {"error"}
    assert len(told["error"]) < 500
    assert config.current() == before
    assert noted(last) == []
    assert len(caplog.records) == lines
    assert configure(idle_timeout="9")["changed"]["idle_timeout"]["after"] == "9"


def test_nothing_to_change(last: int) -> None:
    assert configure() == {"changed": {}}
    assert noted(last) == []
    assert "error" in ask(changes.CONFIGURE)


# -- secrets ---------------------------------------------------------------------------------------


def test_a_secret_is_shown_to_nobody(last: int, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "xoscar_idle")
    told = [configure(health_token=TOKEN), configure(XOSCAR_HEALTH_TOKEN=f"{TOKEN}-2")]
    hidden = config.HIDDEN
    assert [each["changed"]["health_token"] for each in told] == [
        {"before": None, "after": hidden},
        {"before": hidden, "after": hidden},
    ]
    assert config.current().health_token == f"{TOKEN}-2"
    bad = [configure(health_token=f"{TOKEN} with blanks"), configure(health_tokn=TOKEN)]
    bad.append(ask(f'{changes.CONFIGURE} {{"health_token": "{TOKEN}"'))
    bad.append(ask(f"{changes.CONFIGURE} health_token={TOKEN}"))
    assert all("error" in each for each in bad)
    assert [what for _, what in noted(last)] == [
        f"health_token={hidden} (was default)",
        f"health_token={hidden} (was {hidden})",
    ]
    seen = f"{told} {bad} {caplog.text} {history.journal.since(0)} {snapshot.ask(os.getpid())}"
    assert TOKEN not in seen
    configure(health_token="")


# -- the log ---------------------------------------------------------------------------------------


def test_the_log_is_written_from_another_level_on(
    place: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    ours = logging.getLogger("xoscar_idle")
    before = ours.level
    xoscar_idle.install(idle_timeout=30)
    try:
        for level in ("debug", "info", "error", "debug", "warning", "info"):
            assert configure(log=level)["changed"]["log"]["after"] == level
            assert (logs.in_force(), os.environ[logs.LOG]) == (level, level)
            for each in logs.LEVELS:
                ours.log(logging.getLevelName(each.upper()), "at %s %s", level, each)
            shown = [text for text in capfd.readouterr().err.splitlines() if f"at {level} " in text]
            wanted = logs.LEVELS[logs.LEVELS.index(level) :]
            assert [text.rpartition(" ")[2] for text in shown] == list(wanted)
        assert configure(log="off")["changed"]["log"] == {"before": "info", "after": "off"}
        assert os.environ[logs.LOG] == "off"
        assert ours.level == before
        ours.info("no more")
        assert "no more" not in capfd.readouterr().err
        configure(log="debug")
    finally:
        xoscar_idle.uninstall()
    assert logs.LOG not in os.environ
    assert ours.level == before
    assert not [each for each in ours.handlers if isinstance(each, logs.Console)]


def test_a_level_of_the_program_is_never_raised(last: int) -> None:
    ours = logging.getLogger("xoscar_idle")
    ours.setLevel(logging.INFO)
    configure(log="error")
    assert ours.level == logging.INFO, "its own handlers have the lines as before"
    configure(log="debug")
    assert ours.level == logging.DEBUG
    configure(log="warning")
    assert ours.level == logging.INFO


# -- injection -------------------------------------------------------------------------------------


def test_a_second_line_is_no_second_question(last: int) -> None:
    both = [f"{changes.CONFIGURE} " + json.dumps({"idle_timeout": text}) for text in ("5", "6")]
    assert ask("\n".join(both)) == {"changed": {"idle_timeout": {"before": "30", "after": "5"}}}
    assert configure(idle_timeout="5")["changed"]["idle_timeout"]["before"] == "5"


@pytest.mark.parametrize("end", ["\n", "\r", "\u2028", "\x1b[2K", "\x85"])
def test_a_value_is_told_on_one_line(
    last: int, end: str, capfd: pytest.CaptureFixture[str]
) -> None:
    path = f"/tmp/a{end}2026-01-01 xoscar_idle[1] INFO an operator (process 1): all is well"
    configure(log="info")
    capfd.readouterr()
    told = configure(supervise_dir=path)
    assert told["changed"]["supervise_dir"] == {"before": None, "after": path}
    (_, (by, what)) = noted(last)
    assert by == ME
    assert what.isprintable()
    assert what.startswith("supervise_dir='/tmp/a\\")
    *lines, rest = capfd.readouterr().err.split("\n")
    assert rest == ""
    assert all(each.isprintable() for each in lines)
    starts = [each.partition("INFO ")[2].partition(" ")[0] for each in lines]
    assert starts == ["reconfigured", "an"], "a line each"


def test_a_peer_is_told_on_one_line(last: int) -> None:
    told = ask(f"{changes.CLOSE} {json.dumps({'peer': 'a' + chr(10) + 'b'})}")
    assert told.keys() == {"error"}
    assert told["error"].isprintable()
    assert noted(last) == []


def test_a_long_value_is_cut_short_where_it_is_told(last: int) -> None:
    configure(supervise_dir="/" + 1000 * "long")
    ((_, what),) = noted(last)
    assert len(what) < 100


# -- who has gone, and who is too many -------------------------------------------------------------


@pytest.mark.parametrize("at", [1, 20, 40, -2, -1])
def test_half_a_question_changes_nothing(last: int, place: Path, at: int) -> None:
    whole = f'{changes.CONFIGURE} {{"idle_timeout": "5"}}\n'.encode()
    for _ in range(20):
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(BOUND)
            sock.connect(f"{place / str(os.getpid())}.sock")
            sock.sendall(whole[:at])
    assert configure()["changed"] == {}
    assert config.current().idle_timeout == 30
    assert noted(last) == []


def test_very_many_who_do_not_mean_it(last: int, place: Path) -> None:
    path = f"{place / str(os.getpid())}.sock"
    question = f'{changes.CONFIGURE} {{"idle_timeout": "5"}}\n'.encode()
    rubbish = [
        b"",
        question[:-1],
        question[:-2] + b"\n",
        question.replace(b"5", b"\xff"),
        question.replace(b"5", b"5\0"),
        question.replace(b"configure", b"configured"),
        question.replace(b" configure", b""),
        b" " + question,
        question[:-1] + b" " * side_channel.LONGEST_QUESTION,
        question[:-1] + b" " * side_channel.LONGEST_QUESTION + b"\n" + question,
    ]
    for number in range(10_000):
        with socket.socket(socket.AF_UNIX) as sock, contextlib.suppress(ConnectionError):
            sock.settimeout(BOUND)
            side_channel._connect(sock, Path(path))
            sock.sendall(rubbish[number % len(rubbish)])
    assert configure(connect_timeout="7")["changed"]["connect_timeout"]["after"] == "7"
    assert config.current().idle_timeout == 30
    assert len(noted(last)) == 1


def test_very_many_at_once(last: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is told what was before it, and there is one after the other."""
    monkeypatch.setattr(side_channel, "TIMEOUT", BOUND)
    at_once, told = threading.Barrier(200), list[Any]()

    def change(number: int) -> None:
        at_once.wait(BOUND)
        told.append(configure(idle_timeout=f"{number}"))

    asking = [threading.Thread(target=change, args=(100 + number,)) for number in range(200)]
    for each in asking:
        each.start()
    for each in asking:
        each.join(BOUND)
    steps = [each["changed"]["idle_timeout"] for each in told]
    then = {each["before"]: each["after"] for each in steps}
    assert len(then) == len(steps) == 200
    at = "30"
    for _ in range(200):
        at = then.pop(at)
    assert at == f"{config.current().idle_timeout:g}" == os.environ["XOSCAR_IDLE_TIMEOUT"]
    assert len(noted(last)) == 200


# -- who may, and over what ------------------------------------------------------------------------

NOBODY = """
import os, socket, sys
os.setgroups([]); os.setgid(65534); os.setuid(65534)
for question in sys.argv[2:]:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(60)
        sock.connect(sys.argv[1])  # from the working directory, to which no path leads
        try:
            sock.sendall(question.encode() + b"\\n")
            print(sock.recv(100), flush=True)
        except ConnectionError:
            print(b"", flush=True)
"""


def test_another_user_changes_nothing(
    last: int, place: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even where somebody has opened the directory; it is refused, logged, and in the history."""
    if os.geteuid() != 0:
        missing("only root can be somebody else")
    monkeypatch.setattr(side_channel, "_warned_of", set())
    monkeypatch.setattr(changes, "_refused_at", {})
    place.chmod(0o755)
    (place / f"{os.getpid()}.sock").chmod(0o666)
    asked = [f'{changes.CONFIGURE} {{"idle_timeout": "5"}}', f'{changes.CLOSE} {{"peer": "*"}}']
    command = (sys.executable, "-c", NOBODY, f"{os.getpid()}.sock", *asked, *asked)
    before = config.current()
    with started(*command, cwd=place) as process:
        assert [line(process) for _ in range(4)] == ["b''"] * 4
        eventually(lambda: noted(last))
        place.chmod(0o700)
        assert configure()["changed"] == {}
    assert config.current() == before
    told = "refused: it is a process of user 65534"
    assert noted(last) == [(f"pid {process.pid}", told)], "once"
    warnings = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert warnings[0].startswith(f"process {process.pid} of user 65534 is not answered")


def test_refusals_do_not_fill_the_history(last: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(changes, "_refused_at", {})
    for pid in range(1, 1001):
        changes._refused(pid, 7)
        changes._refused(pid, 8)
    assert [what for _, what in noted(last)] == [
        f"refused: it is a process of user {uid}" for uid in (7, 8)
    ]
    monkeypatch.setattr(changes, "REFUSED_EVERY", 0)
    changes._refused(0, 7)
    assert noted(last)[-1] == ("", "refused: it is a process of user 7")


async def test_it_cannot_be_asked_over_xoscar(last: int) -> None:
    """Whoever reaches the port of a pool could."""
    pool = await xo.create_actor_pool(ELSEWHERE, n_process=0)
    try:
        router = Router.get_instance_or_empty()
        for question in (
            f'{changes.CONFIGURE} {{"idle_timeout": "5"}}',
            f'{changes.CLOSE} {{"peer": "*", "accepted": true, "now": true}}',
        ):
            assert questions.answer(question) is None
            told = await exchange.ask(router, pool.external_address, question, BOUND)
            assert not isinstance(told, str), "the pool tells its configuration"
        await eventually_here(lambda: not xoscar_idle.accepted())
        assert xoscar_idle.statistics().accepted_closed["operator"] == 0
        assert config.current().idle_timeout == 30
        assert noted(last) == []
    finally:
        await pool.stop()


def test_where_it_is_not_active_there_is_nothing_to_change(last: int) -> None:
    xoscar_idle.uninstall()
    snapshot.offer()
    why = "xoscar-idle is not active in it: "
    assert configure(idle_timeout="5")["error"].startswith(why)
    assert configure(log="debug")["error"].startswith(why)
    assert ask(f'{changes.CLOSE} {{"peer": "*"}}')["error"].startswith(why)
    assert config.current() == config.Settings()
    assert (logs.in_force(), logs.LOG in os.environ) == ("off", False)


def test_a_program_that_just_changes_something_is_not_waited_for(
    last: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be about to stop the thread that answers, and wait for that."""
    monkeypatch.setattr(activation, "PATIENCE", 0.01)
    held, go_on = threading.Event(), threading.Event()

    def change() -> None:
        with activation._lock:
            held.set()
            go_on.wait(BOUND)

    thread = threading.Thread(target=change)
    thread.start()
    try:
        assert held.wait(BOUND)
        error = "its program just changes something itself: try again"
        assert configure(idle_timeout="5", log="debug") == {"error": error}
    finally:
        go_on.set()
        thread.join(BOUND)
    assert (config.current().idle_timeout, logs.in_force()) == (30, "off")
    assert configure(idle_timeout="5")["changed"]["idle_timeout"]["after"] == "5"


def test_a_failure_of_ours_is_told_and_costs_a_warning(
    last: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (connection, *_) = activation.parts()

    def apply(before: config.Settings) -> None:
        raise OSError("broken")

    monkeypatch.setattr(connection, "apply", apply)
    assert configure(idle_timeout="5") == {"error": "it could not be done: broken"}
    (record,) = [each for each in caplog.records if each.levelno == logging.WARNING]
    assert record.getMessage() == "what an operator wanted could not be done"


# -- where it is done ------------------------------------------------------------------------------


def test_what_governs_supervision_is_changed_as_in_code(place: Path) -> None:
    """Also from the thread that does the looking; sub-pools that are started then have it, too."""
    with pools(1, 1, XOSCAR_IDLE_TIMEOUT="30") as hosted:
        for value in ("observe", "act", "off", "act"):
            told = configure(hosted.pid, supervise=value, watchdog="0", hang_timeout="50")
            assert told["changed"]["supervise"]["after"] == value
            assert side_channel.ask(hosted.pid, snapshot.QUESTION) is not None

        async def main() -> None:
            first, second = [await worker(each) for each in hosted.addresses]
            assert (await first.settings())["supervise"] == "act"
            assert (await second.settings())["supervise"] == "off", "it was started before"
            assert await first.environment("XOSCAR_SUPERVISE") == "act"

        asyncio.run(main())


def test_a_forked_child_is_changed_by_itself(place: Path) -> None:
    forks = """
import os, sys, time
import xoscar
pid = os.fork()
if not pid:
    print(os.getpid(), flush=True)
    time.sleep(600)
sys.stdin.read()
"""
    variables = {"XOSCAR_IDLE_TIMEOUT": "30"}
    with started(sys.executable, "-c", forks, env=os.environ | variables) as process:
        child = int(line(process))
        eventually(lambda: side_channel.offered() == sorted([process.pid, child]))
        assert configure(child, idle_timeout="5")["changed"]["idle_timeout"]["after"] == "5"
        told = configure(process.pid, idle_timeout="6")
        assert told["changed"]["idle_timeout"] == {"before": "30", "after": "6"}


def test_it_is_done_where_there_are_no_descriptors_left(place: Path) -> None:
    """That is when connections are to be closed."""
    exhaust = """
import os, resource, sys
import xoscar
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
taken = []
try:
    while True:
        taken.append(os.open(os.devnull, os.O_RDONLY))
except OSError:
    print('ready', flush=True)
sys.stdin.read()
"""
    variables = {"XOSCAR_IDLE_TIMEOUT": "30"}
    with started(sys.executable, "-c", exhaust, env=os.environ | variables) as process:
        assert line(process) == "ready"
        told = ask(f'{changes.CLOSE} {{"peer": "*"}}', process.pid)
        assert told == {"error": "it has no connection open", "none": True}
        told = configure(process.pid, max_connections="auto", log="debug")
        assert told["changed"]["max_connections"] == {"before": "0", "after": "32"}
