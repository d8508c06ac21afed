# SPDX-License-Identifier: Apache-2.0
"""The socket table without BPF or root: netlink's sock_diag, and the file descriptors in /proc.

The rows are those of nettop.probes.connections.socket_table, as far as these sources provide them.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping
from concurrent.futures import Future, wait
from functools import partial
from typing import NamedTuple

import numpy as np

from nettop.errors import Unsupported
from nettop.kernel.host import privileges
from nettop.kernel.host.facts import Host, SocketCounts
from nettop.kernel.host.processes import ProcessNames, outside_name
from nettop.kernel.net import sock_diag
from nettop.kernel.net.entered_namespaces import DEVICE_INDEX, Namespaces
from nettop.kernel.net.socket_owners import SocketOwners, find_owners
from nettop.probes.connections import socket_rows
from nettop.process.clocks import monotonic_ns
from nettop.snapshots import connections as spec
from nettop.snapshots.arrays import Array, Index, Mask, concatenate_rows, copy_columns, positions, take_rows
from nettop.snapshots.snapshot import known

SOCK_DIAG = "sock_diag + /proc"
_NOT_LISTED = {
    "sockets without a port": "sock_diag lists neither TCP sockets in CLOSE nor UDP sockets without a port",
    "MPTCP sockets": "not requested; their subflows are TCP connections",
    "raw sockets": "not requested",
}

_BOUND_INACTIVE = 13
"""Requests TCP sockets in CLOSE that have a port, since Linux 6.8 (include/net/tcp_states.h)."""
_CONNECTION_STATES = sum(
    1 << number for name, number in socket_rows.STATE.items() if name not in ("LISTEN", "CLOSE", "UNCONN")
)
_IDLE_STATES = 1 << socket_rows.STATE["LISTEN"] | 1 << _BOUND_INACTIVE
"""States in which struct tcp_info has no meaning."""
_UDP_STATES = 1 << socket_rows.STATE["ESTABLISHED"] | 1 << socket_rows.STATE["CLOSE"]

_FIN_ARRIVED = (socket_rows.STATE["CLOSE_WAIT"], socket_rows.STATE["LAST_ACK"], socket_rows.STATE["CLOSING"])
_FIN_WRITTEN = (socket_rows.STATE["FIN_WAIT1"], socket_rows.STATE["LAST_ACK"], socket_rows.STATE["CLOSING"])
_SYN_IN_FLIGHT = (socket_rows.STATE["SYN_SENT"], socket_rows.STATE["SYN_RECV"])
_FLAGS_MAX = 2
"""A SYN and a FIN may be acknowledged beyond the payload."""
_SINCE_DATA = {"last_sent_ms": "last_data_sent", "last_received_ms": "last_data_recv"}
_COPIED = {
    "state": "info_state",
    "packets_sent": "segs_out",
    "data_packets_sent": "data_segs_out",
    "packets_received": "segs_in",
    "retransmits": "total_retrans",
    "spurious": "dsack_dups",
    "cwnd": "snd_cwnd",
    "mss": "snd_mss",
    "peer_window": "snd_wnd",
    "lost": "lost",
    "reordered": "reord_seen",
    "probes": "probes",
    "busy_us": "busy_time",
    "receiver_limited_us": "rwnd_limited",
    "send_buffer_limited_us": "sndbuf_limited",
    "algorithm": "algorithm",
}
"""Fields copied unchanged from struct tcp_info."""
_ROUND_TRIP = {"rtt_us": "rtt", "rtt_var_us": "rttvar", "rtt_min_us": "min_rtt"}
_NEVER_MEASURED = 0xFFFFFFFF
_NOT_PACED = 0xFFFFFFFFFFFFFFFF
_IPV4, _IPV6 = spec.FAMILIES
_DESCRIPTOR = next(number for number, name in spec.OWNER_SOURCES.items() if name == "descriptor")
_V4_IN_V6 = struct.unpack("=I", b"\0\0\xff\xff")[0]
_NO_ROWS, _NO_INODES = np.zeros(0, socket_rows.ROW), np.zeros(0, np.uint32)


class _Listed(NamedTuple):
    """The dumps of a namespace: its sockets and their inodes, its own counts, the number of inconsistent dumps, and the
    reason for each protocol that the kernel does not list."""

    rows: Array
    inodes: Array
    stat: SocketCounts
    inconsistent: int
    gaps: dict[str, Unsupported]


class DiagTable(socket_rows.SocketsReader):
    """The kernel's socket table, dumped in each namespace by a thread that entered it.

    `gaps` names what this mechanism lacks beyond single fields, and why.
    """

    def __init__(self, host: Host, namespaces: Namespaces) -> None:
        super().__init__(host, namespaces)
        self._misses_owners = False
        self._without_root = _gaps_without_root(host)
        self._ownerless_ids = np.zeros(0, np.uint64)
        self._gaps: Mapping[str, str] = {}
        self._inconsistent = 0

    def gaps(self) -> dict[str, str]:
        """Map the gaps in the table to their reasons."""
        return self.namespaces.gaps(unseen=True) | dict(self._gaps)

    @property
    def lost_namespaces(self) -> int:
        """Number of namespaces whose sockets are missing."""
        return len(self.namespaces.refused)

    def read(self, before: Array, users: Array = socket_rows.NO_USERS) -> socket_rows.SocketReading:
        """Return all current sockets.

        `before` are the rows of the last refresh, `users` the users of sockets that several processes hold (USER).
        Namespaces dump their sockets while this thread reads the descriptors of processes. Raise NettopError if
        nothing can be listed.
        """
        dumps: dict[int, Future[_Listed]] = {}
        taken_ns = monotonic_ns()  # reading descriptors takes far longer than the dumps, which start now
        with self.namespaces.lock:
            self.namespaces.follow(frozenset())
            try:
                self._start_dumps(dumps)
                owners = find_owners(self._host.proc)
                self.namespaces.follow(owners.namespaces())
                self._start_dumps(dumps)
            finally:
                wait(dumps.values())
            listed = [dump.result() for dump in dumps.values()]
        # Whether there are, or may be, processes of other users that this user may not inspect.
        sees_all = self._host.reaches_kernel() and privileges.held() >= privileges.FINDING_NAMESPACES
        self._misses_owners = not sees_all and (owners.hidden > 0 or self._host.hides_processes())
        self._note_gaps(listed)
        self._inconsistent += sum(namespace.inconsistent for namespace in listed)
        waiting_for_fin = sum(socket_rows.count_waiting_for_fin(namespace.rows) for namespace in listed)
        counts = {
            "time_wait": max(0, sum(namespace.stat.time_wait for namespace in listed) - waiting_for_fin),
            "unlisted": sum(map(_count_unlisted, listed)),
            "namespaces": len(listed),
            "inconsistent_dumps": self._inconsistent,
            "processes_hidden": owners.hidden,
        }
        names = self.processes.begin()
        rows = self._with_owners(names, listed, owners, before, users)
        return socket_rows.SocketReading(rows, names, counts, taken_ns)

    def _start_dumps(self, dumps: dict[int, Future[_Listed]]) -> None:
        """Start to list the sockets of every namespace that is not among the `dumps`."""
        for inode, thread in self.namespaces.threads.items():
            if inode not in dumps:
                dumps[inode] = thread.submit(partial(self._list, inode))

    def _list(self, netns: int) -> _Listed:
        """List the sockets of the calling thread's namespace."""
        rows, inodes, inconsistent = [_NO_ROWS], [_NO_INODES], 0
        gaps: dict[str, Unsupported] = {}
        whole = (
            _CONNECTION_STATES
            if self._all_rows
            else _CONNECTION_STATES & ~(1 << socket_rows.STATE["TIME_WAIT"])
        )
        for protocol, states, info in (
            (socket_rows.TCP, _IDLE_STATES, False),
            (socket_rows.TCP, whole, True),
            (socket_rows.UDP, _UDP_STATES, False),
        ):
            try:
                dump = sock_diag.dump(protocol, states, info=info)
            except Unsupported as error:
                gaps[spec.PROTOCOLS[protocol]] = error
                continue
            inconsistent += dump.inconsistent
            rows += [_rows(sockets, protocol, netns) for sockets in dump.sockets]
            inodes += [sockets["inode"] for sockets in dump.sockets]
        return _Listed(
            concatenate_rows(*rows), np.concatenate(inodes), self._host.sockstat(), inconsistent, gaps
        )

    def _note_gaps(self, listed: list[_Listed]) -> None:
        missing = {name: error for namespace in listed for name, error in namespace.gaps.items()}
        if missing.keys() >= {spec.PROTOCOLS[socket_rows.TCP], spec.PROTOCOLS[socket_rows.UDP]}:
            raise next(iter(missing.values()))
        self._gaps = (
            {name: error.what for name, error in missing.items()}
            | _NOT_LISTED
            | (self._without_root if self._misses_owners else {})
            | (spec.OUTSIDE if self._has_outside else {})
        )

    def _with_owners(
        self, names: ProcessNames, listed: list[_Listed], owners: SocketOwners, before: Array, users: Array
    ) -> Array:
        """Return the rows of all namespaces, sorted by id, each socket once and with its owner process."""
        rows = concatenate_rows(_NO_ROWS, *(namespace.rows for namespace in listed))
        inodes = np.concatenate([_NO_INODES, *(namespace.inodes for namespace in listed)])
        # A socket that changes its state during the dump may be listed twice.
        _, first = np.unique(rows["id"], return_index=True)
        rows, inodes = take_rows(rows, first), inodes[first]
        _keep_acknowledged(rows, before)
        held = _rows_of_descriptors(rows, inodes, owners)
        names.name(held)
        chosen, shared = socket_rows.choose_owners(held, before, users)
        self.held_by_several = take_rows(held, shared)
        owned = take_rows(held, chosen)
        return socket_rows.merge(owned, self._ownerless(names, rows, inodes, owned, owners))

    def _ownerless(
        self, names: ProcessNames, rows: Array, inodes: Array, owned: Array, owners: SocketOwners
    ) -> Array:
        """Return the rows that are not among the `owned`.

        A socket with an inode is held by a hidden process or one outside the PID namespace, or was closed while
        descriptors were read. For the user's own sockets, and where all processes are visible, the next reading shows
        which.
        """
        rest = np.flatnonzero(positions(rows["id"], owned["id"]) < 0)
        ownerless, held = take_rows(rows, rest), inodes[rest] != 0
        lasting = positions(ownerless["id"], self._ownerless_ids) >= 0
        others = self._misses_owners & (ownerless["uid"] != os.geteuid())
        hides_some = self._misses_owners or owners.hidden > 0
        may_miss_some = self._has_outside or hides_some
        hidden = held & (lasting | others | self._has_outside) & may_miss_some
        self._ownerless_ids = np.ascontiguousarray(ownerless["id"][held])
        ownerless["process"][hidden] = names.code(spec.HIDDEN_OWNER if hides_some else outside_name())
        return ownerless if self.lists_unattributed else ownerless[hidden]


