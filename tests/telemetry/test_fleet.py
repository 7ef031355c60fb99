"""What names many: patterns, files and wildcards; pure but for the reading of files."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from xoscar_idle.telemetry import fleet
from xoscar_idle.telemetry.fleet import Named, expand, lines, named, read


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("10.0.0.5:9000", ["10.0.0.5:9000"]),
        ("4711", ["4711"]),
        ("gpu[08-11]:9", ["gpu08:9", "gpu09:9", "gpu10:9", "gpu11:9"]),
        ("gpu[8-11]:9", ["gpu8:9", "gpu9:9", "gpu10:9", "gpu11:9"]),
        ("gpu[098-101]:9", ["gpu098:9", "gpu099:9", "gpu100:9", "gpu101:9"]),
        ("gpu[0-1]:9", ["gpu0:9", "gpu1:9"]),
        ("gpu[01,3-3]:9", ["gpu01:9", "gpu3:9"]),
        ("a[1-2,7]:[90-91]", ["a1:90", "a1:91", "a2:90", "a2:91", "a7:90", "a7:91"]),
        ("node{a,b}:9", ["nodea:9", "nodeb:9"]),
        ("node{,-x}:9", ["node:9", "node-x:9"]),
        ("node{a}:9", ["nodea:9"]),
        ("node{01..03}:9", ["node01:9", "node02:9", "node03:9"]),
        ("{a,b}[1-2]:9", ["a1:9", "a2:9", "b1:9", "b2:9"]),
        ("[::1]:9000", ["[::1]:9000"]),
        ("[::1]:[9000-9001]", ["[::1]:9000", "[::1]:9001"]),
        ("[fd00::[1-2]]:9", ["[fd00::1]:9", "[fd00::2]:9"]),
        ("[fd00::{a,b}]:9", ["[fd00::a]:9", "[fd00::b]:9"]),
        ("http://gpu[1-2]:9998", ["http://gpu1:9998", "http://gpu2:9998"]),
        ("http://[::1]:9998/", ["http://[::1]:9998/"]),
        ("http://[", ["http://["]),
        ("http://a:1/?x={", ["http://a:1/?x={"]),
        ("unixsocket:///7", ["unixsocket:///7"]),
        ("/run/a[1-2]{b.sock", ["/run/a[1-2]{b.sock"]),
    ],
)
def test_patterns(pattern: str, names: list[str]) -> None:
    assert expand(pattern) == names


@pytest.mark.parametrize(
    ("pattern", "says"),
    [
        ("a[3-1]:9", "'a[3-1]:9' is no pattern: 3-1 counts down"),
        ("[a-", "'[a-' is no pattern: nothing closes the ["),
        ("a[1-3:9", "nothing closes the ["),
        ("[::1:9", "nothing closes the ["),
        ("[::[1-2]:9", "nothing closes the ["),
        ("a]:9", "nothing opens the ]"),
        ("a}:9", "nothing opens the }"),
        ("a{b:9", "nothing closes the {"),
        ("a{}:9", "there is nothing in {}"),
        ("a{b,{c}}:9", "has another pattern within"),
        ("a{[1-2]}:9", "has another pattern within"),
        ("a[]:9", "'' is no range of numbers like 1-3"),
        ("a[1-3,]:9", "'' is no range"),
        ("a[x]:9", "'x' is no range"),
        ("a[1-]:9", "'1-' is no range"),
        ("a[-1]:9", "'-1' is no range"),
        ("a[1-2-3]:9", "'1-2-3' is no range"),
        ("a[1 - 3]:9", "'1 - 3' is no range"),
        ("a[٣]:9", "is no range"),
        ("a[" + "9" * 5000 + "]:9", "is no range"),
        ("a[8-010]:9", "the ends of 8-010 have different numbers of zeros in front"),
        ("a[3..1]:9", "'3..1' is no range"),
        ("a{3..1}:9", "3-1 counts down"),
    ],
)
def test_what_is_malformed(pattern: str, says: str) -> None:
    with pytest.raises(ValueError, match="is no pattern: ") as caught:
        expand(pattern)
    assert says in str(caught.value)
    assert len(str(caught.value)) < 200


def test_how_many_one_may_name() -> None:
    assert len(expand("a[1-100]:[1-100]")) == fleet.MOST
    with pytest.raises(ValueError, match=r"^'a\[1-101\]:\[1-100\]' names 10100, and a pattern may"):
        expand("a[1-101]:[1-100]")
    with pytest.raises(ValueError, match=r"names more than can be counted.*: split it"):
        expand("a" + 1000 * "[0-999999999999999999]")


def test_the_lines_of_a_file() -> None:
    text = "\n# all\n a:1 \r\n\tb[1-2]:1  # two\nhttp://c:1/#x\n4711"
    assert lines(text, "hosts") == [
        Named("a:1", "hosts, line 3"),
        Named("b1:1", "hosts, line 4"),
        Named("b2:1", "hosts, line 4"),
        Named("http://c:1/#x", "hosts, line 5"),
        Named("4711", "hosts, line 6"),
    ]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("a[3-1]:9", "hosts, line 2: 'a[3-1]:9' is no pattern: 3-1 counts down"),
        ("@other", "hosts, line 2: '@other': a file names no other one"),
        ("a*:9", "hosts, line 2: 'a*:9': a wildcard picks from a file"),
    ],
)
def test_a_line_that_is_malformed_is_told(line: str, says: str) -> None:
    with pytest.raises(ValueError, match=r"^hosts, line 2: ") as caught:
        lines(f"a:1\n{line}\n", "hosts")
    assert str(caught.value).startswith(says)


def test_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "hosts.txt"
    path.write_text("\ufeffa:1\nb:1\n", encoding="utf-8")
    assert read(f"{path}") == [Named("a:1", f"{path}, line 1"), Named("b:1", f"{path}, line 2")]
    monkeypatch.setattr(sys, "stdin", io.StringIO("a:1\n"))
    assert read("-") == [Named("a:1", "the standard input, line 1")]


def test_what_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path, why in (
        (tmp_path / "none", "No such file or directory"),
        (tmp_path, "Is a directory"),
        (tmp_path / "bytes", "it is no text in UTF-8"),
    ):
        if path.name == "bytes":
            path.write_bytes(b"\xff\xfe")
        with pytest.raises(ValueError, match=f"cannot be read: {why}$"):
            read(f"{path}")
    with pytest.raises(ValueError, match="'/dev/zero' is too long for a list of targets"):
        read("/dev/zero")


def files(**texts: str) -> Callable[[str], list[Named]]:
    return lambda path: lines(texts[path], path)


HOSTS = "10.0.0.[1-3]:9000\ngpu{a,b}:9000\n[fd00::1]:9000\n10.0.0.1:9001\n"


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ("", ""),
        ("a:1 b:1 a:1", "a:1 b:1"),
        ("b[1-2]:1 b2:1 b[2-3]:1", "b1:1 b2:1 b3:1"),
        (
            "@hosts",
            "10.0.0.1:9000 10.0.0.2:9000 10.0.0.3:9000 gpua:9000 gpub:9000 [fd00::1]:9000 "
            "10.0.0.1:9001",
        ),
        ("10.0.0.*:9000 @hosts", "10.0.0.1:9000 10.0.0.2:9000 10.0.0.3:9000"),
        ("@hosts 10.0.0.?:9001", "10.0.0.1:9001"),
        ("gpu?:* 7 10.0.0.[2-3]:?000 @hosts", "gpua:9000 gpub:9000 7 10.0.0.2:9000 10.0.0.3:9000"),
        ("[fd00::*]:9000 @hosts", "[fd00::1]:9000"),
        ("a:1 @more @hosts gpua:*", "a:1 gpua:9000"),
        ("@more @more", "z:1"),
        ("http://a:1/?x=1 @more", "http://a:1/?x=1 z:1"),
        ("/run/*.sock", "/run/*.sock"),
    ],
)
def test_arguments(arguments: str, names: str) -> None:
    read = files(hosts=HOSTS, more="z:1")
    assert [each.text for each in named(arguments.split(), read)] == names.split()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("gpu*:9000", "'gpu*:9000' picks from a file, and none is given: add @FILE, or write a ra"),
        ("x*:9000 @hosts", "'x*:9000' matches nothing in @hosts: it has to match a whole line"),
        ("gpu* nobody? @hosts", "'nobody?' matches nothing in @hosts"),
        ("@", "@ names no file: write @hosts.txt, or @- for the standard input"),
        ("@empty", "@empty names nothing: a target is to be on each line"),
        ("a:1 @empty", "@empty names nothing"),
        ("a[1-", "nothing closes the ["),
    ],
)
def test_what_names_nothing(arguments: str, says: str) -> None:
    with pytest.raises(ValueError, match=r"\w") as caught:
        named(arguments.split(), files(hosts=HOSTS, empty="# nobody\n\n"))
    assert says in str(caught.value)


def test_each_file_is_read_once() -> None:
    """The standard input has nothing the second time."""
    asked: list[str] = []

    def reading(path: str) -> list[Named]:
        asked.append(path)
        return lines("a:1", path)

    named(["@-", "@-", "a*", "a?1"], reading)
    assert asked == ["-"]
