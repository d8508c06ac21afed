# SPDX-License-Identifier: Apache-2.0
"""Properties derived from socket rows alone: owners, directions, send limits, counts by namespace.

Rows are structured arrays of dtype ROW: the fields of the connections table, followed by additional fields that the
programs write.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np

from nettop.kernel.bpf.rows import columns
from nettop.kernel.host.facts import Host, SocketCounts
from nettop.kernel.host.processes import Processes, ProcessNames
from nettop.kernel.net.entered_namespaces import DEVICE_INDEX, Namespaces
from nettop.snapshots import connections as spec
from nettop.snapshots.arrays import (
    Array,
    Index,
    Mask,
    as_list,
    copy_columns,
    distinct_rows,
    growth,
    insert_rows,
    positions,
    take_rows,
)
from nettop.snapshots.schema import BEGAN, row_dtype
from nettop.snapshots.services import CONNECTIONS
from nettop.snapshots.snapshot import Snapshot, known

TCP, UDP, RAW, MPTCP = spec.PROTOCOLS
STATE = {name: number for number, name in spec.STATES.items()}
UNCONNECTED_STATES = [STATE[name] for name in ("LISTEN", "TIME_WAIT", "CLOSE")]
"""States of TCP sockets that are not, or no longer, a connection."""
_INBOUND, _OUTBOUND = (number for number, name in spec.DIRECTIONS.items() if name.endswith("?"))

_ALGORITHMS = {name: number for number, name in spec.CONGESTION_CONTROLS.items()}
_MIN_INTERVAL_US = 100_000
"""Minimum interval: time is counted in ticks of up to 10 ms, and fewer than ten of them say nothing."""

ROW = row_dtype(
    spec.SOCKETS,
    (
        *columns("u1", BEGAN, "held_by", "is_tunnel", "is_opener"),
        *columns("u4", DEVICE_INDEX, "cgroup_id"),
        *columns("u8", "holder", "start_time", "css_set"),
        *columns("S16", "comm", "algorithm"),
    ),
)
"""A row as the programs write it: the table's fields, then the owner process and internal fields.

`held_by` (HELD_BY_PROCESS, HELD_BY_KERNEL, or 0: neither) and `holder` (the MPTCP socket that holds it) describe
sockets that no descriptor led to. `is_tunnel`: the kernel takes datagrams before they are received. `is_opener`: the
process is known to have opened, accepted or used the connection. `algorithm`: name of the congestion control.

