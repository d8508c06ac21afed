# SPDX-License-Identifier: Apache-2.0
"""What the event programs and nettop share: the ring's records and the values of the maps."""

from __future__ import annotations

import errno

import numpy as np

from nettop.kernel.rows import extended
from nettop.probes.connections.socket_rows import ROW, STATE
from nettop.snapshots.arrays import Mask
from nettop.snapshots.connections import (
    CLOSED_BY_BOTH,
    CLOSED_BY_PEER,
    CLOSED_BY_US,
    EVENT_KINDS,
    GIVEN_UP,
    GRACEFUL,
    RESET_BY_US,
)
from nettop.snapshots.snapshot import Array

EVENT = extended(
    ROW,
    (
        ("event_id", "u8"),
        ("time", "u8"),
        ("duration_us", "u8"),
        ("handshake_us", "u4"),
        ("reason", "u2"),
        ("event", "u1"),
        ("is_followed", "u1"),
    ),
)
"""A record of the ring: the socket's row as it was, then what happened. `state` is the one that it left."""

CONNECTION = np.dtype(
    [
        ("begun_at", "u8"),
        ("opened_at", "u8"),
        ("start_time", "u8"),
        ("css_set", "u8"),
        ("comm", "S16"),
        ("pid", "u4"),
        ("cgroup_id", "u4"),
        ("handshake_us", "u4"),
        ("direction", "u1"),
        ("owner_source", "u1"),
        ("is_followed", "u1"),
        ("opened_by_data", "u1"),
    ],
    align=True,
)
"""What the programs remember of a connection, from connect() or accept() to its end."""

GROUP_SIZE = 8
CONNECTION_GROUP = np.dtype([("cookies", "u8", (GROUP_SIZE,))])
"""The cookies of some connections that have a record: one with the same index. 0 is a free place."""

TOTALLED = ("closed", "failed", "bytes_sent", "bytes_received", "packets_sent", "packets_received",
            "data_packets_sent", "retransmits")  # fmt: skip
HOST_TOTALS = np.dtype(
    [(name, "u8") for name in (*TOTALLED, "connected", "accepted", "dropped", "untracked", "unfollowed", "unmatched",
                               "nested")]
)  # fmt: skip
"""Of the host, on each CPU, by writer: what ended, what opened, and what found no room: `dropped` by the ring,
`untracked` among the connections, `unfollowed` among the followed, `unmatched` among the threads in connect().
`nested`: changes that the nested program handled while the first one was running."""

WRITERS = ("changes", "nested", "connect_v4", "connect_v6")
"""The programs that fill events and add up what ended: two at changes of state, two at the end of connect()."""

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
    """Turn the errno of what has ended into the reason; where there is none, it follows from the last state.

    A reset that comes when the peer has sent its FIN already makes the errno EPIPE (tcp_reset).
    """
    ended = events["event"] >= CLOSE
    reason = np.where(events["reason"] == 0, _BY_STATE[events["state"]], events["reason"])
    reason[reason == errno.EPIPE] = errno.ECONNRESET
    events["reason"][ended] = reason[ended]


def is_failure(events: Array) -> Mask:
    """Which events are of a connection that did not open, or did not end as both sides agreed."""
    failures: Mask = (events["event"] >= CLOSE) & ~_IS_GRACEFUL[events["reason"]]
    return failures
