# SPDX-License-Identifier: Apache-2.0
"""Limits on clients, and the server's counters."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


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
    """Whether bodies reach the application. They are held in memory, so keep `connections` and `pipelined` small."""
    pipelined: int = 16
    """Maximum requests queued behind the one being answered."""


@dataclass(eq=False, slots=True)
class ServerCounts:
    """Counters of the server."""

    accepted: int = 0
    """Connections accepted."""
    open_connections: int = 0
    """Currently open connections."""
    answers: Counter[str] = field(default_factory=Counter)
    """Responses by status class, as `2xx`, including requests that the server itself rejects."""
    timeouts: int = 0
    """Connections closed because a handshake, a request or the reading of a response took too long."""
    too_large: int = 0
    """Requests rejected as larger than the limits."""
    evicted: int = 0
    """Connections closed to make room: idle ones, or those whose request was overdue."""
    handshake_failures: int = 0
    """TLS handshakes that failed or timed out."""

    def count_answer(self, status: int) -> None:
        """Count a response."""
        self.answers[f"{status // 100}xx"] += 1