A program builds a row on BPF's stack of 512 bytes. In a PID namespace, where it looks up PIDs too, it has room for 392.
"""

HELD_BY_PROCESS, HELD_BY_KERNEL = 1, 2

USER = np.dtype([("id", "u8"), ("pid", "u4")])
"""A process that sends or receives on a socket held by several."""
NO_USERS = np.zeros(0, USER)
MESSAGE = next(number for number, name in spec.OWNER_SOURCES.items() if name == "message")
_SERVICE_MANAGER = b"systemd"
"""Name of a process that opens sockets for others."""

_OWNER = (
    "pid", "descriptor", "descriptors_max", "start_time", "css_set", "cgroup_id", "comm", "owner_source",
)  # fmt: skip


class SocketReading(NamedTuple):
    """All current sockets, sorted by id, and the names of their processes; counts of sockets that are not listed; and
    the time of the counters (CLOCK_MONOTONIC)."""

    rows: Array
    names: ProcessNames
    counts: dict[str, int]
    taken_ns: int


class SocketsReader:
    """The current sockets with their owner processes, and others if it `lists_unattributed`.

    `shared` are maps shared with the event programs, if any. `held_by_several` are all rows of the sockets that several
    processes held at the last read.
    """

    def __init__(self, host: Host, namespaces: Namespaces) -> None:
        self.processes = Processes(host)
        self.namespaces = namespaces
        self.shared: Mapping[str, int] = {}
        self.lists_unattributed = True
        self.held_by_several = np.zeros(0, ROW)
        self._host = host
        self._has_outside = not host.in_initial_pid_namespace()
        self._all_rows = False

    def list_all(self, all_rows: bool) -> None:
        """Choose whether to list everything, including TIME_WAIT sockets."""
        self._all_rows = all_rows

    def close(self) -> None:
        """Leave every namespace."""
        self.namespaces.close()


def choose_owners(rows: Array, before: Array, users: Array) -> tuple[Index, Index]:
    """Return the positions of each socket's owner row, sorted by id, and of all rows of sockets held by several
    processes.

    Of several processes, the owner is the one in `users` (USER, sorted by id), which was seen to send or receive; else
    the one in the rows `before`, while it holds the socket; else the one that opened or accepted it. If neither was
    seen, it is the one that started first, as children inherit what their parents opened; but not the service manager,
    which opens sockets for others.
    """
    order, ids = _by_id(rows)
    first = _first_of_each(ids)
    if first.all():
        return order, order[:0]
    shared = ~first | ~np.append(first[1:], True)
    at = order[shared]
    held = rows[at]
    is_user = is_same(held, users, ["pid"])
    is_earlier = is_same(held, before, ["pid", "start_time"])
    rows["owner_source"][at[is_user]] = MESSAGE
    ranks = (held["comm"] == _SERVICE_MANAGER, held["is_opener"] != 1, ~is_earlier, ~is_user)
    best_first = np.lexsort((held["pid"], held["start_time"], *ranks, ids[shared]))
    order[shared] = at[best_first]
    return order[first], at


def has_process(rows: Array) -> Mask:
    """Return a mask of rows or events with an owner process. Outside nettop's PID namespace it has no PID."""
    return known(rows["start_time"])


def is_same(rows: Array, others: Array, names: Iterable[str]) -> Mask:
    """Return a mask of the rows whose id is among `others`, sorted by id, with the same values in these columns."""
    at = positions(rows["id"], others["id"])
    same: Mask = at >= 0
    for name in names:
        same[same] = others[name][at[same]] == rows[name][same]
    return same


def copy_owners(rows: Array, owned: Array, at: Index) -> None:
    """Copy the owners from the rows `owned` at these positions (−1: none) to `rows`."""
    to = np.flatnonzero(at >= 0)
    to = to[known(owned["start_time"][at[to]])]
    copy_columns(rows, owned, _OWNER if len(to) else (), to=to, of=at[to])


def descriptors_of(row: Array, shared: Array) -> list[tuple[int, int]]:
    """Return the (PID, descriptor) pairs of this single row's socket; `shared` are all rows of sockets that several
    processes hold."""
    several = shared[shared["id"] == row["id"]]
    rows = several if len(several) else row[known(row["descriptor"])]
    return sorted(zip(rows["pid"].tolist(), rows["descriptor"].tolist(), strict=True))


def merge(owned: Array, unattributed: Array) -> Array:
    """Merge both sets of rows, sorted by id; `owned` is already sorted."""
    if not len(unattributed):
        return owned
    order, ids = _by_id(unattributed)
    rows = take_rows(
        unattributed, order[_first_of_each(ids)]
    )  # a request that becomes a socket may be seen as both
    return insert_rows(owned, np.searchsorted(owned["id"], rows["id"]), rows)


def exclude_ids(rows: Array, ids: Array) -> Array:
    """Return the rows whose id is not among the sorted `ids`."""
    return take_rows(rows, positions(rows["id"], ids) < 0)


def exclude_owned(rows: Array, owned_ids: Array) -> Array:
    """Return the rows whose id is not among the sorted `owned_ids`, and all TIME_WAIT rows.

    A process may still hold such a connection's dead socket in CLOSE, with the same id and no local port.
    """
    return take_rows(
        rows, np.flatnonzero((rows["state"] == STATE["TIME_WAIT"]) | (positions(rows["id"], owned_ids) < 0))
    )


def is_closed(rows: Array) -> Mask:
    """Return a mask of TCP sockets that are not connected, yet held by a process."""
    closed: Mask = (rows["state"] == STATE["CLOSE"]) & (rows["protocol"] == TCP)
    return closed


