"""Crash records in files: where they are, that they are whole, and what prevents them."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from xoscar_idle import side_channel
from xoscar_idle.config import Settings
from xoscar_idle.supervision import records
from xoscar_idle.supervision.record import CrashRecord

from ..support.processes import run

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="no private directories here")

IS_ROOT = sys.platform != "win32" and os.geteuid() == 0

RECORD = CrashRecord("10.0.0.7:41235", 4711, 1700000000.25, exit_code=-9, signal="SIGKILL")
NAME = "crash-1700000000250-4711.json"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the records are, for this test alone; nothing has been warned of yet."""
    monkeypatch.setenv("XOSCAR_SUPERVISE_DIR", f"{tmp_path / 'own'}")
    monkeypatch.setattr(records, "_warned", set())
    return tmp_path / "own"


def written(record: CrashRecord = RECORD) -> Path:
    path = records.write(record)
    assert path is not None
    return Path(path)


def names(place: Path) -> list[str]:
    return sorted(path.name for path in place.iterdir())


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


# Where they are


def test_the_variable_names_the_place(tmp_path: Path) -> None:
    place = tmp_path / "a" / "b" / "c"
    assert records.directory({"XOSCAR_SUPERVISE_DIR": f" {place} ", "HOME": "/"}) == place
    assert [mode(each) for each in (place, *place.parents[:2])] == [0o700] * 3


@pytest.mark.parametrize("value", ["a/b", "1", "~/crashes", "./x"])
def test_a_place_that_depends_on_where_one_is(value: str) -> None:
    environ = {"XOSCAR_SUPERVISE_DIR": value}
    says = f"XOSCAR_SUPERVISE_DIR='{value}' is not the absolute path of a directory"
    with pytest.raises(ValueError, match=f"^{says}$"):
        records.directory(environ)
    assert records.read_all(environ) == ([], [says])


def test_without_the_variable_it_is_among_the_state_of_the_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, state, temporary = (tmp_path / name for name in ("home", "state", "tmp"))
    home.mkdir()
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", f"{temporary}")
    last = temporary / f"xoscar-idle-{os.geteuid()}"
    both = {"HOME": f"{home}", "XDG_STATE_HOME": f"{state}"}
    assert records.directory(both) == state / "xoscar-idle"
    assert mode(state) == mode(state / "xoscar-idle") == 0o700
    for environ in ({"HOME": f"{home}"}, {**both, "XDG_STATE_HOME": "relative"}):
        assert records.directory(environ) == home / ".local/state/xoscar-idle"
        assert mode(home / ".local") == 0o700
    for gone in (f"{home / 'gone'}", "relative"):
        assert records.directory({"HOME": gone}) == last
    (temporary / "file").touch()
    assert records.directory({"XDG_STATE_HOME": f"{temporary / 'file'}"}) == last


def test_a_user_without_a_home_that_the_environment_knows() -> None:
    pwd = pytest.importorskip("pwd")
    try:
        home = Path(pwd.getpwuid(os.geteuid()).pw_dir)
    except KeyError:
        pytest.skip("this user has no name")
    expected = [home / ".local/state/xoscar-idle"]
    if not home.exists() or home.stat().st_uid != os.geteuid():
        expected = []
    assert records.directories({})[:-1] == (expected + side_channel.in_temporary())[:-1]


@pytest.mark.skipif(not IS_ROOT, reason="only root can give a directory away")
def test_the_home_of_another_user_is_not_used(tmp_path: Path) -> None:
    """As with sudo, which may leave the variable as it was."""
    os.chown(tmp_path, 65534, 65534)
    assert not any(
        tmp_path in each.parents for each in records.directories({"HOME": f"{tmp_path}"})
    )


def link(place: Path) -> None:
    (place.parent / "elsewhere").mkdir(0o700)
    place.symlink_to(place.parent / "elsewhere")


def opened(place: Path) -> None:
    place.mkdir()
    place.chmod(0o750)


def given_away(place: Path) -> None:
    if not IS_ROOT:
        pytest.skip("only root can give a directory away")
    place.mkdir(0o700)
    os.chown(place, 65534, 65534)


