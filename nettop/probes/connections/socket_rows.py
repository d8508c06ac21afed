# SPDX-License-Identifier: Apache-2.0
"""What follows from socket rows alone: the owner of a socket, who opened it, how many its namespace counts.

Rows are structured arrays of dtype ROW: the fields of the connections table, and behind them what the
programs write beyond it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from nettop.kernel.entered_namespaces import DEVICE_INDEX
from nettop.snapshots.arrays import Index, Mask, as_list, growth, inserted, positions, take
from nettop.snapshots.connections import (
    APPLICATION,
    CONGESTION,
    CONGESTION_CONTROLS,
    DIRECTIONS,
    OWNER_SOURCES,
    PATH_LOSS,
    PROTOCOLS,
    RECEIVER,
    SEND_BUFFER,
    SOCKETS,
    STATES,
)
from nettop.snapshots.schema import BEGAN, row_dtype
from nettop.snapshots.snapshot import Array, known

TCP, UDP, RAW, MPTCP = PROTOCOLS
STATE = {name: number for number, name in STATES.items()}
NOT_OPEN = [STATE[name] for name in ("LISTEN", "TIME_WAIT", "CLOSE")]
"""The states of TCP sockets that are no connection, or none any more."""
_INBOUND, _OUTBOUND = (number for number, name in DIRECTIONS.items() if name.endswith("?"))

_ALGORITHMS = {name: number for number, name in CONGESTION_CONTROLS.items()}
_LEAST_US = 100_000
"""Time is counted in ticks of up to 10 ms: of less than ten of them nothing is said."""

ROW = row_dtype(
    SOCKETS,
    (
        (BEGAN, "u1"),
        ("has_file", "u1"),
        ("is_kernels", "u1"),
        ("is_tunnel", "u1"),
        ("is_opener", "u1"),
        ("fd", "u4"),
        (DEVICE_INDEX, "u4"),
        ("cgroup_id", "u4"),
        ("holder", "u8"),
        ("start_time", "u8"),
        ("css_set", "u8"),
        ("comm", "S16"),
        ("algorithm", "S16"),
    ),
)
"""A row as the programs write it: the table's fields, then the owner process, and, for sockets that no descriptor led
to, whether a process has it all the same, whether the kernel holds it, and which MPTCP socket holds it; whether the
kernel takes datagrams before they are received; whether the process is known to have opened, accepted or used the
connection; the name of the congestion control algorithm."""

USER = np.dtype([("id", "u8"), ("pid", "u4")])
"""A process that sends or receives on a socket which several hold."""
NO_USERS = np.zeros(0, USER)
MESSAGE = next(number for number, name in OWNER_SOURCES.items() if name == "message")
_SERVICE_MANAGER = b"systemd"
"""The name of a process that opens sockets for others."""

_OWNER = ("pid", "fd", "start_time", "css_set", "cgroup_id", "comm", "owner_source")


class Counted(NamedTuple):
    """Sockets as a network namespace counts them itself, and half-open connections of its listeners."""

    tcp: int = 0
    udp: int = 0
    half_open: int = 0


class Reading(NamedTuple):
    """Every socket that exists, sorted by id; counts of what is not listed; and the moment whose counters these are, on
    the monotonic clock."""

    rows: Array
    counts: dict[str, int]
    taken_ns: int


def choose_owners(rows: Array, before: Array, users: Array) -> tuple[Index, Index]:
    """Positions of one row for each socket, sorted by id: that of its owner process. Then those of all rows of sockets
    that several processes hold.

    Of several processes the owner is the one of `users` (USER, sorted by id), which is seen to send or receive; else
    the one in the rows `before`, as long as it holds the socket; else the one that opened or accepted it. Where nobody
    saw that it is the one that started first, as children inherit what their parents opened; but not the service
    manager, which opens sockets for others.
    """
    order, ids = _by_id(rows)
    first = _first_of_each(ids)
    if first.all():
        return order, order[:0]
    shared = ~first | ~np.append(first[1:], True)
    at = order[shared]
    held = rows[at]
    is_user = _is_user(held, users)
    rows["owner_source"][at[is_user]] = MESSAGE
    ranks = (held["comm"] == _SERVICE_MANAGER, held["is_opener"] != 1, ~_owned_before(held, before), ~is_user)
    best_first = np.lexsort((held["pid"], held["start_time"], *ranks, ids[shared]))
    order[shared] = at[best_first]
    return order[first], at


def has_process(rows: Array) -> Mask:
    """Which rows, or events, have an owner process. Outside of nettop's PID namespace it has no PID."""
    return known(rows["start_time"])