def _gaps_without_root(host: Host) -> dict[str, str]:
    """Return what an unprivileged user cannot see of other users' processes, and the remedy."""
    if not privileges.BEGAN_AS_ROOT:
        return {
            spec.WITHOUT_ROOT: "only root sees the owners of other users' sockets: sudo nettop",
            "other namespaces": "only root can enter them: sudo nettop",
        }
    return {spec.WITHOUT_ROOT: f"not visible for other users' sockets: {host.how_to_see_owners()}"}


def _count_unlisted(listed: _Listed) -> int:
    """Return the number of sockets that a namespace counts but did not list. A few come and go in between."""
    counted_here = sum(
        counted.tcp + counted.udp for counted in socket_rows.count_hashed(listed.rows).values()
    )
    return max(0, listed.stat.tcp + listed.stat.udp - counted_here)


def _keep_acknowledged(rows: Array, before: Array) -> None:
    """Keep bytes_acked from falling below its value in `before`: a socket is not read atomically; see _put_payload."""
    at = positions(rows["id"], before["id"])
    now, then = rows["bytes_acked"], before["bytes_acked"][at[at >= 0]]
    listed = now[at >= 0]
    now[at >= 0] = np.where(known(listed) & known(then), np.maximum(listed, then), listed)


def _rows_of_descriptors(rows: Array, inodes: Array, owners: SocketOwners) -> Array:
    """Return a row for each descriptor of each of these sockets, grouped by process."""
    socket_at, descriptor_at = _pairs(inodes, owners.inode)
    held = take_rows(rows, socket_at)
    process = owners.processes[owners.process[descriptor_at]]
    copy_columns(held, process, ("pid", "start_time", "comm"))
    held["descriptor"] = owners.fd[descriptor_at]
    held["owner_source"] = _DESCRIPTOR
    return held


