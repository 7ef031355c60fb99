"""Many endpoints in one process.

``python -m tests.support.peers N`` answers xoscar messages on N ports.
"""

from __future__ import annotations

import asyncio
import contextlib
import resource
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

from xoscar.backends.communication.socket import SocketServer
from xoscar.backends.message import ResultMessage

from .processes import line, started


@contextlib.contextmanager
def peers(n: int, quiet: bool = False) -> Iterator[list[str]]:
    """The addresses of ``n`` endpoints that answer each message with its ``content``.

    ``quiet``: connections break off, and what the endpoints say of that is no matter.
    """
    with started(
        *(sys.executable, "-m", "tests.support.peers", str(n)),
        orderly=True,
        stderr=subprocess.DEVNULL if quiet else None,
    ) as process:
        yield line(process).split()


async def _answer(channel: Any) -> None:
    with contextlib.suppress(EOFError, ConnectionError):
        while True:
            asked = await channel.recv()
            await channel.send(ResultMessage(asked.message_id, asked.content))


async def _serve(n: int) -> None:
    servers = [
        await SocketServer.create(
            {"address": "127.0.0.1:0", "handle_channel": _answer, "start_serving": True}
        )
        for _ in range(n)
    ]
    print(*(server.address for server in servers), flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


if __name__ == "__main__":
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    asyncio.run(_serve(int(sys.argv[1])))