def give_owners(rows: Array, owned: Array, at: Index) -> None:
    """Copy the owners of the rows `owned` at these positions (−1: none) to the `rows`."""
    has_owner: Mask = at >= 0
    has_owner[has_owner] = has_process(owned[at[has_owner]])
    for name in _OWNER:
        rows[name][has_owner] = owned[name][at[has_owner]]


def descriptors_of(row: Array, shared: Array) -> list[tuple[int, int]]:
    """The (PID, descriptor) pairs that lead to the socket of this single row; `shared` are all rows of sockets that
    several processes hold."""
    several = shared[shared["id"] == row["id"]]
    rows = several if len(several) else row[known(row["fd"])]
    return sorted(zip(rows["pid"].tolist(), rows["fd"].tolist(), strict=True))


def merge(owned: Array, unattributed: Array) -> Array:
    """The rows of both, sorted by id, as those of `owned` are already."""
    if not len(unattributed):
        return owned
    order, ids = _by_id(unattributed)
    rows = take(
        unattributed, order[_first_of_each(ids)]
    )  # a request that becomes a socket may be seen as both
    return inserted(owned, np.searchsorted(owned["id"], rows["id"]), rows)


def without(rows: Array, ids: Array) -> Array:
    """The rows whose id is not among the sorted `ids`."""
    return take(rows, np.flatnonzero(positions(rows["id"], ids) < 0))


def unowned(rows: Array, owned_ids: Array) -> Array:
    """The rows whose id is not among the sorted `owned_ids`, and those in TIME_WAIT: what a process may still hold of
    such a connection is a dead socket in CLOSE, which has the same id and no local port."""
    return take(
        rows, np.flatnonzero((rows["state"] == STATE["TIME_WAIT"]) | (positions(rows["id"], owned_ids) < 0))
    )


def infer_directions(rows: Array) -> None:
    """Take a connection whose direction is not known for an inbound one where a socket of its namespace listens on its
    local port."""
    port = rows["netns"].astype(np.uint64) << np.uint64(16) | rows["local_port"]
    listening = np.unique(port[rows["state"] == STATE["LISTEN"]])
    connects = np.isin(rows["protocol"], (TCP, MPTCP))
    connected = connects & known(rows["remote_port"]) & ~known(rows["direction"])
    inbound = positions(port, listening) >= 0
    rows["direction"][connected] = np.where(inbound[connected], _INBOUND, _OUTBOUND)


def name_congestion_control(rows: Array) -> None:
    """Set the numbers of the algorithms by their names."""
    with_name = np.flatnonzero(known(rows["busy_us"]))
    names, places = np.unique(rows["algorithm"][with_name], return_inverse=True)
    numbers = [_ALGORITHMS.get(name.decode("ascii", "replace"), 0) for name in as_list(names)]
    rows["congestion_control"][with_name] = np.array(numbers, np.uint8)[places]


