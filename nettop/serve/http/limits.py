# SPDX-License-Identifier: Apache-2.0
"""How much clients may take of the server, and what it has counted."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Limits:
    """What the server bears.

    A request may take as long as it likes to be answered: only how it arrives and how the answer is read is limited.
    """

    connections: int = 512
    """Open at once: with nettop's own files they fit into 1024 descriptors. More wait in the kernel's backlog."""
    request_s: float = 10.0
    """For a TLS handshake, and for a whole request: from the connection's opening, or from the request's first byte."""
    idle_s: float = 75.0
    """For a connection between two requests: Prometheus comes each 15 to 60 s."""
    crowded_s: float = 1.0
    """For a request while others wait to be accepted."""
    write_s: float = 30.0
    """For a client to take what it was sent: some 64 KiB."""
    linger_s: float = 2.0
    """For a client that was refused to read why."""
    drain_s: float = 10.0
    """For answers to be finished when the server ends."""
    head_bytes: int = 64 << 10
    """Of a request's URL and headers, as they are sent."""
    headers: int = 100
    """How many."""
    body_bytes: int = 64 << 10
    """Of a request's body."""
    takes_bodies: bool = False
    """Whether applications get bodies. They are in memory, so few `connections` and requests `pipelined` suit them."""
    pipelined: int = 16
    """Requests that are sent before the one in front of them is answered."""


@dataclass(eq=False, slots=True)
class ServerCounts:
    """What the server has done."""

    accepted: int = 0
    """Connections."""
    open_connections: int = 0
    """Now."""
    answers: Counter[str] = field(default_factory=Counter)
    """By class of their status, as `2xx`, what the server itself refuses among them."""
    timeouts: int = 0
    """Connections closed since a handshake, a request or the reading of an answer took too long."""
    too_large: int = 0
    """Requests refused since they are larger than the limits."""
    evicted: int = 0
    """Connections closed to make room: idle ones, or those whose request was not there."""
    handshake_failures: int = 0
    """TLS handshakes that failed, the late ones among them."""

    def count_answer(self, status: int) -> None:
        """One more answer."""
        self.answers[f"{status // 100}xx"] += 1