def _pairs(inodes: Array, wanted: Array) -> tuple[Index, Index]:
    """Return the positions of equal inodes in `inodes` and `wanted`, in the order of `wanted`.

    The subflows of an MPTCP connection share an inode, as processes share a socket.
    """
    order = np.argsort(inodes)
    ordered = inodes[order]
    first = np.searchsorted(ordered, wanted, "left")
    matches = np.searchsorted(ordered, wanted, "right") - first
    wanted_at = np.repeat(np.arange(len(wanted)), matches)
    nth = np.arange(len(wanted_at)) - np.repeat(np.cumsum(matches) - matches, matches)
    return order[first[wanted_at] + nth], wanted_at


# --- rows from sock_diag -------------------------------------------------------------------------------------


def _rows(sockets: Array, protocol: int, netns: int) -> Array:
    """Return the rows of one dump's sockets; fields that it lacks are unknown."""
    rows = np.full(len(sockets) * socket_rows.ROW.itemsize, 0xFF, np.uint8).view(socket_rows.ROW)
    rows["id"] = sockets["cookie"]
    rows["protocol"] = protocol
    rows["netns"] = netns
    rows["state"] = sockets["state"]
    if protocol == socket_rows.UDP:
        rows["state"][sockets["state"] == socket_rows.STATE["CLOSE"]] = socket_rows.STATE["UNCONN"]
    _put_endpoints(rows, sockets)
    if _has(sockets, "drops"):  # absent from requests and minisockets
        _put_socket(rows, sockets)
    if _has(sockets, "info_state"):
        _put_tcp(rows, sockets)
    return rows