def infer_directions(rows: Array) -> None:
    """Infer that a connection of unknown direction is inbound if a socket of its namespace listens on its local
    port."""

    def ports(at: Index) -> Array:
        ports: Array = rows["netns"][at].astype(np.uint64) << np.uint64(16) | rows["local_port"][at]
        return ports

    connected = np.flatnonzero(~known(rows["direction"]) & known(rows["remote_port"]))
    connected = connected[np.isin(rows["protocol"][connected], (TCP, MPTCP))]
    listening = np.unique(ports(np.flatnonzero(rows["state"] == STATE["LISTEN"])))
    is_inbound = positions(ports(connected), listening) >= 0
    rows["direction"][connected] = np.where(is_inbound, _INBOUND, _OUTBOUND)


def name_congestion_control(rows: Array) -> None:
    """Set the algorithms' numbers from their names."""
    with_name = np.flatnonzero(known(rows["busy_us"]))
    names = rows["algorithm"][with_name]
    firsts, places = distinct_rows([names.view(np.uint64).reshape(-1, 2)])  # as texts they compare slowly
    numbers = [_ALGORITHMS.get(name.decode("ascii", "replace"), 0) for name in as_list(names[firsts])]
    rows["congestion_control"][with_name] = np.array(numbers, np.uint8)[places]


def set_responses(rows: Array, services: Snapshot | None) -> None:
    """Set each socket's number of responses, mean response time and start of the pending request, as measured by the
    services lens."""
    seen = services.tables.get(CONNECTIONS.name) if services is not None else None
    if seen is None:
        return
    at = positions(rows["id"], seen.array["id"])
    here = np.flatnonzero(at >= 0)
    of = seen.array[at[here]]
    rows["responses"][here] = np.minimum(of["responses"], np.iinfo(np.uint32).max - 1)
    rows["waiting_since"][here] = of["since"]
    timed = of["responses"] > 0
    mean = of["response_ns"][timed] / of["responses"][timed]
    rows["response_mean"][here[timed]] = mean.round()


def find_limits(rows: Array, before: Array, elapsed_us: float) -> None:
    """Set the main limit on each connection's sending since the rows `before`, and its share of the time.

    While a connection is busy, and limited neither by the receiver's window nor by the send buffer, data is in flight.
    If none is, though segments were sent and nothing was received, this host dropped them, by a firewall rule or in a
    full queue. Otherwise, the limit is path loss if more than PATH_LOSS_ABOVE of the segments were retransmitted,
    spurious ones not counted; congestion (the window, or pacing) if more data was waiting; the send buffer if the
    application waits for room in it; else the application, which had nothing more to send. Waiting for an
    acknowledgement may take less than a tick, so sent segments also show that the connection was busy. A connection
    that had nothing to send gets no limit, and an interval below _MIN_INTERVAL_US keeps the previous one.
    """
    at = positions(rows["id"], before["id"])
    here = np.flatnonzero((at >= 0) & known(rows["busy_us"]))
    there = at[here]
    if elapsed_us < _MIN_INTERVAL_US:
        copy_columns(rows, before, ("limited_by", "limited_share"), to=here, of=there)
        return

    differs = [rows[name][here] != before[name][there] for name in ("busy_us", "data_packets_sent")]
    moved = np.flatnonzero(differs[0] | differs[1])
    here, there = here[moved], there[moved]
    was_counted = known(before["busy_us"][there])
    here, there = here[was_counted], there[was_counted]

    def grown(name: str) -> Array:
        return growth(rows[name][here], before[name][there]).astype(np.int64)

    busy, receiver, send_buffer = map(grown, ("busy_us", "receiver_limited_us", "send_buffer_limited_us"))
    in_flight = np.maximum(busy - receiver - send_buffer, 0)
    sent = grown("data_packets_sent")
    is_lossy = grown("retransmits") - grown("spurious") > sent * spec.PATH_LOSS_ABOVE
    flying, queued = rows["bytes_in_flight"][here], rows["send_queue"][here]
    nothing_flies = (flying == 0) & (queued > 0)
    # The kernel counts dropped bytes as sent, so bytes_acked cannot show that nothing was acknowledged.
    is_dropped = nothing_flies & (sent > 0) & (grown("packets_received") == 0)
    is_lossy &= ~is_dropped
    # Congestion control with pacing, such as BBR, keeps data waiting without filling its window. If all is in flight,
    # none waits, though the kernel says so only from the next segment on that finds nothing to send after it.
    all_flies = known(flying) & (queued <= flying)
    is_paced = (rows["application_limited"][here] == 0) & ~all_flies
    is_congested = ((rows["congestion_limited"][here] == 1) | is_paced) & ~is_dropped
    # The kernel counts a full buffer only from a segment sent while it is full (tcp_cwnd_validate), which rarely
    # happens if everything in a small buffer is sent at once.
    is_full = rows["send_buffer_full"][here] == 1
    times = {
        spec.RECEIVER: receiver,
        spec.SEND_BUFFER: send_buffer
        + np.where(is_full & ~is_congested & ~is_lossy & ~is_dropped, in_flight, 0),
        spec.CONGESTION: np.where(is_congested & ~is_lossy, in_flight, 0),
        spec.PATH_LOSS: np.where(is_lossy, in_flight, 0),
        spec.LOCAL_DROP: np.where(is_dropped, in_flight, 0),
    }
    times[spec.APPLICATION] = np.maximum(elapsed_us - sum(times.values()), 0)
    by_limit = np.array(list(times.values()), np.float64)
    longest = by_limit.argmax(axis=0)
    was_busy = (busy > 0) | (sent > 0)
    rows["limited_by"][here[was_busy]] = np.array(list(times), np.uint8)[longest[was_busy]]
    rows["limited_share"][here[was_busy]] = np.minimum(by_limit.max(axis=0)[was_busy] / elapsed_us, 1)


