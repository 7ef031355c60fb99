"""A NAT that forgets: three network namespaces, client, NAT and server, and what runs in them.

The NAT is Linux's own: nftables masquerades what the client sends, conntrack forgets a session
after some seconds of silence, and packets of no known session vanish without a word. It needs
Debian's ``nftables`` beside what namespaces need.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import functools
import json
import os
import random
import socket
import struct
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any

import xoscar as xo
from xoscar.errors import ServerClosed
from xoscar.serialization import serialize

from .hosting import Worker, sockets, worker
from .namespaces import Namespaces, namespaces
from .namespaces import unavailable as namespaces_unavailable

CLIENT, SERVER = "10.200.1.2", "10.200.2.2"

# Only a handshake from the client's side makes a session. The input chain is for the server's
# replies to a forgotten session: they are addressed to the NAT, which would answer them with RST.
RULES = """
table ip nat {
    chain input { type filter hook input priority filter; policy drop; }
    chain forward {
        type filter hook forward priority filter; policy drop;
        ct state established accept
        iifname "client" tcp flags & (fin | syn | rst | ack) == syn ct state new accept
    }
    chain postrouting {
        type nat hook postrouting priority srcnat;
        oifname "server" masquerade
    }
}
"""

# Every state of a session lasts as long, so that one being closed is forgotten as well. What is
# forgotten is not picked up again from a packet in the middle (tcp_loose).
FORGET = """
cd /proc/sys/net
for timeout in netfilter/nf_conntrack_tcp_timeout_*; do echo {remember} > $timeout; done
echo 0 > netfilter/nf_conntrack_tcp_loose
echo 1 > ipv4/ip_forward
"""


class Nat:
    """The namespaces of :func:`nat`."""

    server_address = SERVER

    def __init__(self, where: Namespaces, conntrack: socket.socket) -> None:
        self._where = where
        self._conntrack = conntrack

    def run(self, where: str, argv: list[str], **popen: Any) -> subprocess.Popen[str]:
        """Start a process in the namespace of the ``client`` or the ``server``.

        It ends with the NAT; its pid is that of the program, ``ip netns exec`` being no parent.
        """
        return self._where.run(where, argv, **popen)

    def flush(self) -> None:
        """Forget all sessions at once."""
        list(_ask(self._conntrack, _CT_DELETE, _ACK))

    def sessions(self) -> int:
        """How many sessions the NAT knows. Only TCP gets through it."""
        return sum(kind == _CT_NEW for kind in _ask(self._conntrack, _CT_GET, _DUMP))


@contextlib.contextmanager
def nat(remember: int) -> Iterator[Nat]:
    """A NAT that forgets a session after ``remember`` seconds of silence; whole seconds."""
    with namespaces("client", "nat", "server") as where:
        where.join("client", "nat", [f"{CLIENT}/24"], ["10.200.1.1/24"])
        where.join("server", "nat", [f"{SERVER}/24"], ["10.200.2.1/24"])
        where.route("client", "10.200.1.1")
        # The rules first: they are what brings conntrack and its settings up.
        where.do("nat", "nft", "-f", "-", text=RULES)
        where.do("nat", "sh", "-e", text=FORGET.format(remember=remember))
        with _conntrack(where.path("nat")) as conntrack:
            yield Nat(where, conntrack)


@functools.cache
def unavailable() -> str | None:
    """Why there can be no NAT here; None if there can."""
    if reason := namespaces_unavailable("nft"):
        return reason
    try:
        with nat(1) as tried:
            tried.sessions()
    except (OSError, RuntimeError) as error:
        return f"no NAT can be made: {error}"
    return None


# Conntrack's table is reached by netlink (linux/netfilter/nfnetlink_conntrack.h); the command that
# speaks it is in a package of its own.
_NETLINK_NETFILTER = 12
_CT_NEW, _CT_GET, _CT_DELETE = 0x100, 0x101, 0x102
_REQUEST, _ACK, _DUMP = 0x1, 0x4, 0x300
_ERROR, _DONE = 2, 3
_CLONE_NEWNET = 0x40000000


def _conntrack(namespace: Path) -> socket.socket:
    """A socket to the conntrack of a namespace. It stays there; the thread that made it ends."""
    made: list[socket.socket | OSError] = []

    def enter() -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        try:
            with namespace.open("rb") as file:
                if libc.setns(file.fileno(), _CLONE_NEWNET):
                    raise OSError(ctypes.get_errno(), "setns failed")
            made.append(socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER))
        except OSError as error:
            made.append(error)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    (result,) = made
    if isinstance(result, OSError):
        raise result
    result.settimeout(10)
    return result


def _ask(conntrack: socket.socket, kind: int, flags: int) -> Iterator[int]:
    """Send a request without attributes, one about all sessions; the kinds of the answers."""
    body = struct.pack("=BBH", socket.AF_INET, 0, 0)
    header = struct.pack("=IHHII", 16 + len(body), kind, _REQUEST | flags, 0, 0)
    conntrack.send(header + body)
    while True:
        answer = conntrack.recv(1 << 17)
        while answer:
            length, answered = struct.unpack_from("=IH", answer)
            if answered == _ERROR:
                (code,) = struct.unpack_from("=i", answer, 16)
                if code:
                    raise OSError(-code, f"conntrack: {os.strerror(-code)}")
            if answered in (_ERROR, _DONE):
                return
            yield answered
            answer = answer[(length + 3) & ~3 :]


# What runs in the namespaces: ``python -m tests.support.nat serve ADDRESS N`` and
# ``python -m tests.support.nat client SCENARIO SECONDS ADDRESS...``. Both print one line when
# they are ready or have a result, and stay until their standard input ends.

IDLE_ROUNDS = 2
BOUND = 30.0 if "XOSCAR_IDLE_TIMEOUT" in os.environ else 4.0
"""Seconds: without an answer after this long, or this long after it was due, a call has failed.

