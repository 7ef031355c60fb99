"""A client of the HTTP interface: whole answers, and streams of events."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from .waiting import BOUND

WEB = "127.0.0.4"
"""Where interfaces of tests listen: connections within the machine come from other addresses."""

TOKEN = "sesame-0123456789"

BEARER = {"authorization": f"Bearer {TOKEN}"}


def free() -> str:
    """An address for an interface, whose port nobody has."""
    with socket.create_server((WEB, 0)) as sock:
        return f"{WEB}:{sock.getsockname()[1]}"


def connected(where: str) -> socket.socket:
    """A connection to a URL, or to the path of a unix socket."""
    if where.startswith("/"):
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.settimeout(BOUND)
        sock.connect(where)
        return sock
    parts = urlsplit(where)
    return socket.create_connection((f"{parts.hostname}", parts.port or 80), timeout=BOUND)


@dataclass(frozen=True)
class Answer:
    """What was answered."""

    status: int
    headers: Mapping[str, str]
    text: str

    @property
    def json(self) -> Any:
        """What JSON it is."""
        return json.loads(self.text)


def request(
    where: str,
    path: str,
    method: str = "GET",
    body: object = None,
    **headers: str,
) -> Answer:
    """The answer to a request; a body that is no text is sent as JSON."""
    with contextlib.closing(connected(where)) as sock:
        host = urlsplit(where).netloc or "localhost"
        sent = {"host": host, **{name.replace("_", "-"): value for name, value in headers.items()}}
        if body is not None:
            sent.setdefault("content-type", "application/json")
        client = http.client.HTTPConnection(host)
        client.sock = sock
        text = body if body is None or isinstance(body, (str, bytes)) else json.dumps(body)
        client.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
        for name, value in sent.items():
            client.putheader(name, value)
        data = text.encode() if isinstance(text, str) else text
        if data is not None:
            client.putheader("content-length", f"{len(data)}")
        client.endheaders(data)
        answer = client.getresponse()
        told = answer.read().decode()
        return Answer(answer.status, {k.lower(): v for k, v in answer.getheaders()}, told)


@dataclass(frozen=True)
class Sent:
    """One event of a stream."""

    id: str
    event: str
    data: dict[str, Any]


class Stream:
    """The events of an interface, as they come."""

    def __init__(self, sock: socket.socket) -> None:
        self._file = sock.makefile("rb")
        head = [line.strip() for line in iter(self._file.readline, b"\r\n")]
        assert head[0].startswith(b"HTTP/1.1 200"), head
        self._frames = self._read()

    def _read(self) -> Iterator[Sent]:
        """Frames of chunks, as HTTP has them: here each chunk has whole ones."""
        while size := int(self._file.readline() or b"0", 16):
            chunk = self._file.read(size).decode()
            self._file.readline()
            for frame in chunk.split("\n\n"):
                fields = dict(re.findall(r"^(\w+): (.*)$", frame, re.MULTILINE))
                if "data" in fields:
                    yield Sent(fields["id"], fields["event"], json.loads(fields["data"]))

    def close(self) -> None:
        """The connection is closed then, too."""
        self._file.close()

    def next(self) -> Sent:
        """The next event."""
        return next(self._frames)

    def until(self, **data: object) -> list[Sent]:
        """All up to the first one with these data."""
        found = []
        for each in self._frames:
            found.append(each)
            if data.items() <= each.data.items():
                return found
        raise AssertionError("the stream has ended")


@contextlib.contextmanager
def events(where: str, **headers: str) -> Iterator[Stream]:
    """The stream of an interface."""
    with contextlib.closing(connected(where)) as sock:
        lines = [f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items()]
        sock.sendall(f"GET /v1/events HTTP/1.1\r\nhost: localhost\r\n{''.join(lines)}\r\n".encode())
        with contextlib.closing(Stream(sock)) as stream:
            yield stream