@pytest.mark.parametrize("make", [link, opened, given_away, Path.touch])
def test_a_place_that_is_not_this_users_alone_is_refused(
    place: Path, caplog: pytest.LogCaptureFixture, make: Callable[[Path], None]
) -> None:
    make(place)
    says = f"{place} is not a directory that belongs to this user alone, with mode 700"
    with pytest.raises(OSError, match=f"^{says}; XOSCAR_SUPERVISE_DIR can name another directory$"):
        records.directory()
    assert records.write(RECORD) is None
    (warning,) = caplog.records
    assert warning.getMessage().startswith(f"no crash record: {says}; ")
    assert records.read_all() == ([], [says])
    assert not place.is_dir() or names(place) == []


# Writing and reading


def test_what_is_written_is_read_again(place: Path) -> None:
    path = written(dataclasses.replace(RECORD, requests=({"actor": "a", "method": "m"},)))
    assert path == place / NAME
    assert mode(path) == 0o600
    assert names(place) == [NAME]
    assert json.loads(path.read_text())["record"] == f"{path}"
    path.unlink()
    first = dataclasses.replace(RECORD, when=5.0, stacks="\udcff ü \0", log_tail="…\n")
    paths = [written(RECORD), written(first)]
    assert records.read_all() == (
        [
            dataclasses.replace(first, record=f"{paths[1]}"),
            dataclasses.replace(RECORD, record=f"{paths[0]}"),
        ],
        [],
    )


def test_a_missing_directory_is_no_records(place: Path) -> None:
    assert records.read_all() == ([], [])
    assert not place.exists()


