# SPDX-License-Identifier: Apache-2.0
"""Only requests with the token are answered; without a token, only requests to one of this host's names."""

from __future__ import annotations

import base64
import json
import socket
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from nettop.serve.health import HEALTH_PATH, health_response
from nettop.serve.http.credentials import Credentials
from nettop.serve.http.guard import Guard, is_authorized, is_own_host, own_names
from nettop.serve.http.listeners import endpoints_of

TOKEN = b"0123456789abcdef"
NAMES = frozenset({"monitor", "monitor.example"})
REASONS: list[str] = []
"""Why not all is well, of the application."""


async def application(scope: Any, receive: Any, send: Any) -> None:
    """Answer every request."""
    headers = {"Content-Security-Policy": "default-src 'self'", "Cache-Control": "max-age=60"}
    answer: Response = PlainTextResponse("hello", headers=headers if scope["path"] == "/page" else None)
    if scope["path"].startswith(HEALTH_PATH):
        answer = health_response(Request(scope), REASONS, details="secret")
    await answer(scope, receive, send)


async def ask(
    path: str = "/", *headers: tuple[bytes, bytes], token: bytes | None = None, method: str = "GET"
) -> httpx.Response:
    """Return its answer to whoever addresses it as localhost, or by another Host among the headers."""
    guard = Guard(application, Credentials(token=token), NAMES)
    transport = httpx.ASGITransport(guard)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        return await client.request(method, path, headers=list(headers))


def basic(words: bytes) -> bytes:
    """Return a header by which browsers send user and password."""
    return b"Basic " + base64.b64encode(words)


@pytest.mark.parametrize(
    "value",
    [
        b"Bearer " + TOKEN,
        b"bearer  " + TOKEN + b" ",
        basic(b"anybody:" + TOKEN),
        basic(b":" + TOKEN),
        basic("ü".encode() + b":" + TOKEN).replace(b"Basic", b"bASIC"),
    ],
)
async def test_the_token_lets_through(value: bytes) -> None:
    """The token is accepted as Bearer, or as any user's password, and then with any host."""
    answer = await ask("/", (b"Authorization", value), (b"Host", b"proxy.example"), token=TOKEN)
    assert (answer.status_code, answer.text) == (200, "hello")


@pytest.mark.parametrize(
    "values",
    [
        [],
        [b""],
        *(
            [b"Bearer" + rest]
            for rest in (b"", b" ", b" " + TOKEN[:-1], b" " + TOKEN + b"0", b" \xc3\xbc", b" \xff\xfe")
        ),
        *(
            [header]
            for header in (TOKEN, b"Digest " + TOKEN, b"Basic " + TOKEN, b"Basic \xff", b"Basic ====")
        ),
        *([basic(credentials)] for credentials in (TOKEN + b":", TOKEN, b"user:" + TOKEN + b":")),
        [b"Bearer " + TOKEN, b"Bearer " + TOKEN],
        [b"Bearer wrong", b"Bearer " + TOKEN],
    ],
)
async def test_without_the_token_nothing_is_answered(values: list[bytes]) -> None:
    """Without the token every path and method is refused; the answer says how to send it."""
    for method, path in (("GET", "/"), ("HEAD", "/nowhere"), ("POST", "/page"), ("TRACE", "/")):
        headers = [(b"Authorization", value) for value in values]
        answer = await ask(path, *headers, token=TOKEN, method=method)
        assert answer.status_code == 401
        challenges = answer.headers.get_list("WWW-Authenticate")
        assert challenges == ['Basic realm="nettop", charset="UTF-8"', 'Bearer realm="nettop"']
        assert answer.headers["Content-Type"] == "application/problem+json"
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        if method != "HEAD":
            assert json.loads(answer.content)["status"] == 401
            assert TOKEN.decode() not in answer.text


@given(st.binary(max_size=60))
def test_any_header_is_judged(value: bytes) -> None:
    """No header of a client raises an exception."""
    assert not is_authorized(value, TOKEN)
    assert not is_authorized(b"Basic " + value, TOKEN)
    is_own_host(value, NAMES)


OWN = ("localhost", "LOCALHOST:9471", "localhost.", "nettop.localhost:80", "127.0.0.1:9471", "192.0.2.7", "[::1]:9471",
       "[2001:db8::1]", "monitor:9471", "Monitor.Example.")  # fmt: skip