def _put_endpoints(rows: Array, sockets: Array) -> None:
    """Set addresses, ports and device. IPv4 is native or mapped into IPv6."""
    local, remote = (sockets[name].copy() for name in ("local_address", "remote_address"))
    native = sockets["family"] == _IPV4
    mapped = ~native & (_is_mapped(local) | _is_mapped(remote))
    rows["family"] = np.where(native | mapped, _IPV4, _IPV6)
    for name, words in (("local_address", local), ("remote_address", remote)):
        words[native, 3] = words[native, 0]
        words[native | mapped, :3] = 0, 0, _V4_IN_V6
        rows[name] = words.view(">u8")
    for name, given in (("local_port",) * 2, ("remote_port",) * 2, (DEVICE_INDEX, "device")):
        is_set = sockets[given] != 0
        rows[name][is_set] = sockets[given][is_set]


def _is_mapped(words: Array) -> Mask:
    mapped: Mask = (words[:, :3] == (0, 0, _V4_IN_V6)).all(axis=1)
    return mapped


def _put_socket(rows: Array, sockets: Array) -> None:
    """Set the fields common to full sockets. A listener's queue fields hold its queued connections and their limit."""
    rows["drops"] = sockets["drops"]
    listens = rows["state"] == socket_rows.STATE["LISTEN"]
    unread = np.maximum(sockets["rqueue"].astype(np.int32), 0)
    for queue, of_listener, amounts in (
        ("send_queue", "backlog", sockets["wqueue"]),
        ("receive_queue", "accept_queue", unread),
    ):
        rows[queue][~listens] = amounts[~listens]
        rows[of_listener][listens] = amounts[listens]
    # Before Linux 6.17, a socket without an inode (orphan, not yet accepted) was reported as root's.
    has_owner = (sockets["uid"] != 0) | (sockets["inode"] != 0)
    rows["uid"][has_owner] = sockets["uid"][has_owner]


