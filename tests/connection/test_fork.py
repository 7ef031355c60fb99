"""What a forked child does with its parent's connections is nothing to the parent."""

from __future__ import annotations

import sys

import pytest

from ..support.peers import peers
from ..support.processes import run

pytestmark = pytest.mark.integration

FORKING = """
import asyncio, os, sys
from tests.support.memory import message
from xoscar.backends.core import ActorCaller
from xoscar.backends.router import Router
import xoscar_idle
from xoscar_idle.connection import registry

async def main(address):
    owner, router = ActorCaller(), Router([], None)
    assert (await owner.call(router, address, message(1))).result == 1
    mine = registry.here(owner)
    before = mine.connections()
    assert len(before) == 1
    if (pid := os.fork()) == 0:
        os._exit(0)
    await asyncio.to_thread(os.waitpid, pid, 0)
    for i in range(3):
        reply = await asyncio.wait_for(owner.call(router, address, message(i)), 60)
        assert reply.result == i
    assert mine.connections() == before, "another connection"
    await owner.stop()

if sys.argv[2] == "uvloop":
    import uvloop
    uvloop.install()
xoscar_idle.install(idle_timeout=30)
asyncio.run(main(sys.argv[1]))
"""


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_connections_of_the_parent_survive_a_fork(loop: str) -> None:
    with peers(1) as addresses:
        run(sys.executable, "-c", FORKING, addresses[0], loop)


CONNECTING = """
import asyncio, contextlib, json, os, socket, sys
from tests.support.memory import message
from xoscar.backends.communication.socket import _gen_unix_socket_default_path
from xoscar.backends.core import ActorCaller
from xoscar.backends.router import Router
import xoscar_idle

def accepts_nothing(family, address, backlog):
    listener = socket.socket(family)
    listener.bind(address)
    listener.listen(backlog)
    return listener

async def main(turns):
    tcp = accepts_nothing(socket.AF_INET, ("127.0.0.1", 0), 0)
    path = _gen_unix_socket_default_path(424242)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    unix = accepts_nothing(socket.AF_UNIX, path, 64)
    port = tcp.getsockname()[1]
    # glibc looks for a cache of names over a socket, which is none of ours: now, not at the fork.
    socket.getaddrinfo("localhost", port)
    others = set(os.listdir("/proc/self/fd"))
    routes = [f"127.0.0.1:{port}", f"0.0.0.0:{port}", f"localhost:{port}", "unixsocket:///424242"]
    # Each owner makes a connect of its own; what does not fit the backlog stays on its way.
    owners = [ActorCaller() for _ in range(8)]
    calls = [
        asyncio.ensure_future(owner.call(Router([], None), route, message(1)))
        for owner in owners
        for route in routes
    ]
    for _ in range(turns):
        await asyncio.sleep(0)
    read, write = os.pipe()
    if (pid := os.fork()) == 0:
        left = []
        for fd in map(int, set(os.listdir("/proc/self/fd")) - others):
            with contextlib.suppress(OSError):  # no socket, or the one that listdir has used
                with socket.socket(fileno=os.dup(fd)):
                    left.append(fd)
        os.write(write, json.dumps(left).encode())
        os._exit(0)
    os.close(write)
    print(await asyncio.to_thread(os.read, read, 65536))
    await asyncio.to_thread(os.waitpid, pid, 0)
    begun = [fd for fd in set(os.listdir("/proc/self/fd")) - others if fd.isdecimal()]
    print(len(begun) >= 8)
    for owner in owners:
        owner.cancel_tasks()
    await asyncio.wait(calls)
    os.unlink(path)

if sys.argv[2] == "uvloop":
    import uvloop
    uvloop.install()
xoscar_idle.install(idle_timeout=30)
asyncio.run(main(int(sys.argv[1])))
"""


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
@pytest.mark.parametrize("turns", [3, 4, 6, 12])
def test_a_child_has_none_of_its_parents_connects_under_way(loop: str, turns: int) -> None:
    done = run(sys.executable, "-c", CONNECTING, str(turns), loop)
    assert done.stdout == "b'[]'\nTrue\n"


LOCKED = """
import asyncio, contextlib, os, sys, threading
from tests.support.memory import message
from xoscar.backends.core import ActorCaller
from xoscar.backends.router import Router
import xoscar_idle
from xoscar_idle import activation, side_channel
from xoscar_idle.connection import cap, counters, registry
from xoscar_idle.telemetry import metrics

owner = ActorCaller()
xoscar_idle.install(idle_timeout=30)
held, go_on = threading.Event(), threading.Event()

async def call():
    # What is there for a thread goes in the child, before any hook runs; the connection is counted.
    await owner.call(Router([], None), sys.argv[1], message())

def hold():
    loop = asyncio.new_event_loop()
    loop.run_until_complete(call())
    with contextlib.ExitStack() as locks:
        for each in activation, side_channel, metrics, registry, cap.process, counters:
            locks.enter_context(each._lock)
        held.set()
        go_on.wait()

thread = threading.Thread(target=hold)
thread.start()
held.wait()
if (pid := os.fork()) == 0:
    assert xoscar_idle.statistics().closed["fork"] == 1
    xoscar_idle.configure(idle_timeout=5)
    xoscar_idle.uninstall()
    os._exit(0)
go_on.set()
thread.join()
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""


def test_a_child_waits_for_no_lock_of_a_thread_that_is_not_there() -> None:
    with peers(1) as (address,):
        run(sys.executable, "-c", LOCKED, address)


RESTING = """
import asyncio, os, sys, threading
from concurrent.futures import ThreadPoolExecutor
from tests.support.memory import message
from xoscar.backends.core import ActorCaller
from xoscar.backends.router import Router
import xoscar_idle

if sys.argv[2] == "uvloop":
    import uvloop
    uvloop.install()
xoscar_idle.install(idle_timeout=30)
owner, router, loop = ActorCaller(), Router([], None), asyncio.new_event_loop()

async def call(n):
    return (await asyncio.wait_for(owner.call(router, sys.argv[1], message(n)), 60)).result

async def stop():
    await owner.stop()

with ThreadPoolExecutor(1) as thread:
    run = lambda work: thread.submit(loop.run_until_complete, work).result()
    assert run(call(1)) == 1
    if (pid := os.fork()) == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    assert run(call(2)) == 2
    assert xoscar_idle.statistics().opened == 1
    run(stop())
"""


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_a_loop_that_rests_in_a_thread_survives_a_fork(loop: str) -> None:
    """The child drops that thread, and what hangs on it, before it knows that it is a child."""
    with peers(1) as addresses:
        run(sys.executable, "-c", RESTING, addresses[0], loop)
