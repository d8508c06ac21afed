# SPDX-License-Identifier: Apache-2.0
"""Access control: check the token, or if there is none, block DNS rebinding by web pages.

`/health` and `/live` say whether the service is healthy even without the token.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import socket
from collections.abc import Collection, Iterable
from email.utils import formatdate
from ipaddress import ip_address
from typing import TYPE_CHECKING

from nettop.serve.health import HEALTH_PATH, LIVE_PATH, WITHOUT_TOKEN
from nettop.serve.http.credentials import Credentials
from nettop.serve.http.listeners import Endpoint
from nettop.serve.problems import Problem, problem_response

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
"""Default headers of every response; a header of the same name overrides them."""
_CHALLENGES = (
    (b"www-authenticate", b'Basic realm="nettop", charset="UTF-8"'),
    (b"www-authenticate", b'Bearer realm="nettop"'),
)


class Guard:
    """ASGI middleware that passes on authorized requests and adds headers to every response.

    `names` are names of this host that a request without a token may use.
    """

    def __init__(self, app: ASGIApp, credentials: Credentials, names: frozenset[str]) -> None:
        self._app = app
        self._credentials = credentials
        self._names = names

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": common_headers(message.get("headers", ()))}
            await send(message)

        refusal = self._refusal(scope)
        await (self._app if refusal is None else refusal)(scope, receive, send_with_headers)

    def _refusal(self, scope: Scope) -> Response | None:
        """Return the error response to an unauthorized request; None if it is authorized."""
        if self._credentials.token is not None:
            values = [value for name, value in scope["headers"] if name == b"authorization"]
            if len(values) == 1 and is_authorized(values[0], self._credentials.token):
                return None
            if values or scope["path"] not in (HEALTH_PATH, LIVE_PATH):
                return _unauthorized(scope["path"], is_wrong=bool(values))
            scope[WITHOUT_TOKEN] = True
        if scope["server"] is not None and scope["server"][0].startswith("/"):
            return None  # a Unix socket: its mode controls access, and browsers cannot connect
        # A browser sends exactly one Host header: none means no browser; if there are several, check all.
        hosts = [value for name, value in scope["headers"] if name == b"host"]
        if all(is_own_host(host, self._names) for host in hosts):
            return None
        what = f"{hosts[0].decode('latin-1')!r} is not a known name of this host"
        remedy = "use localhost or the IP address, or set --token-file and send its token"
        return problem_response(Problem(421, what, remedy), scope["path"])


def common_headers(headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Return the headers of a response plus the default ones."""
    headers = list(headers)
    present = {name.lower() for name, _ in headers}
    common = ((b"date", formatdate(usegmt=True).encode()), *_COMMON)
    return headers + [header for header in common if header[0] not in present]


def own_names(endpoints: Collection[Endpoint]) -> frozenset[str]:
    """Return the names of this host: hostname and listen names, and beyond loopback the fully qualified name."""
    names = {socket.gethostname(), *(endpoint.host for endpoint in endpoints)}
    if not all(endpoint.is_local for endpoint in endpoints):
        names.add(socket.getfqdn())
    return frozenset(_folded(name) for name in names if name)


def is_own_host(value: bytes, names: frozenset[str]) -> bool:
    """Return whether a Host header safely names this host: by an address, as localhost, or by one of `names`.

    A web page can make its own name resolve to this host (DNS rebinding), and then read responses as if they came from
    the page's server. The Host header then has that name.
    """
    host = value.decode("latin-1").strip()
    if host.startswith("["):
        host, bracket, port = host[1:].partition("]")
        is_well_formed = bool(bracket) and (not port or port.startswith(":"))
        return is_well_formed and _is_address(host)
    host = _folded(host.partition(":")[0])
    return host == "localhost" or host.endswith(".localhost") or host in names or _is_address(host)


def is_authorized(value: bytes, token: bytes) -> bool:
    """Return whether an Authorization header has the token: as Bearer, or as any user's Basic password."""
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
    what = "the token is wrong" if is_wrong else "a token is required"
    remedy = "send Authorization: Bearer TOKEN, or the token as any user's password"
    response = problem_response(Problem(401, what, remedy), path)
    response.raw_headers.extend(_CHALLENGES)
    return response


def _folded(name: str) -> str:
    return name.lower().removesuffix(".")


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True
