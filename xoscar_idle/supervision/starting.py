"""The start of a sub-pool's process: with what it is started, for how long, and why it failed."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Callable, Coroutine
from contextvars import ContextVar
from functools import wraps
from typing import Any, TypeVar

from .. import config
from . import ending, records, subpool
from .capture import Capture, sweep
from .page import AVAILABLE, VARIABLE, Page
from .subpool import Subpool

logger = logging.getLogger("xoscar_idle")

T = TypeVar("T")

RID = 5.0
"""Seconds in which a process has ended that was killed."""

_births: ContextVar[list[Subpool] | None] = ContextVar("xoscar_idle_births", default=None)
born: ContextVar[Callable[[Subpool], None] | None] = ContextVar("xoscar_idle_born", default=None)
"""Who is told of a process that is started in this context."""

_told_why_not = False


def spawned(original: Callable[..., Coroutine[Any, Any, Any]]) -> Callable[..., Any]:
    """For what xoscar starts processes of sub-pools with: they get a page, and a log if wanted."""

    @wraps(original)
    async def create_subprocess_exec(*args: Any, **kwargs: Any) -> Any:
        page, capture = _page(), _capture()
        if page is not None:
            kwargs["env"] = {**(kwargs.get("env") or os.environ), VARIABLE: page.variable()}
            kwargs["pass_fds"] = (*kwargs.get("pass_fds", ()), page.descriptor)
        if capture is not None:
            kwargs.setdefault("stderr", capture.descriptor)
        try:
            process = await original(*args, **kwargs)
        except BaseException:
            if page is not None:
                page.close()
            if capture is not None:
                capture.finish(wait=False)
            raise
        if capture is not None:
            capture.close_in_parent()
        made = subpool.put(process, Subpool(process, page, capture))
        if (births := _births.get()) is not None:
            births.append(made)
        if (tell := born.get()) is not None:
            tell(made)
        return process

    return create_subprocess_exec


def started(original: Any) -> Any:
    """For the start of a sub-pool as a whole: one that fails tells what the process died of."""
    start = original.__func__

    @wraps(start)
    async def _create_sub_pool_from_parent(
        actor_pool_config: Any, process_index: int, start_python: str | None = None
    ) -> Any:
        births: list[Subpool] = []
        token = _births.set(births)
        try:
            return await _in_time(start(actor_pool_config, process_index, start_python), births)
        except BaseException as error:
            if not births:
                raise
            made = births[-1]
            if isinstance(error, OSError) and made.has_ended():
                raise _failure(
                    error, made, actor_pool_config.get_pool_config(process_index)
                ) from None
            if config.current().supervise == "act":
                await _rid_of(made)
            made.leave()  # xoscar leaves it, too
            raise
        finally:
            with contextlib.suppress(ValueError):
                _births.reset(token)

    return staticmethod(_create_sub_pool_from_parent)


async def _in_time(start: Coroutine[Any, Any, T], births: list[Subpool]) -> T:
    """Its result; a process that takes too long to start is ended, where that is ours to do."""
    chosen = config.current()
    if chosen.supervise != "act" or not chosen.start_timeout:
        return await start
    starting = asyncio.ensure_future(start)
    try:
        await asyncio.wait([starting], timeout=chosen.start_timeout)
        if not starting.done() and births:
            why = f"its start took longer than {chosen.start_timeout:g} s (XOSCAR_START_TIMEOUT)"
            await ending.kill(births[-1], why)
        return await starting
    except asyncio.CancelledError:
        starting.cancel()
        await asyncio.wait([starting])
        raise


async def _rid_of(made: Subpool) -> None:
    """End a process that nobody will have: else it would be there for ever."""
    with contextlib.suppress(ProcessLookupError):
        made.process.kill()
    ended = asyncio.ensure_future(made.process.wait())
    await asyncio.wait([ended], timeout=RID)
    ended.cancel()


def _failure(error: OSError, made: Subpool, conf: dict[str, Any]) -> OSError:
    """xoscar's error of a start, with the story of the process."""
    address = conf["external_address"][0]
    record = made.record(
        address="" if address.endswith(":0") else address,
        label=conf["label"],
        main_pid=os.getpid(),
        in_flight=None,
    )
    made.release()
    path = subpool.keep(record)
    logger.warning("%s", record.line())
    failure = OSError(f"{error}: {record.told()}")
    failure.record = path  # type: ignore[attr-defined]
    return failure


def _page() -> Page | None:
    if not AVAILABLE:
        return None
    try:
        return Page.create()
    except OSError as error:
        _warn("sub-pools cannot tell what they do: %s", error)
        return None


def _capture() -> Capture | None:
    if not config.current().capture_stderr:
        return None
    try:
        directory = records.own_directory()
        sweep(directory)
        return Capture.open(directory)
    except (OSError, ValueError) as error:
        _warn("the stderr of sub-pools is not captured: %s", error)
        return None


def _warn(message: str, error: Exception) -> None:
    global _told_why_not
    if not _told_why_not:
        _told_why_not = True
        logger.warning(message, error)
