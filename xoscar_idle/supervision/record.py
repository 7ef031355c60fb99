"""What is known of a sub-pool that died, and how it is told."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..versions import known_fields


@dataclass(frozen=True)
class CrashRecord:
    """One death of a sub-pool, in values that JSON has."""

    address: str
    """Of the pool; empty where it died before it had one."""
    pid: int
    when: float
    """Unix time of its death."""
    exit_code: int | None = None
    """Negative: the signal that killed it. None: unknown."""
    signal: str | None = None
    """The name of that signal."""
    uptime: float | None = None
    """Seconds from its start to its death."""
    label: str | None = None
    lineage: int = 0
    incarnation: int = 0
    main_address: str = ""
    main_pid: int = 0
    in_flight: int | None = None
    """How many requests it had in process. None: unknown."""
    requests: tuple[Mapping[str, Any], ...] = ()
    """The oldest of them: ``actor``, ``method``, and ``seconds`` since it came."""
    oom: str | None = None
    """The evidence that it ran out of memory, in a few words; None: there is none."""
    stacks: str = ""
    """Python's, of all threads, where a fatal signal let it write them."""
    log_tail: str = ""
    """The end of its stderr, where that is captured."""
    why: str = ""
    """What else is known, in a few words: who ended it, or what it did when it died."""
    record: str | None = None
    """The path of the file that has this, where there is one."""
    state: str = ""
    """Of its lineage, when this was asked for."""
    restart_at: float | None = None
    """Unix time of the next try to start it, where one is planned."""

    def to_json(self) -> str:
        """On one line."""
        return json.dumps(vars(self))

    @classmethod
    def from_json(cls, text: str | bytes) -> CrashRecord:
        """What :meth:`to_json` made, here or in a process with another version of us.

        Raises
        ------
        ValueError
            It is no record.
        """
        try:
            return cls.from_dict(json.loads(text))
        except ValueError as error:
            raise ValueError(f"no crash record: {error}") from None

    @classmethod
    def from_dict(cls, given: Mapping[str, Any]) -> CrashRecord:
        """Of :func:`vars` of one; see :meth:`from_json`."""
        try:
            told = known_fields(cls, given)
            told["requests"] = tuple(told.get("requests", ()))
            made = cls(**told)
            made.told()  # what cannot be told is none
            return made
        except (AttributeError, TypeError, ValueError) as error:
            raise ValueError(f"{error}") from None

    @property
    def cause(self) -> str:
        """What it died of, in words of which there are few: deaths are counted by them."""
        if self.oom:
            return "out of memory"
        if self.signal is not None:
            return self.signal
        return "unknown" if self.exit_code is None else f"exit code {self.exit_code}"

    def line(self) -> str:
        """All that is short, in one line."""
        who = f"pool {self.address}" if self.address else "a sub-pool that was starting"
        text = f"{who} (pid {self.pid}) {self._ended()}"
        if self.uptime is not None:
            text += f" {_seconds(self.uptime)} after its start"
        if self.in_flight is not None:
            text += f", with {_counted(self.in_flight, 'request')} in process"
            if self.requests:
                text += f" ({', '.join(_request(each) for each in self.requests[:3])})"
        if self.oom:
            text += f": out of memory ({self.oom})"
        elif self.why:
            text += f": {self.why}"
        return text

    def told(self, whole: bool = False) -> str:
        """The line, then stacks and the end of its stderr.

        Unless the ``whole`` is asked for, there is the stack of the thread alone that it died of.
        """
        text = self.line()
        if self.stacks:
            text += f"\n{self.stacks.strip() if whole else _current(self.stacks)}"
        if self.log_tail:
            text += f"\nThe end of its stderr:\n{self.log_tail.rstrip()}"
        return text

    def _ended(self) -> str:
        if self.signal is not None:
            return f"was killed by {self.signal}"
        if self.exit_code is None:
            return "died, its exit status is unknown,"
        return f"exited with code {self.exit_code}"


def _current(stacks: str) -> str:
    """What the interpreter wrote of the error and of the thread it was in, without the others."""
    error, *threads = stacks.strip().split("\n\n")
    return "\n".join([error, *(each for each in threads if each.startswith("Current thread"))])


def _seconds(value: float) -> str:
    return f"{value:.0f} s" if value >= 10 else f"{value:.1f} s"


def _counted(number: int, noun: str) -> str:
    return f"{number or 'no'} {noun}{'' if number == 1 else 's'}"


def _request(request: Mapping[str, Any]) -> str:
    return f"{request['actor']}.{request['method']}() for {_seconds(request['seconds'])}"
