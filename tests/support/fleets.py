"""A fleet: 40 pools in eight processes of two users on two nodes, five of which are not well.

The nodes are network namespaces, joined by a third, the desk, from which both are reached. Each
process has five main pools, with a label and an actor in each, and has called some of the others.
It needs Debian's ``util-linux`` beside what namespaces need.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xoscar as xo

import xoscar_idle

from . import processes
from .environment import environment
from .namespaces import Namespaces, namespaces
from .namespaces import unavailable as namespaces_unavailable
from .waiting import eventually, eventually_here

NODES = {"a": "10.201.1", "b": "10.201.2"}
DESK = "desk"
"""Where nothing of the fleet runs."""

OPERATOR, NOBODY = 65533, 65534
"""Users: of the processes and of whoever looks at them, and of one of the processes."""

HEALTHY, BLOCKED, STOPPED = "healthy", "blocked", "stopped"
GONE, INACTIVE, FOREIGN = "gone", "inactive", "foreign"

ROLES = {
    "ada": ("a", HEALTHY),
    "bob": ("a", BLOCKED),
    "cyd": ("a", STOPPED),
    "dan": ("a", FOREIGN),
    "eve": ("b", HEALTHY),
    "fay": ("b", HEALTHY),
    "gus": ("b", GONE),
    "hal": ("b", INACTIVE),
}
"""The processes: on which node each is, and what becomes of it."""

POOLS = {"gpu-0": "chat", "gpu-1": "embed", "gpu-2": "rank", "gpu-3": "speech", "cpu": "cache"}
"""The labels of the pools in each process, and how the names of their actors begin."""

CALLS = {
    "ada": {"bob": [0], "cyd": [0], "dan": [0], "eve": [0, 1, 2, 3, 4], "gus": [0], "hal": [0]},
    "bob": {"ada": [0, 1], "eve": [0]},
    "cyd": {"ada": [0], "hal": [0]},
    "dan": {"bob": [1], "hal": [1]},
    "eve": {"ada": [0, 1, 2, 3, 4], "fay": [0, 1]},
    "fay": {"ada": [0], "dan": [0], "eve": [0, 1], "gus": [0]},
    "gus": {"ada": [0], "eve": [0]},
    "hal": {"bob": [0], "dan": [0]},
}
"""Which pools of others each process has called. Healthy ones: of those that can be asked alone."""

TIMES = 3
"""How often each."""

SETTINGS = {"XOSCAR_IDLE_TIMEOUT": "600", "XOSCAR_IDLE_TIMEOUT_DUMMY": "0.1"}
"""Connections stay, but those within a process, over which its actors were created."""

PYTHON = Path(sys.executable)
"""Found on the path, so that command lines are as those of operators."""

COMMAND = "from xoscar_idle.commands.cli import main; main(prog_name='xoscar-idle')"


@dataclass(frozen=True)
class Member:
    """A process of the fleet, and its pools."""

    name: str
    role: str
    process: subprocess.Popen[str]
    addresses: list[str]

    @property
    def pid(self) -> int:
        """Of the process, unless it is gone."""
        return self.process.pid

    def actor(self, pool: int) -> str:
        """The name of the actor in one of its pools."""
        return _actor(self.name, pool)

    def order(self, word: str, *places: tuple[str, str]) -> None:
        """Have it call, or begin to, the actors of these names at these addresses."""
        processes.tell(self.process, json.dumps([word, places]))
        self.says("done")

    def says(self, word: str) -> None:
        """Wait until it says so."""
        assert processes.line(self.process) == word


class Fleet:
    """The processes of :func:`fleet`, and the commands of their operator."""

    def __init__(self, where: Namespaces, directory: Path) -> None:
        self.members: dict[str, Member] = {}
        self.directory = directory
        """All that is theirs is in it."""
        self._where = where
        self._homes = {user: directory / f"{user}" for user in (OPERATOR, NOBODY)}
        directory.chmod(0o711)
        for user, home in self._homes.items():
            for each in (home, home / "monitor"):
                each.mkdir(0o700)
                os.chown(each, user, user)

    def __getitem__(self, name: str) -> Member:
        return self.members[name]

    def of(self, *roles: str) -> list[Member]:
        """Those of which one of these has become."""
        return [each for each in self.members.values() if each.role in roles]

    @property
    def monitor(self) -> Path:
        """The directory of the sockets over which the operator's are asked."""
        return self._homes[OPERATOR] / "monitor"

    def command(self, *arguments: object, at: str = "a") -> list[str]:
        """What runs ``xoscar-idle`` for the operator, on a node or at the desk."""
        python = (PYTHON.name, "-c", COMMAND, *map(str, arguments))
        return self._where.command(at, *_as(OPERATOR), *python)

    def environment(self, user: int = OPERATOR, **settings: str) -> dict[str, str]:
        """That of a user's commands, and processes."""
        home = f"{self._homes[user]}"
        homes = dict.fromkeys(("HOME", "TMPDIR", "XDG_STATE_HOME", "XOSCAR_DIR"), home)
        path = f"{PYTHON.parent}:{os.environ['PATH']}"
        own = environment(**homes, PATH=path, XOSCAR_IDLE_MONITOR=f"{home}/monitor", **settings)
        # Coverage is written to where they may not write.
        return {name: value for name, value in own.items() if not name.startswith("COVERAGE_")}

    def run(
        self, *arguments: object, at: str = "a", columns: int = 160, **options: Any
    ) -> subprocess.CompletedProcess[str]:
        """Run ``xoscar-idle`` to its end, whatever its exit status.

        ``options`` are those of :func:`.processes.run`.
        """
        command, env = self.command(*arguments, at=at), self.environment(COLUMNS=f"{columns}")
        return processes.run(*command, **{"status": None, "env": env, **options})

    def start(self) -> None:
        """Start all of them, and let each call others."""
        started = {name: self._started(name) for name in ROLES}
        for name, (_, role) in ROLES.items():
            addresses = processes.line(started[name]).split()
            self.members[name] = Member(name, role, started[name], addresses)
        for name, called in CALLS.items():
            places = [self.place(each, pool) for each, pools in called.items() for pool in pools]
            self[name].order("call", *places * TIMES)

    def befall(self) -> None:
        """Let become of each what it is to be; those that stay healthy are in the middle of it."""
        self._begin("eve", "train", "ada")
        for each in self.of(BLOCKED):
            self._begin("eve", "block", each.name)
        for each in self.of(STOPPED):
            each.process.send_signal(signal.SIGSTOP)
        for each in self.of(GONE):
            each.process.kill()
            each.process.wait()
            eventually(functools.partial(self._left, each))

    def place(self, name: str, pool: int) -> tuple[str, str]:
        """The address of a pool, and the name of its actor."""
        return self[name].addresses[pool], self[name].actor(pool)

    def _begin(self, caller: str, method: str, called: str) -> None:
        self[caller].order(method, self.place(called, 0))
        self[called].says(method)

    def _left(self, one: Member) -> bool:
        """Whether none who is healthy has a connection to one that is gone any more."""
        told = self.run("stats", "--json", *(each.pid for each in self.of(HEALTHY)), status=0)
        connections = [c for each in json.loads(told.stdout) for c in each["connections"]]
        return not {each["address"] for each in connections}.intersection(one.addresses)

    def _started(self, name: str) -> subprocess.Popen[str]:
        node, role = ROLES[name]
        user = NOBODY if role == FOREIGN else OPERATOR
        settings = {} if role == INACTIVE else SETTINGS
        python = (PYTHON.name, "-m", "tests.support.fleets", name)
        env = self.environment(user, **settings)
        return self._where.run(node, [*_as(user), *python], env=env)


