"""Where xoscar's main pools meet their supervisors."""

from __future__ import annotations

import asyncio
import functools
import json
import logging
from collections.abc import Callable, Coroutine
from typing import Any

from xoscar.backends.indigen.pool import MainActorPool
from xoscar.backends.message import ControlMessageType, MessageType, ResultMessage
from xoscar.backends.pool import MainActorPoolBase

from .. import config
from ..connection import hosted
from . import answers, subpool, supervisor
from .crash import PoolUnavailable
from .supervisor import Supervisor

logger = logging.getLogger("xoscar_idle")


class Processes(dict[str, Any]):
    """The processes of a main pool by address, which tells its supervisor when it changes."""

    supervisor: Supervisor | None = None


def _telling(name: str) -> Callable[..., Any]:
    method = getattr(dict, name)

    @functools.wraps(method)
    def change(self: Processes, *args: Any, **kwargs: Any) -> Any:
        result = method(self, *args, **kwargs)
        _follow(self.supervisor)
        return result

    return change


for _name in (
    "__setitem__",
    "__delitem__",
    "__ior__",
    "clear",
    "pop",
    "popitem",
    "setdefault",
    "update",
):
    setattr(Processes, _name, _telling(_name))


class Watched:
    """For ``sub_processes`` of xoscar's main pools: whatever is assigned there is watched."""

    def __init__(self, slot: Any) -> None:
        self._slot = slot

    def __get__(self, pool: Any, owner: Any = None) -> Any:
        return self if pool is None else self._slot.__get__(pool, owner)

    def __set__(self, pool: Any, processes: dict[str, Any]) -> None:
        try:
            before = self._slot.__get__(pool)
        except AttributeError:
            before = None
        watched = Processes(processes)
        watched.supervisor = _in_force(before) or _supervisor(pool)
        self._slot.__set__(pool, watched)
        _follow(watched.supervisor)

    def __delete__(self, pool: Any) -> None:
        self._slot.__delete__(pool)


_told = False


def _follow(supervisor: Supervisor | None) -> None:
    global _told
    try:
        if supervisor is not None:
            supervisor.follow()
    except Exception:  # whoever changes it is the program
        if not _told:
            _told = True
            logger.warning("a process of a main pool is not watched", exc_info=True)


def _supervisor(pool: Any) -> Supervisor | None:
    try:
        return supervisor.supervise(pool)
    except RuntimeError:  # no loop is running: it is no pool that runs
        return None


def of(pool: Any) -> Supervisor | None:
    """The supervisor of a main pool."""
    return _in_force(pool.sub_processes)


def _in_force(processes: Any) -> Supervisor | None:
    found: Supervisor | None = getattr(processes, "supervisor", None)
    return None if found is None or found.recovery.retired else found


def started(original: Callable[[Any], Coroutine[Any, Any, Any]]) -> Callable[..., Any]:
    """For ``start_monitor`` of xoscar's main pools; for a pool that starts empty, too."""

    @functools.wraps(original)
    async def start_monitor(self: Any) -> Any:
        if of(self) is None:
            self.sub_processes = self.sub_processes  # from before install(): they are watched now
        ours = of(self)
        if ours is None or _has_own_monitor(type(self)):
            return await original(self)
        if self._monitor_task is None:
            self._monitor_task = asyncio.create_task(ours.run())
        ours.follow()
        return self._monitor_task

    return start_monitor


def _has_own_monitor(kind: Any) -> bool:
    """Whether a program knows better: how its pools are watched, or what it is to be alive."""
    own = kind.monitor_sub_pools is not MainActorPoolBase.monitor_sub_pools
    return own or kind.is_sub_pool_alive is not MainActorPool.is_sub_pool_alive


def killed(original: Callable[..., Any]) -> Callable[..., Any]:
    """For ``kill_sub_pool`` of xoscar's main pools: such an end is no crash."""

    @functools.wraps(original)
    async def kill_sub_pool(self: Any, process: Any, force: bool = False) -> Any:
        found = subpool.known(process)
        if found is not None and not found.requested:
            found.requested = "it was killed by its main pool"
        return await original(self, process, force=force)

    return kill_sub_pool


Handler = Callable[[Any, Any], Coroutine[Any, Any, Any]]


def handlers(original: dict[MessageType, Handler]) -> dict[MessageType, Handler]:
    """For the handlers of xoscar's main pools: knows our questions, and who waits for recovery."""
    control = original[MessageType.control]

    @functools.wraps(control)
    async def handle(self: Any, message: Any) -> Any:
        ours = of(self)
        kind = message.control_message_type
        if ours is not None and kind == ControlMessageType.wait_pool_recovered:
            if ours.recovery.monitors and message.address != self.external_address:
                if await ours.recovered(message.address) is None:
                    _give_up_waiting(ours, message.address)
                return ResultMessage(message.message_id, True, protocol=message.protocol)
        elif kind == ControlMessageType.get_config and answers.is_question(message.content):
            told = json.dumps(await answers.answer(message.content))
            return ResultMessage(message.message_id, told, protocol=message.protocol)
        return await control(self, message)

    return {**original, MessageType.control: handle}


def _give_up_waiting(ours: Supervisor, address: str) -> None:
    """Tell who waits for a recovery that there is none for now; xoscar would wait for ever."""
    if config.current().supervise == "act" and (told := ours.down(address)) is not None:
        raise PoolUnavailable.of(address, told)


def adopt() -> None:
    """Watch the sub-pools of main pools that were made before; xoscar's monitor stays theirs."""
    for pool in [each for each in hosted.pools() if isinstance(each, MainActorPoolBase)]:
        if (task := pool._monitor_task) is not None and not pool.stopped:
            loop = task.get_loop()
            try:
                loop.call_soon_threadsafe(_adopt, pool)
            except RuntimeError:  # it is closed
                continue


def _adopt(pool: Any) -> None:
    pool.sub_processes = pool.sub_processes
