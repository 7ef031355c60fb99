"""What became of calls, by what their callers say and by what the pools have executed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

IN_FLIGHT = ("PoolCrashed", "ServerClosed", "ConnectionResetError", "BrokenPipeError")
"""Errors of calls that have been sent, so that they may have been executed."""


@dataclass(frozen=True)
class Account:
    """Of all calls of a run. Each call is in it once, with what its caller got in the end."""

    calls: int = 0
    answered: int = 0
    in_flight: int = 0
    """Failed when they had been sent."""
    unsent: int = 0
    """Failed although they had not been sent."""
    lost: int = 0
    """Failed, and no pool has begun them."""
    twice: int = 0
    """Begun more than once."""
    cut: int = 0
    """Executions that have begun and not ended."""
    untold: int = 0
    """Begun once and not ended, although the caller has an answer."""
    invented: int = 0
    """Answered, although no pool has begun them."""
    longest: float = 0.0
    """Seconds that an answered call took."""
    errors: dict[str, int] = field(default_factory=dict)
    """How often each."""

    @property
    def failed(self) -> int:
        return self.in_flight + self.unsent


def account(said: Iterable[str], executed: Iterable[str]) -> Account:
    """Settle what callers say with what pools have executed.

    Parameters
    ----------
    said
        A line for each call: its number, the seconds it took, and the name of its error, if any.
    executed
        ``+NUMBER`` for each execution that has begun, ``-NUMBER`` for each that has ended.
    """
    begun, ended = Counter[str](), Counter[str]()
    for line in executed:
        (begun if line[0] == "+" else ended)[line[1:].strip()] += 1
    counted = Counter(cut=(begun - ended).total())
    errors: Counter[str] = Counter()
    longest = 0.0
    for line in said:
        number, took, *error = line.split()
        counted["calls"] += 1
        counted["twice"] += begun[number] > 1
        if error:
            errors[error[0]] += 1
            counted["in_flight" if error[0] in IN_FLIGHT else "unsent"] += 1
            counted["lost"] += not begun[number]
        else:
            counted["answered"] += 1
            counted["invented"] += not begun[number]
            counted["untold"] += begun[number] == 1 and not ended[number]
            longest = max(longest, float(took))
    return Account(**counted, longest=longest, errors=dict(errors.most_common()))
