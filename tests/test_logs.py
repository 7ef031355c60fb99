"""Where our lines go, in processes of their own."""

from __future__ import annotations

import logging
import re
import subprocess
import sys

import pytest

from xoscar_idle import logs

from .support import processes
from .support.environment import environment

pytestmark = pytest.mark.integration

START = """
import logging, sys
from xoscar_idle import logs
ours = logging.getLogger("xoscar_idle")
{before}
logs.start()
logs.start()
{after}
ours.debug("a debug line")
ours.warning("a warning")
{end}
"""


def run(
    level: str | None, before: str = "", after: str = "", end: str = ""
) -> subprocess.CompletedProcess[str]:
    variables = {} if level is None else {"XOSCAR_IDLE_LOG": level}
    program = START.format(before=before, after=after, end=end)
    done = processes.run(sys.executable, "-c", program, env=environment(**variables))
    assert "Traceback" not in done.stderr
    return done


@pytest.mark.parametrize(
    ("level", "debug", "warning"),
    [
        (None, 0, 1),
        ("", 0, 1),
        ("off", 0, 1),
        ("debug", 1, 1),
        (" DEBUG ", 1, 1),
        ("info", 0, 1),
        ("warning", 0, 1),
        ("error", 0, 0),
    ],
)
def test_lines_from_a_level_on(level: str | None, debug: int, warning: int) -> None:
    done = run(level)
    assert done.stdout == ""
    assert done.stderr.count("a debug line") == debug
    assert done.stderr.count("a warning") == warning
    if debug:
        line = r"^\d{4}-\S+ \S+ xoscar_idle\[\d+\] DEBUG a debug line$"
        assert re.search(line, done.stderr, re.MULTILINE)


def test_a_bad_level_costs_one_warning() -> None:
    done = run("verbose" * 100)
    assert (
        done.stderr.count("is ignored: it must be debug, info, warning, error") == 2
    )  # two starts
    assert "a debug line" not in done.stderr
    assert max(map(len, done.stderr.splitlines())) < 200


ROOT_CONSOLE = "logging.basicConfig(level='DEBUG', format='theirs: %(message)s')"


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_console_of_the_program_has_them_once(when: str) -> None:
    done = run("debug", **{when: ROOT_CONSOLE})
    assert done.stderr.splitlines() == ["theirs: a debug line", "theirs: a warning"]


def test_a_console_that_is_less_talkative_gets_the_rest_of_us() -> None:
    done = run("debug", "logging.basicConfig(); logging.root.handlers[0].setLevel('WARNING')")
    assert done.stderr.count("a debug line") == done.stderr.count("a warning") == 1


ONLY_ITS_OWN = """
import logging.config
logging.config.dictConfig({
    "version": 1,
    "disable_existing_loggers": False,
    "filters": {"own": {"name": "program"}},
    "handlers": {
        "console": {"class": "logging.StreamHandler", "filters": ["own"]},
        "file": {"class": "logging.FileHandler", "filename": "/dev/stdout"},
    },
    "root": {"handlers": ["console", "file"], "level": "INFO"},
})
"""


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_console_that_passes_only_loggers_that_it_knows(when: str) -> None:
    """As Xinference's; its file has them beside."""
    done = run("debug", **{when: ONLY_ITS_OWN})
    assert done.stderr.count("a debug line") == done.stderr.count("a warning") == 1
    assert done.stdout.count("a warning") == 1


def test_what_is_stderr_by_then() -> None:
    done = run("debug", after="sys.stderr = sys.stdout")
    assert done.stdout.count("a debug line") == 1
    run("debug", after="sys.stderr = None")


def test_stop_takes_it_off_again() -> None:
    end = """
logs.stop()
logs.stop()
assert ours.level == logging.NOTSET and not ours.handlers
ours.debug("no more")
logs.start()
ours.debug("once more")
"""
    done = run("debug", end=end)
    assert "no more" not in done.stderr
    assert done.stderr.count("once more") == 1


def test_a_level_of_the_program_is_not_raised() -> None:
    before = f"{ROOT_CONSOLE}; ours.setLevel('DEBUG')"
    done = run("error", before, end="logs.stop(); assert ours.level == logging.DEBUG")
    assert done.stderr.splitlines() == ["theirs: a debug line", "theirs: a warning"]


@pytest.mark.parametrize("level", logs.LEVELS)
def test_levels_are_those_of_logging(level: str) -> None:
    assert isinstance(logging.getLevelName(level.upper()), int)


def with_info(program: str) -> subprocess.CompletedProcess[str]:
    """What the program prints where our lines are asked for."""
    return processes.run(sys.executable, "-c", program, env=environment(XOSCAR_IDLE_LOG="info"))


def test_a_filter_that_keeps_count_is_not_asked_for_ours() -> None:
    program = """
import logging, sys
seen = set()
def once(record):
    new = record.getMessage() not in seen
    seen.add(record.getMessage())
    return new
handler = logging.StreamHandler(sys.stderr)
handler.setFormatter(logging.Formatter("PROGRAM %(message)s"))
handler.addFilter(once)
logging.getLogger().addHandler(handler)
from xoscar_idle import logs
logs.start()
logging.getLogger("xoscar_idle").warning("a peer fell silent")
"""
    done = with_info(program)
    assert "PROGRAM a peer fell silent\n" in done.stderr


def test_what_goes_to_stdout_elsewhere_goes_to_stderr_too() -> None:
    program = """
import logging, sys
logging.basicConfig(stream=sys.stdout, level="INFO")
from xoscar_idle import logs
logs.start()
logging.getLogger("xoscar_idle").warning("a peer fell silent")
"""
    done = with_info(program)
    assert "a peer fell silent" in done.stdout
    assert "a peer fell silent" in done.stderr