OTHER = ("evil.example", "evil.example:9471", "localhost.evil.example", "127.0.0.1.evil.example",
         "monitor.evil.example", "evillocalhost", "[::1]evil.example", "[::1", "[evil.example]", "::1", "",
         "ü")  # fmt: skip


@pytest.mark.parametrize("host", [*OWN, *OTHER])
async def test_names_of_this_host(host: str) -> None:
    """Accept addresses, localhost and this host's own names; refuse a page whose name resolves to this host."""
    assert is_own_host(host.encode(), NAMES) == (host in OWN)
    answer = await ask("/", (b"Host", host.encode()))
    assert answer.status_code == (200 if host in OWN else 421)
    assert host in OWN or answer.json()["remedy"]


@pytest.mark.parametrize(("reasons", "code", "text"), [([], 200, "ok\n"), (["why"], 503, "not ok\n")])
async def test_health_is_no_secret(
    monkeypatch: pytest.MonkeyPatch, reasons: list[str], code: int, text: str
) -> None:
    """Without the token /health only says whether all is well; otherwise it has everything."""
    monkeypatch.setattr(f"{__name__}.REASONS", reasons)
    for method in ("GET", "HEAD"):
        answer = await ask(HEALTH_PATH, token=TOKEN, method=method)
        assert answer.status_code == code
        assert answer.text == text or method == "HEAD"
        assert answer.headers["Content-Type"].startswith("text/plain")
    for known in (
        await ask(HEALTH_PATH, (b"Authorization", b"Bearer " + TOKEN), token=TOKEN),
        await ask(HEALTH_PATH),
    ):
        document = known.json()
        assert (known.status_code, document["reasons"], document["details"]) == (code, reasons, "secret")


async def test_no_other_path_is_open() -> None:
    """A wrong token or another host is refused, as at any path."""
    assert (await ask(HEALTH_PATH, (b"Authorization", b"Bearer wrong"), token=TOKEN)).status_code == 401
    for path in (f"{HEALTH_PATH}/", f"{HEALTH_PATH}x", f"/x{HEALTH_PATH}", "/Health"):
        assert (await ask(path, token=TOKEN)).status_code == 401
    for token in (TOKEN, None):
        assert (await ask(HEALTH_PATH, (b"Host", b"evil.example"), token=token)).status_code == 421


def status(server: Any, *hosts: bytes) -> int:
    """Return the status of the answer to a request with these Host headers, at this address of the server."""
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "GET", "path": "/", "server": server}
    scope["headers"] = [(b"host", host) for host in hosts]
    running = Guard(application, Credentials(), NAMES)(scope, send, send)
    with pytest.raises(StopIteration):
        running.send(None)
    return int(sent[0]["status"])


def test_hosts_that_no_browser_sends() -> None:
    """Accept requests without a Host (HTTP/1.0 scripts); of several each must be valid. Unix sockets need none."""
    tcp, unix = ("127.0.0.1", 9471), ("/run/nettop.sock", None)
    evil, good = b"evil.example", b"localhost"
    assert status(tcp) == 200
    assert status(tcp, good, evil) == status(tcp, evil, good) == 421
    assert status(unix, evil) == 200


def test_own_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """Own names are the host's and those to listen at; the full name only beyond loopback, as resolving may be slow."""
    monkeypatch.setattr(socket, "gethostname", lambda: "Monitor")
    monkeypatch.setattr(socket, "getfqdn", lambda: "monitor.example")
    local = (*endpoints_of("localhost:1"), *endpoints_of("unix:/run/x"))
    assert own_names(local) == {"monitor", "localhost"}
    everywhere = own_names((*local, *endpoints_of("0.0.0.0:1")))
    assert everywhere == {"monitor", "localhost", "monitor.example", "0.0.0.0"}


async def test_every_answer_has_the_headers() -> None:
    """Every answer has the security headers, unless it sets them itself."""
    answer = await ask()
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Referrer-Policy"] == "no-referrer"
    assert answer.headers["Cross-Origin-Resource-Policy"] == "same-origin"
    assert answer.headers["Cache-Control"] == "no-store"
    assert answer.headers["Content-Security-Policy"] == "default-src 'none'; frame-ancestors 'none'"
    assert answer.headers["Date"].endswith("GMT")
    assert "Server" not in answer.headers
    page = await ask("/page")
    assert page.headers.get_list("Content-Security-Policy") == ["default-src 'self'"]
    assert page.headers.get_list("Cache-Control") == ["max-age=60"]
