# SPDX-License-Identifier: Apache-2.0
"""What the event programs and nettop share: the records of the ring and the values of the maps."""

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
        ("is_uncredited", "u1"),
    ),
)
"""A record of the ring: the socket's row as it was, then what happened. Its `state` is the one that it left. One that
`is_uncredited` (1) the programs could not add to its process's totals."""

LIFE = np.dtype(
    [
        ("begun_at", "u8"),
        ("opened_at", "u8"),
        ("start_time", "u8"),
        ("css_set", "u8"),
        ("comm", "S16"),
        ("pid", "u4"),
        ("handshake_us", "u4"),
        ("direction", "u1"),
        ("owner_source", "u1"),
        ("is_followed", "u1"),
    ],
    align=True,
)
"""What is remembered of a connection while it lives: since connect(), or since it was accepted."""

TOTALLED = ("closed", "failed", "bytes_sent", "bytes_received", "packets_sent", "packets_received",
            "data_packets_sent", "retransmits")  # fmt: skip
HOST_TOTALS = np.dtype(
    [(name, "u8") for name in (*TOTALLED, "connected", "accepted", "dropped", "untracked", "uncredited",
                               "unfollowed", "untold", "stood_in")]
)  # fmt: skip
"""Of the host, on each CPU, by teller: what ended, what opened, and what found no room: `dropped` by the ring,
`untracked` among the lives, `uncredited` among the processes, `unfollowed` among the followed, `untold` among those
that are in connect(). `stood_in`: changes that the stand-in took on while the first program was at work."""

TELLERS = ("first", "stand_in", "connect_v4", "connect_v6")
"""Who adds up what ended, and fills events: the two programs at changes of state, and those at the end of connect()."""

PROCESS = np.dtype(
    [("start_time", "u8"), ("css_set", "u8"), ("comm", "S16"), ("pid", "u4"), ("generation", "u4")],
    align=True,
)
"""The key under which closed connections are added up. Not known: all bits set."""

CONNECT, ACCEPT, CLOSE, FAIL = EVENT_KINDS

_ENDED_BY = {
    "FIN_WAIT2": CLOSED_BY_US,
    "LAST_ACK": CLOSED_BY_PEER,
    "CLOSING": CLOSED_BY_BOTH,
    "SYN_SENT": GIVEN_UP,
}
_BY_STATE = np.full(256, RESET_BY_US, np.uint16)
_BY_STATE[[STATE[name] for name in _ENDED_BY]] = list(_ENDED_BY.values())


def set_reasons(events: Array) -> None:
    """Turn the errno of what has ended into the reason; where there is none, the state that it left tells.

    A reset that comes when the peer has sent its FIN already makes the errno EPIPE (tcp_reset).
    """
    ended = events["event"] >= CLOSE
    reason = np.where(events["reason"] == 0, _BY_STATE[events["state"]], events["reason"])
    reason[reason == errno.EPIPE] = errno.ECONNRESET
    events["reason"][ended] = reason[ended]


def is_failure(events: Array) -> Mask:
    """Which events tell of a connection that did not open, or did not end as its ends agreed."""
    ended = events["event"] >= CLOSE
    failures: Mask = ended & ~np.isin(events["reason"], tuple(GRACEFUL))
    return failures
