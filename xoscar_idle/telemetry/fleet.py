"""Naming many at once: patterns, files of them, and wildcards that pick from these.

A pattern has ranges in brackets and alternatives in braces, as ClusterShell, pdsh and bash know
them: ``gpu[01-16]:9000``, ``10.0.0.[1-3,7]:[9000-9003]``, ``node{a,b}:9000``.
"""

from __future__ import annotations

import fnmatch
import itertools
import math
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from .. import values
from .web import is_address

MOST = 10_000
"""How many one pattern may name."""

LONGEST_FILE = 16 * 2**20
"""Characters of a file of targets; what is longer is none, a device say."""

STDIN = "-"

Part = Sequence[str] | range
"""What one place of a pattern stands for: texts, or numbers, which may be very many."""

_RANGE = re.compile(r"(\d{1,18})(?:-(\d{1,18}))?", re.ASCII)
_LITERAL = re.compile(r"[^][{}]+")
_COMMENT = re.compile(r"(?:^|\s)#.*")


@dataclass(frozen=True)
class Named:
    """One that is named."""

    text: str
    """Without a pattern in it."""
    where: str = ""
    """The file and the line that name it; empty: an argument."""

    def error(self, why: object) -> ValueError:
        """One that tells where it is named."""
        return ValueError(f"{self.where}: {why}" if self.where else str(why))


# Patterns


def expand(text: str) -> list[str]:
    """What a pattern names, the last place of it changing first; ``text`` itself if it is none.

    The zeros in front of a number are kept: ``[08-10]`` is 08, 09, 10. The brackets of an IPv6
    address are none of a range: ``[::1]:9000``.

    Raises
    ------
    ValueError
        It is malformed, and no URL, or names more than :data:`MOST`.
    """
    if is_path(text):
        return [text]
    try:
        places = list(_places(text))
    except ValueError as error:
        if is_address(text):  # in a URL they can mean themselves; whoever asks there sees
            return [text]
        raise ValueError(f"{values.shown(text)} is no pattern: {error}") from None
    count = math.prod(sum(len(numbers) for numbers, _ in place) for place in places)
    if count > MOST:
        many = f"{count}" if count < 10**18 else "more than can be counted"
        raise ValueError(
            f"{values.shown(text)} names {many}, and a pattern may name {MOST} at most: split it "
            "into several, or name fewer"
        )
    texts = [[each for part in place for each in _texts(*part)] for place in places]
    return list(map("".join, itertools.product(*texts)))


def _texts(part: Part, width: int) -> Iterator[str]:
    return (each if isinstance(each, str) else f"{each:0{width}}" for each in part)


def is_path(text: str) -> bool:
    """Whether it is the path of a socket, in which any character stands for itself."""
    return text.startswith("/")


def _places(text: str) -> Iterator[list[tuple[Part, int]]]:
    """For each place of a pattern what it stands for, and the least width of numbers there."""
    at, in_ipv6 = 0, False
    while at < len(text):
        character = text[at]
        if character == "[" and not in_ipv6 and ":" in _until("]", text, at):
            in_ipv6 = True
            yield [([character], 0)]
        elif character == "[":
            inside = _until("]", text, at)
            yield [_range(each) for each in inside.split(",")]
            at += len(inside) + 1
        elif character == "{":
            inside = _until("}", text, at)
            if not inside:
                raise ValueError("there is nothing in {}")
            if re.search(r"[{[\]]", inside):
                raise ValueError(f"{{{inside}}} has another pattern within")
            numbers = re.fullmatch(r"(\d+)\.\.(\d+)", inside)  # as bash writes them
            yield [_range("-".join(numbers.groups())) if numbers else (inside.split(","), 0)]
            at += len(inside) + 1
        elif character == "]" and in_ipv6:
            in_ipv6 = False
            yield [([character], 0)]
        elif character in "]}":
            raise ValueError(f"nothing opens the {character}")
        else:
            literal = _LITERAL.match(text, at)
            assert literal is not None
            yield [([literal[0]], 0)]
            at = literal.end() - 1
        at += 1
    if in_ipv6:
        raise ValueError("nothing closes the [")


def _until(end: str, text: str, at: int) -> str:
    """What is between the character at ``at`` and the one that closes it."""
    closes = text.find(end, at)
    if closes < 0:
        raise ValueError(f"nothing closes the {text[at]}")
    return text[at + 1 : closes]


