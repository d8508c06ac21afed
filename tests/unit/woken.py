# SPDX-License-Identifier: Apache-2.0
"""A source that simulates kernel events: rows of the table of events."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from contextlib import suppress

from nettop.errors import NettopError
from nettop.snapshots.connections import EVENTS
from nettop.snapshots.snapshot import Rows, Snapshot
from tests.unit.build import WALL_NS, Row, Tables, make_rows
from tests.unit.scripted import Scripted

CONNECT: Row = {
    "time": WALL_NS,
    "event": "connect",
    "handshake_us": 62,
    "protocol": "tcp",
    "family": "IPv4",
    "local_address": "127.0.0.1",
    "local_port": 42524,
    "remote_address": "127.0.0.1",
    "remote_port": 443,
    "pid": 4615,
    "process": "curl",
    "state": "SYN_SENT",
    "direction": "outbound",
    "bytes_sent": 0,
    "bytes_received": 0,
    "retransmits": 0,
}
"""A connection that has opened; all else is unknown."""

CLOSE: Row = CONNECT | {
    "event": "close",
    "reason": "closed by us",
    "duration_us": 21_400,
    "bytes_sent": 1200,
    "bytes_received": 48_100,
    "retransmits": 1,
}
FAIL: Row = CONNECT | {
    "event": "fail",
    "reason": "refused",
    "handshake_us": None,
    "duration_us": 62,
    "remote_port": 1,
}


class Woken(Scripted):
    """A source of scripted snapshots, plus the events given to `happen`."""

    def __init__(self, steps: Sequence[Snapshot | NettopError]) -> None:
        super().__init__(steps)
        self._wakeup = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._lock = threading.Lock()
        self._waiting: list[Rows] = []
        self._texts: Tables = {}
        self._newest = 0

    def happen(self, *rows: Row, quietly: bool = False) -> None:
        """Report these events; with `quietly` they wait for the next reading, and wake nobody."""
        numbered = [{"event_id": self._newest + at} | row for at, row in enumerate(rows, 1)]
        self._newest += len(rows)
        with self._lock:
            self._waiting.append(make_rows(numbered, EVENTS, texts=self._texts))
            if not quietly:
                os.eventfd_write(self._wakeup, 1)

    def is_filling(self) -> bool:
        """Return False: nothing waits for long."""
        return False

    def wakeups(self) -> tuple[int, ...]:
        """Return the descriptor that events make readable."""
        return (self._wakeup,)

    def drain(self, taken_ns: int) -> tuple[Rows, ...]:
        """Return what has happened since the last call."""
        with self._lock:
            drained, self._waiting = tuple(self._waiting), []
            if drained:
                with suppress(BlockingIOError):
                    os.eventfd_read(self._wakeup)
        return drained

    def close(self) -> None:
        """Close the descriptor."""
        if not self.closed:
            os.close(self._wakeup)
        super().close()
