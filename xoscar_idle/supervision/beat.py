"""In a sub-pool: it tells its main pool, in the page that they share, what it does.

The requests in process and the stacks of a fatal signal are told wherever there is a page. Where
``XOSCAR_SUPERVISE`` is on, the side thread tells that it is there, asks the event loop for a sign,
and tells what the loop's thread does while none comes.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import fnmatch
import functools
import os
import signal
import threading
import time
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

from xoscar.backends.message import ErrorMessage, MessageType, _AsCauseBase

from .. import config, logs, side_thread
from ..connection.exchange import NOBODY
from ..connection.failures import REQUESTS
from . import draining, evidence, health, recreating
from .crash import PoolCrashed, PoolUnavailable
from .page import VARIABLE, Page
from .pulse import stack_of

OF_OTHERS = (_AsCauseBase, PoolCrashed, PoolUnavailable)
"""Errors that come from another process, or tell of one: they say nothing of this one."""

_page: Page | None = None
_loop: asyncio.AbstractEventLoop | None = None
_loop_thread = 0
_asked = 0.0  # when the loop was asked for the sign that is waited for; 0: none is
_signal = 0  # that which writes stacks; 0: none does


def start() -> None:
    """Tell from now on, if this process was started with a page."""
    global _page
    if _page is None:
        _page = Page.given()
        if _page is None:
            return
        os.environ.pop(VARIABLE, None)  # it is not for the children of this process
        _page.claim()
        if not faulthandler.is_enabled():  # else the program wants the stacks elsewhere
            faulthandler.enable(_page.descriptor)
    apply()


def is_subpool() -> bool:
    """Whether this process was started as a sub-pool, by a main pool with the package."""
    return _page is not None


def apply() -> None:
    """The settings may have changed."""
    if _page is None or config.current().supervise == "off":
        _rest()
    else:
        _offer_stacks(_page)
        side_thread.every(health.BEAT, _beat)


def stop() -> None:
    """Tell no more of the loop; the page is kept, for an :func:`start` that follows."""
    _rest()


def after_fork() -> None:
    """In a forked child: the page is the parent's."""
    global _page, _loop, _signal
    page, _page, _loop = _page, None, None
    if page is not None:
        _signal = 0
        # What the child would write when it crashes would be taken for its parent's. The handlers
        # stay, since the program may have put its own in their place, and so does their descriptor.
        page.disown()
        _disowned.append(page)


_disowned: list[Page] = []


def follow(original: Callable[..., None]) -> Callable[..., None]:
    """For ``__init__`` of xoscar's sub-pools: that one's loop is the loop to ask."""

    @functools.wraps(original)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        global _loop, _loop_thread
        original(self, *args, **kwargs)
        if _page is not None:
            _loop, _loop_thread = asyncio.get_running_loop(), threading.get_ident()

    return init


# -- requests --------------------------------------------------------------------------------------

Handler = Callable[[Any, Any], Coroutine[Any, Any, Any]]


def handlers(original: dict[MessageType, Handler]) -> dict[MessageType, Handler]:
    """For the handlers of xoscar's sub-pools: tells which requests are in process."""
    counted = {
        MessageType.send: _called,
        MessageType.tell: _called,
        MessageType.create_actor: _created,
    }
    made = dict(original)
    for kind, name in counted.items():
        made[kind] = _counting(original[kind], name)
    for kind in REQUESTS:  # which those who ask can let wait
        made[kind] = _admitting(made[kind])
    made[MessageType.control] = _beginning(original[MessageType.control])
    return made


def _admitting(handler: Handler) -> Handler:
    """Turns away what comes when nothing more is to be begun, or the actor is not there yet."""

    @functools.wraps(handler)
    def handle(self: Any, message: Any) -> Coroutine[Any, Any, Any]:
        page = _page
        if page is not None:
            error = None
            if page.draining:
                error = draining.turned_away(page, self, message)
            elif page.recreating:
                error = recreating.turned_away(self, message)
            if error is not None:
                raise error
        return handler(self, message)

    return handle


def _beginning(original: Handler) -> Handler:
    """Begins to tell whether it is drained, when it is asked to."""

    @functools.wraps(original)
    async def handle(self: Any, message: Any) -> Any:
        page = _page
        if page is not None and message.content == draining.REQUEST:
            return draining.begin(page, self, message)
        return await original(self, message)

    return handle


