"""The errors that explain why a pool does not answer, each of the type that xoscar has for it.

What an actor's method raises goes to the caller by pickle, and its class by name. In a process
without this package the name says nothing. So ours are pickled with a look-up which every Python
understands, and which finds xoscar's own class where ours is not.
"""

from __future__ import annotations

import errno
import functools
import pkgutil
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from xoscar.backends.message import _AsCauseBase
from xoscar.errors import ActorNotExist, ServerClosed

from .record import CrashRecord
from .state import State

if TYPE_CHECKING:
    from typing_extensions import Self


class _Modules:
    """``sys.modules`` of the process that unpickles."""

    def __reduce__(self) -> tuple[Any, ...]:
        return pkgutil.resolve_name, ("sys:modules",)


class _ThisModule:
    """This module there; None where it has not been imported."""

    def __reduce__(self) -> tuple[Any, ...]:
        return dict.get, (_Modules(), __name__)


class _Known:
    """A class of this module there; xoscar's where there is none."""

    def __init__(self, ours: type[Exception], elsewhere: type[Exception]) -> None:
        self._ours, self._elsewhere = ours, elsewhere

    def __call__(self, *args: Any) -> Exception:
        return self._ours(*args)  # of a copy, which is made here

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, (_ThisModule(), self._ours.__name__, self._elsewhere)


class PoolCrashed(ServerClosed):  # type: ignore[misc]
    """The pool that was to answer a call has died. The call may have had its effect.

    Its text tells all that is known; the same is in the attributes.
    """

    address: str = ""
    pid: int = 0
    exit_code: int | None = None
    """Negative: the signal that killed it. None: unknown."""
    signal: str | None = None
    """The name of that signal."""
    when: float = 0.0
    """Unix time of its death."""
    uptime: float | None = None
    """Seconds from its start to its death."""
    in_flight: int | None = None
    """How many requests it had in process. None: unknown."""
    requests: tuple[Mapping[str, Any], ...] = ()
    """The oldest of them: ``actor``, ``method``, and ``seconds`` since it came."""
    oom: str | None = None
    """The evidence that it ran out of memory; None: there is none."""
    stacks: str = ""
    """Python's, of all threads, where a fatal signal let it write them."""
    log_tail: str = ""
    """The end of its stderr, where ``XOSCAR_CAPTURE_STDERR`` is set."""
    record: str | None = None
    """The path of its crash record, on the machine of the pool."""
    state: str = ""
    """What had become of it when the error was raised."""
    restart_at: float | None = None
    """Unix time of the next try to start it, where one is planned."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _Known(PoolCrashed, ServerClosed), self.args, vars(self)

    @classmethod
    def of(cls, record: CrashRecord) -> PoolCrashed:
        """The error that tells ``record``."""
        error = cls(record.told())
        for name in cls.__annotations__:
            setattr(error, name, getattr(record, name))
        return error


class PoolUnavailable(ConnectionRefusedError):
    """A call to a pool that is down; it was not executed."""

    address: str = ""
    pid: int = 0
    state: str = ""
    last_failure: str | None = None
    """Its last crash, on one line."""
    restart_at: float | None = None
    """Unix time of the next try to start it, where one is planned."""

    turned_away: bytes | None = None
    """The id of the message that was not executed, where it is the pool itself that says so."""

    _elsewhere: ClassVar[type[Exception]] = ConnectionRefusedError

    def __reduce__(self) -> tuple[Any, ...]:
        return _Known(type(self), self._elsewhere), self.args, vars(self)

    @classmethod
    def turning_away(cls, address: str, message_id: bytes, reason: str, state: str) -> Self:
        """The error of a pool that does not execute a message."""
        error = cls(errno.ECONNREFUSED, f"pool {address} is down: {reason}")
        error.address, error.turned_away, error.state = address, message_id, state
        return error

    @classmethod
    def of(cls, address: str, told: Mapping[str, Any]) -> PoolUnavailable:
        """The error that tells what the main pool ``told`` of ``address``."""
        text = f"pool {address} is down: {_state(told)}"
        if told["last_failure"]:
            text += f"; {told['last_failure']}"
        error = cls(errno.ECONNREFUSED, text)
        error.address = address
        for name in ("pid", "state", "last_failure"):
            setattr(error, name, told[name])
        error.restart_at = told.get("restart_at")
        return error


class ActorUnavailable(PoolUnavailable, ActorNotExist):  # type: ignore[misc]
    """A call to an actor that is being created again, since its pool is being recovered."""

    _elsewhere = ActorNotExist


def _state(told: Mapping[str, Any]) -> str:
    text: str = told["reason"] or told["state"]
    if told["state"] == State.DEGRADED:
        text = f"degraded: {text}"
    if (at := told.get("restart_at")) is not None:
        text += f"; it is tried again in {max(0.0, at - time.time()):.0f} s"
    return text


def sent(original: Callable[..., Any]) -> Callable[..., Any]:
    """For the end of what xoscar makes error messages with: names a class that all know.

    With this one, which stands for an error that tells its pool itself, xoscar raises the error as
    it is; else it would raise one of a class made for it, of our class.
    """

    @functools.wraps(original)
    def exit_(self: Any, exc_type: Any, exc_val: Any, exc_tb: Any) -> Any:
        if isinstance(exc_val, (PoolCrashed, PoolUnavailable)):
            exc_type = _AsCauseBase
        return original(self, exc_type, exc_val, exc_tb)

    return exit_