def _range(text: str) -> tuple[Part, int]:
    found = _RANGE.fullmatch(text)
    if found is None:
        raise ValueError(f"{values.shown(text)} is no range of numbers like 1-3")
    first, last = found[1], found[2] or found[1]
    if int(first) > int(last):
        raise ValueError(f"{text} counts down")
    if last.startswith("0") and len(last) != len(first):
        raise ValueError(f"the ends of {text} have different numbers of zeros in front")
    return range(int(first), int(last) + 1), len(first) if first.startswith("0") else 1


# Files


def read(path: str) -> list[Named]:
    """What a file names: a target or a pattern per line, and ``#`` begins a comment.

    Parameters
    ----------
    path
        ``-`` is the standard input.

    Raises
    ------
    ValueError
        It cannot be read, or a line of it is malformed; the message names the file, and the line.
    """
    name = "the standard input" if path == STDIN else path
    try:
        if path == STDIN:
            text = sys.stdin.read(LONGEST_FILE + 1)
        else:
            with open(path, encoding="utf-8-sig") as file:
                text = file.read(LONGEST_FILE + 1)
    except OSError as error:
        raise ValueError(f"{values.shown(name)} cannot be read: {error.strerror}") from None
    except UnicodeError:
        raise ValueError(f"{values.shown(name)} cannot be read: it is no text in UTF-8") from None
    if len(text) > LONGEST_FILE:
        raise ValueError(f"{values.shown(name)} is too long for a list of targets")
    return lines(text, name)


def lines(text: str, name: str) -> list[Named]:
    """What the lines of a file of that name have; see :func:`read`."""
    found: list[Named] = []
    for number, line in enumerate(text.split("\n"), 1):
        where = Named("", f"{name}, line {number}")
        if not (given := _COMMENT.sub("", line).strip()):
            continue
        if given.startswith("@"):
            raise where.error(f"{values.shown(given)}: a file names no other one")
        if is_glob(given):
            raise where.error(
                f"{values.shown(given)}: a wildcard picks from a file, and names nothing in one: "
                "write a range like gpu[01-16]:9000"
            )
        try:
            found += [Named(each, where.where) for each in expand(given)]
        except ValueError as error:
            raise where.error(error) from None
    return found


# Arguments


def is_glob(text: str) -> bool:
    """Whether it has a wildcard; a ``?`` of a URL, or in a path, is none."""
    return not is_address(text) and re.search(r"[*?]", text) is not None


def named(
    arguments: Sequence[str], reading: Callable[[str], Sequence[Named]] = read
) -> list[Named]:
    """What arguments name, in their order, each once: patterns, ``@FILE`` and wildcards.

    Where there are wildcards, those that they pick from the files are named, and no others of
    these.

    Raises
    ------
    ValueError
        One of them is malformed, cannot be read or names nothing.
    """
    paths = [each[1:] for each in arguments if each.startswith("@")]
    files = {path: _read(path, reading) for path in dict.fromkeys(paths)}
    picks = any(is_glob(each) and not each.startswith("@") for each in arguments)
    found: dict[str, Named] = {}
    for each in arguments:
        if each.startswith("@"):
            more = [] if picks else files[each[1:]]
        elif is_glob(each):
            more = _picked(each, files)
        else:
            more = list(map(Named, expand(each)))
        for one in more:
            found.setdefault(one.text, one)
    return list(found.values())


def _read(path: str, reading: Callable[[str], Sequence[Named]]) -> list[Named]:
    if not path:
        raise ValueError("@ names no file: write @hosts.txt, or @- for the standard input")
    if found := list(reading(path)):
        return found
    raise ValueError(f"@{path} names nothing: a target is to be on each line")


def _picked(glob: str, files: dict[str, list[Named]]) -> list[Named]:
    if not files:
        raise ValueError(
            f"{values.shown(glob)} picks from a file, and none is given: add @FILE, or write a "
            "range like gpu[01-16]:9000"
        )
    patterns = [each.replace("[", "[[]") for each in expand(glob)]  # of IPv6 addresses
    found = [
        each
        for lines in files.values()
        for each in lines
        if any(fnmatch.fnmatchcase(each.text, pattern) for pattern in patterns)
    ]
    if not found:
        names = ", ".join(f"@{path}" for path in files)
        raise ValueError(
            f"{values.shown(glob)} matches nothing in {names}: it has to match a whole line, with "
            "the port, like 10.0.0.*:9000"
        )
    return found