def find_limits(rows: Array, before: Array, elapsed_us: float) -> None:
    """Set what mostly kept each connection from sending more since the rows `before`, and for how much of the time.

    Time in which it was busy and neither the receiver's window nor the send buffer held it back went by with data on
    its way: that is the limit of the congestion window or of pacing where more waited to be sent, the path's where
    segments had to be sent again, the send buffer's where the application waits for room in it, and otherwise the
    application's, which had nothing more to send. The time until an acknowledgement may be less than a tick, so that
    what was sent says as well that there was something to send. Nothing is said of connections that had nothing to
    send at all, and after less than _LEAST_US what was said before still holds.
    """
    at = positions(rows["id"], before["id"])
    here = np.flatnonzero(at >= 0)
    here = here[known(rows["busy_us"][here]) & known(before["busy_us"][at[here]])]
    there = at[here]
    if elapsed_us < _LEAST_US:
        for name in ("limited_by", "limited_share"):
            rows[name][here] = before[name][there]
        return

    def grown(name: str) -> Array:
        return growth(rows[name][here], before[name][there]).astype(np.int64)

    busy, receiver, send_buffer = map(grown, ("busy_us", "receiver_limited_us", "send_buffer_limited_us"))
    in_flight = np.maximum(busy - receiver - send_buffer, 0)
    is_lossy = grown("retransmits") > 0
    # A congestion control that paces, such as BBR, keeps data waiting without using up its window.
    is_congested = (rows["congestion_limited"][here] == 1) | (rows["application_limited"][here] == 0)
    # The kernel counts a full buffer only from a segment that is sent once it is full (tcp_cwnd_validate), which is
    # hardly ever where all that a small buffer holds leaves at once.
    is_full = rows["send_buffer_full"][here] == 1
    times = {
        RECEIVER: receiver,
        SEND_BUFFER: send_buffer + np.where(is_full & ~is_congested & ~is_lossy, in_flight, 0),
        CONGESTION: np.where(is_congested & ~is_lossy, in_flight, 0),
        PATH_LOSS: np.where(is_lossy, in_flight, 0),
    }
    times[APPLICATION] = np.maximum(elapsed_us - sum(times.values()), 0)
    by_limit = np.array(list(times.values()), np.float64)
    longest = by_limit.argmax(axis=0)
    was_busy = (busy > 0) | (grown("data_packets_sent") > 0)
    rows["limited_by"][here[was_busy]] = np.array(list(times), np.uint8)[longest[was_busy]]
    rows["limited_share"][here[was_busy]] = np.minimum(by_limit.max(axis=0)[was_busy] / elapsed_us, 1)


def count_hashed(rows: Array) -> dict[int, Counted]:
    """For each namespace what its hash tables count of these rows.

    A TCP socket in CLOSE and a UDP socket without a port are in no table; a request in SYN_RECV and a
    minisocket in TIME_WAIT are in one, but not counted: neither has queues.
    """
    if not len(rows):
        return {}
    # Namespaces have neighbouring inode numbers, so counting by place needs no sort.
    first = int(rows["netns"].min())
    place = rows["netns"] - np.uint32(first)
    has_queue = known(rows["send_queue"]) | known(rows["backlog"])
    tcp = (rows["protocol"] == TCP) & (rows["state"] != STATE["CLOSE"]) & has_queue
    udp = (rows["protocol"] == UDP) & known(rows["local_port"])
    listening = known(rows["syn_queue"])
    rows_at = np.bincount(place)
    sums = (
        np.bincount(place[tcp], minlength=len(rows_at)),
        np.bincount(place[udp], minlength=len(rows_at)),
        np.bincount(place[listening], rows["syn_queue"][listening], len(rows_at)).astype(int),
    )
    return {
        first + at: Counted(*(int(counts[at]) for counts in sums)) for at in as_list(np.flatnonzero(rows_at))
    }


def count_waiting_for_fin(rows: Array) -> int:
    """Minisockets that the kernel counts with TIME_WAIT, but which still wait for the peer's FIN."""
    return int(np.count_nonzero((rows["state"] == STATE["FIN_WAIT2"]) & ~known(rows["send_queue"])))


def _by_id(rows: Array) -> tuple[Index, Array]:
    """Positions that sort the rows by id, stably, and the ids in that order."""
    ids = np.ascontiguousarray(rows["id"])
    order = np.argsort(ids, kind="stable")
    return order, ids[order]


def _first_of_each(ids: Array) -> Mask:
    first = np.ones(len(ids), bool)
    first[1:] = ids[1:] != ids[:-1]
    return first


def _is_user(rows: Array, users: Array) -> Mask:
    at = positions(rows["id"], users["id"])
    is_user: Mask = at >= 0
    is_user[is_user] = users["pid"][at[is_user]] == rows["pid"][is_user]
    return is_user


def _owned_before(rows: Array, before: Array) -> Mask:
    at = positions(rows["id"], before["id"])
    owned = at >= 0
    for name in ("pid", "start_time"):
        owned[owned] = before[name][at[owned]] == rows[name][owned]
    return owned
