# SPDX-License-Identifier: Apache-2.0
"""Who may ask: with a token whoever knows it; without, no web page that has a name point to this host.

Whether all is well is no secret: `/health` answers that without the token, too.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import socket
from collections.abc import Iterable
from email.utils import formatdate
from ipaddress import ip_address
from typing import TYPE_CHECKING

from nettop.serve.health import HEALTH_PATH, mark_without_token
from nettop.serve.http.addresses import Endpoint
from nettop.serve.http.credentials import Credentials
from nettop.serve.problems import problem_response

if TYPE_CHECKING:
    from starlette.responses import Response
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

_COMMON = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
)
"""What every answer says, unless it says something else under the same name."""
_CHALLENGES = (
    (b"www-authenticate", b'Basic realm="nettop", charset="UTF-8"'),
    (b"www-authenticate", b'Bearer realm="nettop"'),
)


class Guard:
    """An ASGI application that lets through to another one what may be answered, and adds headers to every answer.

    `names` are those of this host, by which it may be addressed without a token.
    """

    def __init__(self, app: ASGIApp, credentials: Credentials, names: frozenset[str]) -> None:
        self._app = app
        self._credentials = credentials
        self._names = names

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": common_headers(message.get("headers", ()))}
            await send(message)

        refusal = self._refusal(scope)
        await (self._app if refusal is None else refusal)(scope, receive, send_with_headers)

    def _refusal(self, scope: Scope) -> Response | None:
        """Why a request is not answered; None: it is."""
        if self._credentials.token is not None:
            values = [value for name, value in scope["headers"] if name == b"authorization"]
            if len(values) == 1 and is_authorized(values[0], self._credentials.token):
                return None
            if values or scope["path"] != HEALTH_PATH:
                return _unauthorized(scope["path"], is_wrong=bool(values))
            mark_without_token(scope)
        if scope["server"] is not None and scope["server"][0].startswith("/"):
            return None  # a Unix socket: its mode says who may connect, and no browser can
        # Without a host it is no browser, which always names it; so whoever sends two does it in bad faith.
        hosts = [value for name, value in scope["headers"] if name == b"host"]
        if all(is_own_host(host, self._names) for host in hosts):
            return None
        return _misdirected(scope["path"], hosts[0])


def common_headers(headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """The headers of an answer and those that every answer has."""
    headers = list(headers)
    present = {name.lower() for name, _ in headers}
    common = ((b"date", formatdate(usegmt=True).encode()), *_COMMON)
    return headers + [header for header in common if header[0] not in present]


def own_names(endpoints: Iterable[Endpoint]) -> frozenset[str]:
    """What this host may be called: its own name, and the names to listen at; beyond loopback its full one too."""
    endpoints = list(endpoints)
    names = {socket.gethostname(), *(endpoint.host for endpoint in endpoints)}
    if not all(endpoint.is_local for endpoint in endpoints):
        names.add(socket.getfqdn())
    return frozenset(_folded(name) for name in names if name)


def is_own_host(value: bytes, names: frozenset[str]) -> bool:
    """Whether a Host header names this host for sure: by an address, as localhost, or by one of `names`.

    A page on the web can have its own name resolve to this host (DNS rebinding), and would then read what it asks for
    as if it came from the page's server. Browsers send that name.
    """
    host = value.decode("latin-1").strip()
    if host.startswith("["):
        host, bracket, port = host[1:].partition("]")
        is_well_formed = bool(bracket) and (not port or port.startswith(":"))
        return is_well_formed and _is_address(host)
    host = _folded(host.partition(":")[0])
    return host == "localhost" or host.endswith(".localhost") or host in names or _is_address(host)


def is_authorized(value: bytes, token: bytes) -> bool:
    """Whether an Authorization header has the token: as Bearer, or as the password of any user by Basic."""
    scheme, _, given = value.strip().partition(b" ")
    given = given.strip()
    if scheme.lower() == b"bearer":
        return hmac.compare_digest(given, token)
    if scheme.lower() != b"basic":
        return False
    try:
        _, _, password = base64.b64decode(given, validate=True).partition(b":")
    except binascii.Error:
        return False
    return hmac.compare_digest(password, token)


def _unauthorized(path: str, *, is_wrong: bool) -> Response:
    response = problem_response(
        401,
        "the token is wrong" if is_wrong else "this needs a token",
        remedy="send Authorization: Bearer TOKEN, or the token as the password of any user",
        path=path,
    )
    response.raw_headers.extend(_CHALLENGES)
    return response


def _misdirected(path: str, host: bytes) -> Response:
    return problem_response(
        421,
        f"{host.decode('latin-1')!r} is not known as a name of this host",
        remedy="address it as localhost or by its IP address, or send the token that --token-file has",
        path=path,
    )


def _folded(name: str) -> str:
    return name.lower().removesuffix(".")


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True