def _put_tcp(rows: Array, sockets: Array) -> None:
    """Set the fields of struct tcp_info, which was read under the socket's lock, unlike the head of the message."""
    for field, name in _COPIED.items():
        if _has(sockets, name):
            rows[field] = sockets[name]
    if _has(sockets, "min_rtt"):
        measured = (sockets["rtt"] != 0) | (sockets["min_rtt"] != _NEVER_MEASURED)
        for field, name in _ROUND_TRIP.items():
            rows[field][measured] = sockets[name][measured]
    if _has(sockets, "delivery_rate"):
        delivered = sockets["delivery_rate"] != 0
        rows["delivery_rate"][delivered] = sockets["delivery_rate"][delivered]
    if _has(sockets, "measured"):
        rows["application_limited"] = sockets["measured"] & 1
    _put_since_data(rows, sockets)
    if _has(sockets, "pacing_rate"):
        paced = (sockets["pacing_rate"] != 0) & (sockets["pacing_rate"] != _NOT_PACED)
        rows["pacing_rate"][paced] = sockets["pacing_rate"][paced]
    if _has(sockets, "bytes_retrans"):
        _put_payload(rows, sockets)


def _put_since_data(rows: Array, sockets: Array) -> None:
    """Set how long ago data was sent and received, or the connection opened."""
    opened = ~np.isin(rows["state"], _SYN_IN_FLIGHT)
    for field, name in _SINCE_DATA.items():
        if _has(sockets, name):
            rows[field][opened] = sockets[name][opened]


def _put_payload(rows: Array, sockets: Array) -> None:
    """Set byte counts without SYN and FIN, like put_payload in socket_rows.bpf.h.

    snd_nxt − snd_una is the queued bytes minus the unsent ones.
    """
    state = sockets["info_state"]
    unsent = sockets["notsent_bytes"].astype(np.int64)
    in_flight = np.maximum(sockets["wqueue"] - unsent, 0)
    sent = (sockets["bytes_sent"] - sockets["bytes_retrans"]).astype(np.int64)
    flag_in_flight = np.isin(state, _SYN_IN_FLIGHT) | (np.isin(state, _FIN_WRITTEN) & (unsent == 0))
    acked = sent - (in_flight - ((in_flight > 0) & flag_in_flight))
    # The queue was read slightly earlier than the rest. The kernel's bytes_acked counts SYN and FIN too, and nothing
    # else: a larger difference means that data was written or acknowledged in between.
    flags = sockets["bytes_acked"].astype(np.int64) - acked
    acked = np.where((flags >= 0) & (flags <= _FLAGS_MAX), acked, acked + flags - _FLAGS_MAX)
    rows["bytes_sent"] = sent
    rows["bytes_in_flight"] = in_flight
    rows["bytes_acked"] = np.maximum(acked, 0)
    received = sockets["bytes_received"]
    rows["bytes_received"] = received - ((received > 0) & np.isin(state, _FIN_ARRIVED))


def _has(sockets: Array, name: str) -> bool:
    return name in (sockets.dtype.names or ())
