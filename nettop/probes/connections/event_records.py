# SPDX-License-Identifier: Apache-2.0
"""Structures shared by the event programs and nettop: ring records and map values."""

from __future__ import annotations

import errno

import numpy as np

from nettop.kernel.bpf.rows import columns, extend_dtype
from nettop.probes.connections.socket_rows import ROW, STATE
from nettop.snapshots.arrays import Array, Mask
from nettop.snapshots.connections import (
    CLOSED_BY_BOTH,
    CLOSED_BY_PEER,
    CLOSED_BY_US,
    EVENT_KINDS,
    GIVEN_UP,
    GRACEFUL,
    RESET_BY_US,
)

EVENT = extend_dtype(
    ROW,
    (
        *columns("u8", "event_id", "time", "duration_us"),
        ("handshake_us", "u4"),
        ("reason", "u2"),
        *columns("u1", "event", "is_followed"),
    ),
)
"""A ring record: the socket's row before the change, then the event. `state` is the previous state."""

CONNECTION = np.dtype(
    [
        *columns("u8", "begun_at", "opened_at", "start_time", "css_set"),
        ("comm", "S16"),
        *columns("u4", "pid", "cgroup_id", "handshake_us"),
        *columns("u1", "direction", "owner_source", "is_followed", "opened_by_data"),
    ],
    align=True,
)
"""The programs' record of a connection, from connect() or accept() to its end."""

GROUP_SIZE = 8
CONNECTION_GROUP = np.dtype([("cookies", "u8", (GROUP_SIZE,))])
"""Cookies of the connections in one bucket; each has a record at the same index. 0 is a free slot."""

TOTALLED = ("closed", "failed", "bytes_sent", "bytes_received", "packets_sent", "packets_received",
            "data_packets_sent", "retransmits")  # fmt: skip
_EVENTS = ("connected", "accepted", "dropped", "untracked", "unfollowed", "nested")
HOST_TOTALS = np.dtype([*columns("u8", *TOTALLED, *_EVENTS)])
"""Totals of the host, per CPU and writer: ended and opened connections, and cases without room.

No room: `dropped` in the ring, `untracked` in the connections, `unfollowed` in the followed processes. `nested`:
changes that the nested program handled while the first one was running.
"""

WRITERS = ("changes", "nested", "connect_v4", "connect_v6")
"""Programs that fill events and total ended connections: two at state changes, two at the end of connect()."""

CONNECT, ACCEPT, CLOSE, FAIL = EVENT_KINDS

_ENDED_BY = {
    "FIN_WAIT2": CLOSED_BY_US,
    "LAST_ACK": CLOSED_BY_PEER,
    "CLOSING": CLOSED_BY_BOTH,
    "SYN_SENT": GIVEN_UP,
}
_BY_STATE = np.full(256, RESET_BY_US, np.uint16)
_BY_STATE[[STATE[name] for name in _ENDED_BY]] = list(_ENDED_BY.values())
_IS_GRACEFUL = np.zeros(1 << 16, bool)
_IS_GRACEFUL[list(GRACEFUL)] = True


def set_reasons(events: Array) -> None:
    """Turn the errno of ended connections into a reason; without an errno, derive it from the last state.

    A reset that arrives after the peer's FIN sets the errno to EPIPE (tcp_reset).
    """
    ended = events["event"] >= CLOSE
    reason = np.where(events["reason"] == 0, _BY_STATE[events["state"]], events["reason"])
    reason[reason == errno.EPIPE] = errno.ECONNRESET
    events["reason"][ended] = reason[ended]


def is_failure(events: Array) -> Mask:
    """Return a mask of events of connections that did not open or did not close gracefully."""
    failures: Mask = (events["event"] >= CLOSE) & ~_IS_GRACEFUL[events["reason"]]
    return failures