def test_records_of_all_places_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A service may have been unable to write where the shell of its operator would."""
    monkeypatch.setattr(tempfile, "tempdir", f"{tmp_path}")
    for name in ("XOSCAR_SUPERVISE_DIR", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/dev/null")
    path = written()
    assert path.parent == tmp_path / f"xoscar-idle-{os.geteuid()}"
    monkeypatch.setenv("XDG_STATE_HOME", f"{tmp_path / 'state'}")
    later = written(dataclasses.replace(RECORD, when=RECORD.when + 1))
    assert later.parent == tmp_path / "state/xoscar-idle"
    found = [each.record for each in records.read_all()[0] if each.record]
    assert [each for each in found if each.startswith(f"{tmp_path}")] == [f"{path}", f"{later}"]


def test_a_link_in_the_place_of_a_record_is_replaced(place: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    place.mkdir(0o700)
    (place / NAME).symlink_to(victim)
    assert not written().is_symlink()
    assert victim.read_text() == "precious"


def test_only_the_newest_stay_of_ours(place: Path, tmp_path: Path) -> None:
    place.mkdir(0o700)
    foreign = [
        "crash-1-1.json.bak",
        "crash-1.json",
        "xcrash-1-1.json",
        "sentinel-1.json",
        "crash-x-1.json",
    ]
    for name in foreign:
        (place / name).touch()
    (place / "crash-2-2.json").symlink_to(tmp_path / "gone")
    (place / "crash-3-3.json").mkdir()
    for moment in range(records.KEPT + 5):
        written(dataclasses.replace(RECORD, when=9.0 + moment, pid=7))
    found, complaints = records.read_all()
    assert ([each.when for each in found], complaints) == (
        [9.0 + moment for moment in range(5, records.KEPT + 5)],
        [],
    )
    others = {*foreign, "crash-2-2.json", "crash-3-3.json"}
    assert {*names(place)} - {Path(each.record or "").name for each in found} == others


def test_what_a_killed_writer_left_is_removed_in_the_end(place: Path) -> None:
    place.mkdir(0o700)
    old, new = place / ".crash-old", place / ".crash-new"
    for path in (old, new):
        path.touch(0o600)
    os.utime(old, (0, 0))
    assert names(place) == [".crash-new", ".crash-old"]
    written()
    assert names(place) == [".crash-new", NAME]


GARBAGE = [
    "",
    "{",
    "[]",
    "null",
    "[" * 100_000,
    "\ud800",
    '{"pid": ' + "9" * 5000 + "}",
    "{}",
    RECORD.to_json().replace("1700000000.25", '"noon"'),
    RECORD.to_json().replace("1700000000.25", "NaN"),
    RECORD.to_json().replace("1700000000.25", "1e999"),
    RECORD.to_json().replace("4711", "4712"),
    dataclasses.replace(RECORD, in_flight=1, requests=({},)).to_json(),
    dataclasses.replace(RECORD, uptime=10**400).to_json(),
]


@pytest.mark.parametrize("text", GARBAGE, ids=range(len(GARBAGE)))
def test_garbage_costs_a_line_and_no_other_record(place: Path, text: str) -> None:
    other = written(dataclasses.replace(RECORD, when=RECORD.when + 1))
    (place / NAME).write_text(text, errors="surrogatepass")
    (record,), (complaint,) = records.read_all()
    assert record.record == f"{other}"
    assert complaint.startswith(f"{place / NAME}: no crash record: ")
    assert "\n" not in complaint


def test_what_is_ignored(place: Path, tmp_path: Path) -> None:
    path = written()
    path.rename(tmp_path / NAME)
    path.symlink_to(tmp_path / NAME)
    os.mkfifo(place / "crash-1-1.json")
    (place / "crash-2-2.json").write_text(f"{' ' * records.LARGEST}{{}}")
    (place / "notes.txt").write_text("mine")
    if IS_ROOT:
        (place / "crash-3-3.json").touch()
        os.chown(place / "crash-3-3.json", 65534, 65534)
    assert records.read_all() == ([], [])


def test_a_large_record_loses_of_its_stacks(place: Path) -> None:
    """The beginning of the stacks says what failed, the end of stderr what came of it."""
    stacks, tail = (
        "first" + "\N{SNOWMAN}" * records.LARGEST,
        "\U0001f600" * records.LARGEST + "last",
    )
    path = written(dataclasses.replace(RECORD, stacks=stacks, log_tail=tail))
    assert path.stat().st_size <= records.LARGEST
    ((record,), complaints) = records.read_all()
    assert complaints == []
    assert record.stacks.startswith("first")
    assert record.log_tail.endswith("last")


# What prevents it


@pytest.mark.parametrize(
    ("record", "says"),
    [
        (dataclasses.replace(RECORD, pid=-1), "process -1 cannot have died at 1700000000.25"),
        (dataclasses.replace(RECORD, when=-5.0), "process 4711 cannot have died at -5.0"),
        (dataclasses.replace(RECORD, when=float("nan")), "cannot convert float NaN to integer"),
        (dataclasses.replace(RECORD, requests=({"actor": object()},)), "Object of type object is"),
        (dataclasses.replace(RECORD, why="x" * records.LARGEST), "that of process 4711 would have"),
    ],
)
def test_what_cannot_be_written_costs_one_warning(
    place: Path, caplog: pytest.LogCaptureFixture, record: CrashRecord, says: str
) -> None:
    assert [records.write(record), records.write(record)] == [None, None]
    (warning,) = caplog.records
    assert warning.getMessage().startswith(f"no crash record: {says}")
    assert names(place) == []
    written()


def test_a_place_that_cannot_be_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, place: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XOSCAR_SUPERVISE_DIR", f"{tmp_path / 'file' / 'a'}")
    assert [records.write(RECORD), records.write(RECORD)] == [None, None]
    (warning,) = caplog.records
    says = f"no crash record: {tmp_path}/file/a cannot be made: Not a directory; XOSCAR_SUPERVISE_"
    assert warning.getMessage().startswith(says)
    monkeypatch.setenv("XOSCAR_SUPERVISE_DIR", f"{tmp_path / 'file' / 'b'}")
    assert records.write(RECORD) is None
    assert len(caplog.records) == 2  # another cause


@pytest.mark.parametrize("value", ["no", "off"])
def test_a_bad_variable_leaves_the_default_as_its_warning_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, value: str
) -> None:
    monkeypatch.setenv("XOSCAR_SUPERVISE_DIR", value)
    monkeypatch.setenv("XDG_STATE_HOME", f"{tmp_path}")
    assert Settings.from_environment().supervise_dir is None
    assert written().parent == tmp_path / "xoscar-idle"
    (warning,) = caplog.records  # that of the setting
    assert "the default, a private directory of the user, is used" in warning.getMessage()


def test_a_directory_in_the_place_of_a_record(
    place: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (place / NAME / "full").mkdir(parents=True)
    place.chmod(0o700)
    assert records.write(RECORD) is None
    (warning,) = caplog.records
    assert f"no crash record: {place}: Is a directory; " in warning.getMessage()
    assert names(place) == [NAME]


WITHOUT_RIGHTS = """
import dataclasses, logging, pathlib
from xoscar_idle.supervision import records
from xoscar_idle.supervision.record import CrashRecord

