"""How a sub-pool is, judged from what was seen of it. Time and facts are arguments."""

from __future__ import annotations

from dataclasses import dataclass, replace

from .state import State

BEAT = 0.5
"""Seconds between two signs of life, and between two looks at them."""

BUSY = 2.0
"""Seconds for which an event loop may be silent."""

SILENT = 5.0
"""Seconds for which a side thread may be silent."""


@dataclass(frozen=True)
class Seen:
    """A sub-pool that lives, at one moment. Seconds; None: unknown, or there is none."""

    thread_silent: float | None = None
    """Since the last sign of its side thread."""
    loop_silent: float | None = None
    """Since its event loop was asked for a sign that has not come."""
    stopped: bool = False
    """Whether the kernel has it as stopped, by a signal or a debugger."""
    oldest_request: float | None = None
    """For which the oldest request has been in process."""
    no_progress: float | None = None
    """Since a request ended last."""
    fault: str = ""
    """An error that says that it is broken."""
    unhealthy_for: float = 0.0
    """Since it was judged to be unhealthy first."""


@dataclass(frozen=True)
class Verdict:
    """A state, and why."""

    state: State
    reason: str = ""
    silent: bool = False
    """Nothing in it can say what it does."""
    hung: bool = False
    """It has lasted for too long to be waited for."""


def judge(seen: Seen, hang_timeout: float = 0.0) -> Verdict:
    """What state a living sub-pool is in.

    Parameters
    ----------
    hang_timeout
        Seconds after which what lasts is a hang; 0: nothing is.
    """
    verdict = _judged(seen, hang_timeout)
    lasts = hang_timeout and seen.unhealthy_for >= hang_timeout
    if lasts and verdict.state is State.UNHEALTHY and not verdict.hung:
        return replace(verdict, hung=True)
    return verdict


def _judged(seen: Seen, hang_timeout: float) -> Verdict:
    silent, loop_silent = seen.thread_silent or 0.0, seen.loop_silent or 0.0
    if seen.stopped:
        return Verdict(State.UNHEALTHY, "stopped: by a signal (SIGSTOP, SIGTSTP) or a debugger")
    if seen.fault:
        return Verdict(State.UNHEALTHY, f"it raised {seen.fault}")
    if silent >= SILENT:
        return Verdict(
            State.UNHEALTHY,
            f"no sign of life for {silent:.0f} s: the GIL is held, or it gets no processor",
            silent=True,
        )
    if hang_timeout:
        if loop_silent >= hang_timeout:
            return Verdict(
                State.UNHEALTHY,
                f"hung: its event loop has been blocked for {loop_silent:.0f} s",
                hung=True,
            )
        if (seen.oldest_request or 0.0) >= hang_timeout and (
            seen.no_progress is None or seen.no_progress >= hang_timeout
        ):
            return Verdict(
                State.UNHEALTHY,
                f"hung: a request has been in process for {seen.oldest_request:.0f} s, "
                "and none has ended meanwhile",
                hung=True,
            )
    if loop_silent >= BUSY:
        return Verdict(State.BUSY, f"its event loop has been blocked for {loop_silent:.0f} s")
    return Verdict(State.HEALTHY)