@contextlib.contextmanager
def fleet() -> Iterator[Fleet]:
    """The whole of it; in the end nothing is left."""
    with (
        namespaces(*NODES, DESK) as where,
        tempfile.TemporaryDirectory(dir="/tmp") as directory,  # to which others get, too
        contextlib.ExitStack() as stack,
    ):
        for node, network in NODES.items():
            where.join(node, DESK, [f"{network}.2/24"], [f"{network}.1/24"])
            where.route(node, f"{network}.1")
        where.do(DESK, "sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward")
        stack.callback(where.end)  # those that write into the directory
        made = Fleet(where, Path(directory))
        made.start()
        made.befall()
        yield made


@functools.cache
def unavailable() -> str | None:
    """Why there can be no fleet here; None if there can."""
    if reason := namespaces_unavailable("setpriv"):
        return reason
    try:
        with namespaces("one", "other") as where:
            where.join("one", "other", ["10.201.1.2/24"], ["10.201.1.1/24"])
            where.do("one", *_as(OPERATOR), "true")
    except RuntimeError as error:
        return f"no namespaces can be made, or no other users be: {error}"
    return None


def _as(user: int) -> list[str]:
    """What lets a command run as a user who may read what is here, wherever this checkout is."""
    capability = ("--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search")
    return ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups", *capability]


def _actor(name: str, pool: int) -> str:
    return f"{list(POOLS.values())[pool]}-{name}"


# What runs on the nodes: ``python -m tests.support.fleets NAME``. It prints its addresses, does
# what it is told on its standard input, and ends with that.


class Model(xo.StatelessActor):  # type: ignore[misc]
    """Answers at once, or never."""

    async def answer(self, value: int) -> int:
        return value

    async def train(self) -> None:
        print("train", flush=True)
        await asyncio.Event().wait()

    def block(self) -> None:
        """Its event loop with it."""
        print("block", flush=True)
        threading.Event().wait()


_begun: set[asyncio.Task[Any]] = set()


async def _obey(word: str, places: list[list[str]]) -> None:
    for address, uid in places:
        actor = await xo.actor_ref(address=address, uid=uid)
        if word == "call":
            assert await actor.answer(1) == 1
        else:
            _begun.add(asyncio.ensure_future(getattr(actor, word)()))


def _listen(loop: asyncio.AbstractEventLoop) -> None:
    for line in sys.stdin:
        asyncio.run_coroutine_threadsafe(_obey(*json.loads(line)), loop).result()
        print("done", flush=True)
    os._exit(0)


async def _serve(name: str) -> None:
    node, _ = ROLES[name]
    number = [each for each, (place, _) in ROLES.items() if place == node].index(name) + 1
    pools = []
    for i, label in enumerate(POOLS):
        address = f"{NODES[node]}.2:9{number}0{i}"
        pool = await xo.create_actor_pool(address, n_process=0, labels=[label])
        await xo.create_actor(Model, uid=_actor(name, i), address=pool.external_address)
        pools.append(pool)
    await eventually_here(lambda: not xoscar_idle.statistics().open)
    print(*(pool.external_address for pool in pools), flush=True)
    threading.Thread(target=_listen, args=(asyncio.get_running_loop(),), daemon=True).start()
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_serve(sys.argv[1]))