logging.basicConfig(format="%(message)s")
path = pathlib.Path(records.write(CrashRecord("a:1", 4711, 1.0)))
path.chmod(0)
print(records.read_all())
path.parent.chmod(0o300)
print(records.read_all())
path.parent.chmod(0o500)
assert records.write(CrashRecord("a:1", 4711, 2.0)) is None
path.parent.chmod(0o700)
"""


@pytest.mark.integration
@pytest.mark.skipif(IS_ROOT and not shutil.which("setpriv"), reason="root may do everything")
def test_what_may_not_be_read_or_written(place: Path) -> None:
    """Root gives up what lets it read and write everything."""
    rights = "-dac_override,-dac_read_search"
    without = ("setpriv", "--bounding-set", rights, "--inh-caps", rights) if IS_ROOT else ()
    environ = os.environ | {"XOSCAR_SUPERVISE_DIR": f"{place}"}
    done = run(*without, sys.executable, "-c", WITHOUT_RIGHTS, env=environ)
    assert done.stdout.splitlines() == [
        f"([], ['{place}/crash-1000-4711.json: Permission denied'])",
        f"([], ['{place}: Permission denied'])",
    ]
    says = f"no crash record: {place} cannot be written to; XOSCAR_SUPERVISE_DIR can name another"
    assert done.stderr.splitlines() == [f"{says} directory"]


WRITES_TWICE = """
import dataclasses, logging, os, resource, sys
from xoscar_idle.supervision import records
from xoscar_idle.supervision.record import CrashRecord

assert "xoscar" not in sys.modules
logging.basicConfig(format="%(message)s")
record = CrashRecord("a:1", 4711, 1.0, log_tail="x" * 5000)
if sys.argv[1:]:
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2)
for when in (1.0, 2.0):
    assert records.write(dataclasses.replace(record, when=when)) is None
print(sorted(os.listdir(os.environ["XOSCAR_SUPERVISE_DIR"])))
"""


@pytest.mark.integration
def test_a_file_that_may_not_be_as_large_as_that(place: Path) -> None:
    """What has been written by then goes, as on a full disk."""
    environ = os.environ | {"XOSCAR_SUPERVISE_DIR": f"{place}"}
    done = run(sys.executable, "-c", WRITES_TWICE, "1000", env=environ)
    says = f"no crash record: {place}: File too large; XOSCAR_SUPERVISE_DIR can name another"
    assert done.stderr.splitlines() == [f"{says} directory"]
    assert done.stdout == "[]\n"


@pytest.mark.integration
@pytest.mark.skipif(not IS_ROOT or not shutil.which("unshare"), reason="only root can mount")
@pytest.mark.parametrize(
    ("options", "fill", "says"),
    [
        ("size=16k", "! head -c 1000000 /dev/zero 2>/dev/null > rest", "No space left on device"),
        ("nr_inodes=2", ": > rest", "No space left on device"),
        ("size=64k", ": > rest && mount -o remount,ro .", "cannot be written to"),
    ],
    ids=["full", "without room for names", "read-only"],
)
def test_a_full_disk(tmp_path: Path, options: str, fill: str, says: str) -> None:
    """A file system of this process alone, gone with it."""
    place = tmp_path / "own"
    place.mkdir(0o700)
    script = f'mount -t tmpfs -o mode=700,{options} tmpfs "$1" && cd "$1" && {fill}'
    inside = f'({script}) || exit 77; shift; exec "$@"'
    command = ("unshare", "--mount", "sh", "-c", inside, "sh", f"{place}", sys.executable)
    if run("unshare", "--mount", "true", status=None).returncode:
        pytest.skip("this root may not have mounts of its own")
    environ = os.environ | {"XOSCAR_SUPERVISE_DIR": f"{place}"}
    done = run(*command, "-c", WRITES_TWICE, status=None, env=environ)
    if done.returncode == 77:
        pytest.skip(f"nothing can be mounted here: {done.stderr}")
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"no crash record: {place}")
    assert says in line
    assert done.stdout == "['rest']\n"