def _counting(original: Handler, name: Callable[[Any], tuple[bytes, str]]) -> Handler:
    monotonic = time.monotonic

    @functools.wraps(original)
    async def handle(self: Any, message: Any) -> Any:
        page = _page
        if page is None:
            return await original(self, message)
        actor, method = name(message)
        if actor is NOBODY or actor == NOBODY:  # a question of ours is no sign of progress
            return await original(self, message)
        slot = page.begin(monotonic(), actor, method)
        try:
            result = await original(self, message)
        finally:
            if page is _page:  # else this is a forked child
                page.end(monotonic(), slot)
                if name is _created:
                    page.tell(created=monotonic())
        if type(result) is ErrorMessage and not isinstance(result.error, OF_OTHERS):
            _notice(page, result.error)
        return result

    return handle


def _created(message: Any) -> tuple[bytes, str]:
    return message.actor_id or b"", "create_actor"


def _called(message: Any) -> tuple[bytes, str]:
    # xoscar sends (method, kind of call, arguments, keyword arguments).
    uid, content = message.actor_ref.uid, message.content
    method = content[0] if type(content) is tuple and content else "?"
    return (
        uid if type(uid) is bytes else str(uid).encode(errors="replace"),
        method if type(method) is str else f"{method}",
    )


def _notice(page: Page, error: BaseException) -> None:
    """Tell of an error that says that this process is broken."""
    patterns = config.current().fault_errors
    if patterns and not page.fault() and is_fault(error, patterns):
        page.tell_fault(logs.one_line(error))


def is_fault(error: BaseException, patterns: Iterable[str]) -> bool:
    """Whether one of the patterns matches the error's type, its text, or ``type: text``."""
    told = [name := type(error).__name__]
    with contextlib.suppress(Exception):  # its class may fail to tell it
        told += [text := str(error), f"{name}: {text}"]
    return any(fnmatch.fnmatchcase(each, pattern) for pattern in patterns for each in told)


# -- signs of life ---------------------------------------------------------------------------------


def _beat() -> None:
    """In the side thread, at intervals."""
    global _asked, _loop
    page, loop, now = _page, _loop, time.monotonic()
    if page is None:
        return
    page.tell(thread_beat=now, rss=_resident())
    if _signal and signal.getsignal(_signal) is not signal.SIG_DFL:
        _offer_stacks(page)  # by another one: the program has taken this one since
    if loop is None:
        return
    if _asked and now - _asked >= health.BUSY - health.BEAT:
        page.tell_doing(stack_of(_loop_thread))
        if not _asked:  # the loop has answered meanwhile
            page.tell_doing("")
    elif not _asked:
        _asked = now
        page.tell(loop_asked=now)
        try:
            loop.call_soon_threadsafe(_answer)
        except RuntimeError:  # it is closed: the pool has ended
            _loop = None
            _answer()


def _answer() -> None:
    """On the loop."""
    global _asked
    if _page is not None and _asked:
        lag = time.monotonic() - _asked
        _page.tell(loop_lag=lag, loop_asked=0.0)
        if lag >= health.BUSY - health.BEAT:
            _page.tell_doing("")
    _asked = 0.0


def _rest() -> None:
    global _asked
    side_thread.never(_beat)
    _asked = 0.0
    if _page is not None:
        _page.tell(thread_beat=0.0, loop_asked=0.0)


def _resident() -> int:
    with contextlib.suppress(OSError, ValueError, IndexError), open("/proc/self/statm", "rb") as f:
        return int(f.read().split()[1]) * _PAGE_SIZE
    return 0


_PAGE_SIZE = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096


def _offer_stacks(page: Page) -> None:
    """Let a signal write the stacks, also while the GIL is held: one that nobody uses."""
    global _signal
    if not hasattr(signal, "SIGRTMAX"):
        return
    if _signal and signal.getsignal(_signal) is signal.SIG_DFL:
        return  # faulthandler's, of which Python's table does not know
    _signal = 0
    page.tell(stack_signal=0)
    for number in range(signal.SIGRTMAX - 1, signal.SIGRTMIN, -1):
        with contextlib.suppress(OSError, RuntimeError, ValueError):
            taken = evidence.handles(
                os.getpid(), number
            )  # by C code, of which Python knows nothing
            if signal.getsignal(number) is signal.SIG_DFL and not taken:
                faulthandler.register(number, page.descriptor)
                page.tell(stack_signal=number)
                _signal = number
                return