Many stock calls never get one, and each is waited for.
"""

DEADLINE = 2.0
"""Seconds that a call may take under load."""

ANSWERED, NO_ANSWER = "answered", "no answer"

BROKEN_OFF = (TimeoutError, ServerClosed, ConnectionError)
"""What a call may raise when the network is to blame."""


async def outcome(call: Coroutine[Any, Any, Any], bound: float) -> str:
    """``ANSWERED``, the kind of the call's error, or ``NO_ANSWER`` within the bound.

    A call without an answer is left as it is: in xoscar, cancelling one may hang as well.
    """
    task = asyncio.ensure_future(call)
    done, _ = await asyncio.wait([task], timeout=bound)
    if not done:
        task.add_done_callback(lambda late: late.cancelled() or late.exception())
        return NO_ANSWER
    try:
        task.result()
    except BROKEN_OFF as error:
        return next(kind.__name__ for kind in BROKEN_OFF if isinstance(error, kind))
    except BaseException as error:
        return repr(error)
    return ANSWERED


async def echo(address: str, value: Any) -> None:
    """One call, or two: stock asks for the actor, too."""
    assert await (await worker(address)).echo(value) == value


async def opened(address: str) -> Any:
    """The worker at an address, with a connection that has just answered."""
    while await outcome(echo(address, 0), BOUND) != ANSWERED:
        pass
    return await worker(address)


async def idle(seconds: float, addresses: list[str]) -> dict[str, Any]:
    """Some seconds of silence after a call to each address, then the call that counts."""
    outcomes: Counter[str] = Counter()
    for _ in range(IDLE_ROUNDS):
        actors = await asyncio.gather(*map(opened, addresses))
        await asyncio.sleep(seconds)
        outcomes.update(await asyncio.gather(*(outcome(a.echo(1), BOUND) for a in actors)))
    return {"outcomes": outcomes}


async def long(seconds: float, addresses: list[str]) -> dict[str, Any]:
    """A call to each address that takes some seconds."""
    actors = await asyncio.gather(*map(opened, addresses))
    calls = (outcome(actor.sleep(seconds), seconds + BOUND) for actor in actors)
    return {"outcomes": Counter(await asyncio.gather(*calls))}


async def hold(seconds: float, addresses: list[str]) -> dict[str, Any]:
    """A connection to each address."""
    await asyncio.gather(*map(opened, addresses))
    return {}


async def load(seconds: float, addresses: list[str]) -> dict[str, Any]:
    """Calls of all kinds until a line is read; some seconds later, one to each address."""
    rng = random.Random(4)
    before = sockets()
    outcomes: Counter[str] = Counter()
    told = asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)

    async def call(address: str, seconds: float = DEADLINE) -> None:
        with contextlib.ExitStack() as stack:
            if os.environ.get("XOSCAR_IDLE_TIMEOUT"):
                import xoscar_idle

                stack.enter_context(xoscar_idle.deadline(seconds))
            if rng.random() < 0.5:
                await (await worker(address)).sleep(rng.uniform(0, 1))
            else:
                await echo(address, b"x" * int(10 ** rng.uniform(0, 5)))

    async def caller(address: str) -> None:
        while not told.done():
            outcomes[await outcome(call(address), DEADLINE + BOUND)] += 1
            await asyncio.sleep(rng.uniform(0, 0.1))

    # Many share a connection, or one has it for itself: what the others send tells the kernel that
    # nobody acknowledges, but while one waits for its reply nothing is sent.
    many, one = addresses[::2], addresses[1::2]
    await asyncio.gather(*map(caller, many * 4 + one))
    await asyncio.sleep(seconds)
    again = await asyncio.gather(*(outcome(call(a, BOUND), DEADLINE + BOUND) for a in addresses))
    return {"before": before, "outcomes": outcomes, "again": Counter(again)}


SCENARIOS = {scenario.__name__: scenario for scenario in (idle, long, hold, load)}


async def _client(scenario: str, seconds: float, addresses: list[str]) -> None:
    serialize(object)  # the first time, xoscar imports what it could meet; the NAT would not wait
    print(json.dumps(await SCENARIOS[scenario](seconds, addresses)), flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    os._exit(0)  # there may be calls that never end


async def _serve(address: str, n: int) -> None:
    pools = [await xo.create_actor_pool(address, n_process=0) for _ in range(n)]
    addresses = [pool.external_address for pool in pools]
    for each in addresses:
        await xo.create_actor(Worker, uid="worker", address=each)
    print(*addresses, flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    os._exit(0)


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        asyncio.run(_serve(sys.argv[2], int(sys.argv[3])))
    else:
        asyncio.run(_client(sys.argv[2], float(sys.argv[3]), sys.argv[4:]))
