"""Who may ask what: all that a request can say of itself, at each kind of door."""

from __future__ import annotations

import dataclasses
import itertools

import pytest

from xoscar_idle.http.access import Asked, Door, judge

TOKEN = "sesame-0123456789"
LOOPBACK = Door("127.0.0.1", True, TOKEN)
OPEN = Door("127.0.0.1", True, None)
ELSEWHERE = Door("0.0.0.0", False, TOKEN)
SOCKET = Door("", True, TOKEN)
DOORS = (LOOPBACK, OPEN, ELSEWHERE, SOCKET)

READ = Asked("GET", "/health", host="127.0.0.1:9998")
STEER = Asked("POST", "/v1/fault_tolerance/apply", host="127.0.0.1:9998")
PAGE = Asked("GET", "/", host="127.0.0.1:9998")

RIGHT = f"Bearer {TOKEN}"


def with_(asked: Asked, **changes: str) -> Asked:
    return dataclasses.replace(asked, **changes)


@pytest.mark.parametrize(
    ("door", "asked", "status"),
    [
        (LOOPBACK, READ, 0),
        (SOCKET, READ, 0),
        (OPEN, READ, 0),
        (ELSEWHERE, READ, 401),
        (ELSEWHERE, PAGE, 0),
        (ELSEWHERE, with_(READ, authorization=RIGHT), 0),
        (LOOPBACK, STEER, 401),
        (SOCKET, STEER, 401),
        (OPEN, STEER, 403),
        (OPEN, with_(STEER, authorization=RIGHT), 403),
        (ELSEWHERE, STEER, 401),
        *((door, with_(STEER, authorization=RIGHT), 0) for door in (LOOPBACK, ELSEWHERE, SOCKET)),
    ],
)
def test_who_may(door: Door, asked: Asked, status: int) -> None:
    assert judge(asked, door).status == status


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "TRACE", "GETS", "post"])
def test_whatever_does_not_read_needs_the_token(method: str) -> None:
    for door in DOORS:
        for path in ("/", "/health", "/v1/fault_tolerance/apply"):
            assert judge(Asked(method, path, host="127.0.0.1"), door).refused


@pytest.mark.parametrize(
    "wrong",
    [
        "",
        "Bearer",
        "Bearer ",
        "Bearer sesame",
        f"Bearer {TOKEN}x",
        f"Bearer {TOKEN[:-1]}",
        f"Basic {TOKEN}",
        TOKEN,
        f"Bearer  {TOKEN} {TOKEN}",
        "Bearer \udc80\xff",
    ],
)
def test_a_wrong_token_is_refused_everywhere(wrong: str) -> None:
    for door, asked in itertools.product((LOOPBACK, ELSEWHERE, SOCKET), (READ, STEER, PAGE)):
        verdict = judge(with_(asked, authorization=wrong), door)
        assert (verdict.status, verdict.authorized) == (401, False)
        assert TOKEN not in verdict.text


def test_the_word_before_the_token_is_of_any_size() -> None:
    assert judge(with_(STEER, authorization=f"bearer {TOKEN}"), LOOPBACK).authorized
    assert judge(with_(STEER, authorization=f"BEARER   {TOKEN} "), LOOPBACK).authorized


@pytest.mark.parametrize(
    ("path", "query"),
    [
        ("/health", f"token={TOKEN}"),
        ("/health", "token="),
        ("/health", "Access_Token=other"),
        ("/health", f"x={TOKEN}"),
        ("/health", f"{TOKEN}"),
        ("/health", "x=sesame%2d0123456789"),
        (f"/{TOKEN}", ""),
    ],
)
def test_a_token_in_the_address_is_refused(path: str, query: str) -> None:
    for authorization in (None, RIGHT):
        asked = Asked("GET", path, query, "127.0.0.1", authorization=authorization)
        assert judge(asked, LOOPBACK).status == 400


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "127.0.0.1:9998", "localhost", "LOCALHOST:1", "[::1]:9998", "::1", "10.0.0.7:80"],
)
def test_addresses_are_no_names_of_others(host: str) -> None:
    assert not judge(with_(READ, host=host), LOOPBACK).refused


@pytest.mark.parametrize(
    "host",
    [
        "evil.com",
        "evil.com:9998",
        "127.0.0.1.evil.com",
        "localhost.evil.com",
        "",
        "[evil]:1",
        "a b",
    ],
)
@pytest.mark.parametrize("asked", [READ, PAGE])
def test_a_name_of_another_site_is_refused(host: str, asked: Asked) -> None:
    for door in (LOOPBACK, OPEN, ELSEWHERE):
        assert judge(with_(asked, host=host), door).status == 403
    assert not judge(with_(asked, host=host), SOCKET).refused, "no browser comes over a socket"
    assert not judge(with_(asked, host=host, authorization=RIGHT), LOOPBACK).refused


def test_its_own_name_is_known() -> None:
    assert not judge(
        with_(READ, host="node-7.local:9998"), Door("Node-7.local", True, None)
    ).refused


@pytest.mark.parametrize(
    "origin", ["http://evil.com", "null", "", "http://127.0.0.1:1", "http://["]
)
def test_pages_of_other_sites_are_refused_with_the_token_too(origin: str) -> None:
    for authorization in (None, RIGHT):
        asked = dataclasses.replace(STEER, origin=origin, authorization=authorization)
        assert judge(asked, ELSEWHERE).status == 403


def test_its_own_page_is_not() -> None:
    asked = with_(STEER, origin="http://127.0.0.1:9998", authorization=RIGHT)
    assert judge(asked, LOOPBACK).authorized
    assert judge(with_(READ, origin="HTTP://127.0.0.1:9998"), LOOPBACK).status == 0


def test_whatever_is_not_authorized_reads_from_here_alone() -> None:
    """Of all combinations: who comes in without the token reads, at a local door or the page."""
    for door, method, path, host, origin, authorization in itertools.product(
        DOORS,
        ("GET", "HEAD", "POST", "DELETE"),
        ("/", "/health"),
        (None, "127.0.0.1", "evil.com"),
        (None, "http://127.0.0.1", "http://evil.com"),
        (None, RIGHT, "Bearer wrong"),
    ):
        verdict = judge(Asked(method, path, "", host, origin, authorization), door)
        assert verdict.authorized <= (authorization == RIGHT and door.token == TOKEN)
        if not verdict.refused:
            assert origin in (None, f"http://{host}")
            if not verdict.authorized:
                assert method in ("GET", "HEAD")
                assert door.is_local or path == "/"
                assert host != "evil.com" or not door.host
