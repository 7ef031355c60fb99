"""A program that serves its metrics and knows nothing of xoscar_idle, told on stdin what to do."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from .environment import environment
from .processes import line, started, tell
from .waiting import BOUND

Series = dict[tuple[str, tuple[tuple[str, str], ...]], float]


class Program:
    """A running program of this module."""

    def __init__(self, process: subprocess.Popen[str], port: int) -> None:
        self._process = process
        self._url = f"http://127.0.0.1:{port}/metrics"

    def tell(self, *words: object) -> None:
        """Let it do something, and wait until it is done."""
        self.start(*words)
        assert line(self._process) == "done"

    def start(self, *words: object) -> None:
        """Let it do something."""
        tell(self._process, *words)

    def text(self) -> str:
        """What a scrape sees."""
        with urllib.request.urlopen(self._url, timeout=BOUND) as response:
            content: bytes = response.read()
        return content.decode()

    def scrape(self) -> Series:
        """The series that a scrape sees, by name and labels."""
        # Here, since the program itself is to import it when it is told to.
        from prometheus_client.parser import text_string_to_metric_families

        return {
            (sample.name, tuple(sorted(sample.labels.items()))): sample.value
            for family in text_string_to_metric_families(self.text())
            for sample in family.samples
        }


@contextlib.contextmanager
def serving(*modules: str, **variables: str) -> Iterator[Program]:
    """A program that imports ``modules`` in this order; one of them is its metrics library."""
    command = (sys.executable, "-m", "tests.support.serving", *modules)
    with started(*command, env=environment(**variables)) as process:
        yield Program(process, int(line(process)))


class _Aioprometheus(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        import aioprometheus

        content, headers = aioprometheus.render(aioprometheus.REGISTRY, ())
        self.send_response(200)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        pass


def _serve(library: str) -> int:
    if library == "prometheus_client":
        from prometheus_client import start_http_server

        return start_http_server(0, "127.0.0.1")[0].server_port
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Aioprometheus)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server.server_port


_hosted: list[Any] = []  # main pools


async def _obey(words: list[str], tasks: list[asyncio.Future[Any]]) -> None:
    import xoscar as xo

    from .hosting import worker

    match words:
        case ["call", *addresses]:
            for address in addresses:
                await (await worker(address)).echo(1)
        case ["fail", address]:
            with contextlib.suppress(OSError):
                await worker(address)
        case ["sleep", address]:
            tasks.append(asyncio.ensure_future((await worker(address)).sleep(60)))
            await asyncio.sleep(0)
        case ["cancel"]:
            while tasks:
                tasks.pop().cancel()
        case ["host", n_process]:
            _hosted.append(await xo.create_actor_pool("127.0.0.1", n_process=int(n_process)))
        case ["kill"]:
            next(iter(_hosted[0].sub_processes.values())).kill()
        case ["block"]:
            time.sleep(60)  # noqa: ASYNC251  # the loop is to be stuck
        case ["idle_timeout", seconds]:
            import xoscar_idle

            xoscar_idle.configure(idle_timeout=float(seconds))
        case ["uninstall"]:
            import xoscar_idle

            xoscar_idle.uninstall()
        case _:
            raise ValueError(words)


async def _main() -> None:
    tasks: list[asyncio.Future[Any]] = []
    while line := await asyncio.to_thread(sys.stdin.readline):
        await _obey(line.split(), tasks)
        print("done", flush=True)


if __name__ == "__main__":
    for _module in sys.argv[1:]:
        importlib.import_module(_module)
    print(_serve(next(m for m in sys.argv[1:] if m != "xoscar")), flush=True)
    asyncio.run(_main())
