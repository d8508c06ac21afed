# SPDX-License-Identifier: Apache-2.0
"""Configuration of a server: its limits on clients, its counters, and what it calls."""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from nettop.process.interrupts import Requests
from nettop.serve.http.credentials import Credentials

if TYPE_CHECKING:
    from starlette.types import ASGIApp


def nothing() -> None:
    """Do nothing."""


async def _at_once() -> None:
    pass


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits on connections and requests.

    Receiving a request and sending its response are timed; answering it is not.
    """

    connections: int = 512
    """Maximum open connections: with nettop's own files they fit into 1024 descriptors. Others wait in the backlog."""
    request_s: float = 10.0
    """Deadline of a TLS handshake, and of a request from the connection's start or its own first byte."""
    idle_s: float = 75.0
    """Timeout of a connection between two requests: Prometheus scrapes every 15 to 60 s."""
    crowded_s: float = 1.0
    """Deadline of a request while other connections wait to be accepted."""
    write_s: float = 30.0
    """Deadline for a client to read the data sent to it, some 64 KiB."""
    linger_s: float = 2.0
    """Deadline for a rejected client to read the error."""
    drain_s: float = 10.0
    """Deadline for responses to finish at shutdown."""
    head_bytes: int = 64 << 10
    """Maximum bytes of a request's URL and headers as sent."""
    headers: int = 100
    """Maximum headers in a request."""
    body_bytes: int = 64 << 10
    """Maximum bytes of a request's body."""
    takes_bodies: bool = False
    """Whether bodies reach the application. They are held in memory, so keep `connections` small."""


@dataclass(eq=False, slots=True)
class ServerCounts:
    """Counters of the server."""

    open_connections: int = 0
    """Currently open connections."""
    responses: Counter[str] = field(default_factory=Counter)
    """Responses by status class, as `2xx`, including requests that the server itself rejects."""
    timeouts: int = 0
    """Connections closed because a handshake, a request or the reading of a response took too long."""
    too_large: int = 0
    """Requests rejected as larger than the limits."""
    evicted: int = 0
    """Connections closed to make room: idle ones, or those whose request was overdue."""
    handshake_failures: int = 0
    """TLS handshakes that failed or timed out."""

    def count_response(self, status: int) -> None:
        """Count a response."""
        self.responses[f"{status // 100}xx"] += 1


@dataclass(eq=False)
class Server:
    """Configuration of a server.

    The server calls `make_app` inside the event loop; `report` takes messages for the user, `log` a line per response.

    It answers requests immediately. After `until_ready`, it calls `on_ready` and notifies the service manager with
    `status`. It calls `on_ending` when it accepts no more requests. Endless responses must end then, and when it calls
    `on_new_token`.
    """

    make_app: Callable[[], ASGIApp]
    listeners: Sequence[socket.socket]
    requests: Requests
    report: Callable[[str], None]
    credentials: Credentials = field(default_factory=Credentials)
    limits: Limits = field(default_factory=Limits)
    counts: ServerCounts = field(default_factory=ServerCounts)
    until_ready: Callable[[], Awaitable[None]] = _at_once
    on_ready: Callable[[], None] = nothing
    on_ending: Callable[[], None] = nothing
    on_new_token: Callable[[], None] = nothing
    log: Callable[[str], None] | None = None
    status: str = ""