def count_hashed(rows: Array) -> dict[int, SocketCounts]:
    """Count the rows that are in each namespace's hash tables, as the kernel does.

    TCP sockets in CLOSE and UDP sockets without a port are in no table. Requests in SYN_RECV and minisockets in
    TIME_WAIT are in one, but not counted: neither has queues.
    """
    firsts, places = distinct_rows([rows["netns"]])
    protocol, state = np.ascontiguousarray(rows["protocol"]), np.ascontiguousarray(rows["state"])
    has_queue = known(rows["send_queue"]) | (state == STATE["LISTEN"])
    tcp = (protocol == TCP) & (state != STATE["CLOSE"]) & has_queue
    udp = np.flatnonzero(protocol == UDP)
    udp = udp[known(rows["local_port"][udp])]
    listeners = np.flatnonzero(state == STATE["LISTEN"])
    listeners = listeners[known(rows["syn_queue"][listeners])]
    sums = (
        np.bincount(places[tcp], minlength=len(firsts)),
        np.bincount(places[udp], minlength=len(firsts)),
        np.bincount(places[listeners], rows["syn_queue"][listeners], len(firsts)).astype(int),
    )
    counts = zip(as_list(rows["netns"][firsts]), *map(as_list, sums), strict=True)
    return {netns: SocketCounts(tcp, udp, half_open=half_open) for netns, tcp, udp, half_open in counts}


def count_waiting_for_fin(rows: Array) -> int:
    """Count minisockets that the kernel counts as TIME_WAIT, but which still wait for the peer's FIN."""
    return int(np.count_nonzero((rows["state"] == STATE["FIN_WAIT2"]) & ~known(rows["send_queue"])))


def _by_id(rows: Array) -> tuple[Index, Array]:
    """Return the positions that sort the rows by id (stable), and the sorted ids."""
    ids = np.ascontiguousarray(rows["id"])
    order = np.argsort(ids, kind="stable")
    return order, ids[order]


def _first_of_each(ids: Array) -> Mask:
    first = np.ones(len(ids), bool)
    first[1:] = ids[1:] != ids[:-1]
    return first
