# SPDX-License-Identifier: Apache-2.0
"""Flows, read from the memory that the programs write and merged across CPUs: one row per flow. A flow's owner is the
process of the socket with the same addresses and ports."""

from __future__ import annotations

from functools import cache

import numpy as np

from nettop.kernel.bpf.set_table import SetTable, key_hashes, mix
from nettop.probes.bandwidth.programs import KEY, TRAFFIC_COLUMNS
from nettop.snapshots.arrays import Array, Index, is_uniform, positions, take_rows
from nettop.snapshots.bandwidth import ETHERTYPES, PROTOCOL_NOT_IP
from nettop.snapshots.connections import SEVERAL
from nettop.snapshots.ip_protocols import IP_PROTOCOLS
from nettop.snapshots.row_ids import row_ids
from nettop.snapshots.snapshot import Rows, TextTable, known

_FLAGS = "FSRPAUEC"
_PORTS = ("tcp", "udp", "sctp")
_UDP = 17
_End = tuple[Array, Array]
_NO_ADDRESS = np.zeros((1, 2), ">u8")
_NOBODY: _End = (_NO_ADDRESS, np.zeros(1, "u2"))
_ANY_V4 = np.array([0, 0xFFFF_0000_0000], ">u8")
"""0.0.0.0, as ::ffff:0.0.0.0."""
OWNER = np.dtype([("socket", "u8"), ("process", "u4"), ("pid", "u4"), ("is_far", "?")])
"""The owner of a flow: the ID of its socket, the code of the process, its PID, and whether it is the far end, in
another network namespace."""
_UNKNOWN = np.iinfo(np.uint32).max


def read_flows(table: SetTable) -> Array:
    """Return the current flows as FLOW, summed over all CPUs and sorted by `ids_of`."""
    entries, _, starts = table.read()
    flows = merge_entries(entries, starts)
    return take_rows(flows, np.argsort(ids_of(flows)))


def merge_entries(entries: Array, starts: Index) -> Array:
    """Sum the entries of each flow into one row; `starts` are the positions at which a flow's entries begin."""
    flows = take_rows(entries, starts)
    for name in TRAFFIC_COLUMNS:
        flows[name] = np.add.reduceat(entries[name], starts)
    flows["first_seen"] = np.minimum.reduceat(entries["first_seen"], starts)
    flows["last_seen"] = np.maximum.reduceat(entries["last_seen"], starts)
    flows["tcp_flags"] = np.bitwise_or.reduceat(entries["tcp_flags"], starts)
    return flows


def ids_of(flows: Array) -> Array:
    """Return an ID for each flow, derived from its key and the time it was first seen: a flow that returns after
    eviction gets a new ID."""
    return row_ids(mix(key_hashes(flows, KEY), flows["first_seen"]))


@cache
def protocol_name(protocol: int, ethertype: int) -> str:
    """Return the name of a flow's IP protocol, or of its network protocol if it is not IP; the number if unnamed."""
    if protocol == PROTOCOL_NOT_IP:
        return ETHERTYPES.get(ethertype, f"{ethertype:#06x}" if ethertype else "?")
    return IP_PROTOCOLS.get(protocol, str(protocol))


def has_ports(flows: Array) -> Array:
    """Return a mask of the flows whose ports are known."""
    numbers = [number for number, name in IP_PROTOCOLS.items() if name in _PORTS]
    are_known: Array = np.isin(flows["protocol"], numbers) & (flows["has_unknown_ports"] == 0)
    return are_known


@cache
def flags_text(flags: int) -> str:
    """Return TCP flags as letters."""
    return "".join(letter for bit, letter in enumerate(_FLAGS) if flags >> bit & 1)


# --- owners ---------------------------------------------------------------------------------------------------


def no_owners(count: int) -> Array:
    """Return `count` unknown owners, as OWNER."""
    owners = np.zeros(count, OWNER)
    owners["process"] = owners["pid"] = _UNKNOWN
    return owners


def merge_owners(now: Array, before: Array, texts: TextTable) -> Array:
    """Combine the current and the previous owners of flows; two different processes become `several`.

    If the near end of a flow is known, the far end does not count: it may be open for longer.
    """
    several = texts.code(SEVERAL)
    is_now, was_before = (
        known(owner["process"]) & ~(owner["is_far"] & known(other["process"]) & ~other["is_far"])
        for owner, other in ((now, before), (before, now))
    )
    owners = np.where(is_now, now, before)
    is_other = is_now & was_before & (now["socket"] != before["socket"])
    is_other &= (now["pid"] != before["pid"]) | ~known(now["pid"])
    owners["pid"][is_other] = _UNKNOWN
    is_other &= now["process"] != before["process"]
    is_other |= was_before & (before["process"] == several)
    owners["process"][is_other], owners["pid"][is_other] = several, _UNKNOWN
    return owners


def find_owners(flows: Array, protocols: Array, sockets: Rows, own: int, texts: TextTable) -> Array:
    """Return the owner of each flow among these sockets, as OWNER with codes into `texts`. `protocols` are the flows'
    IP protocols, `own` is the network namespace whose interfaces carry the flows.

    A socket of that namespace is the local end of a flow. A socket of another namespace (a container's) is at the
    far end of one of the interfaces, so its local address is the flow's remote address. A UDP socket without a
    peer owns everything sent to its port; several sockets may share a port (SO_REUSEPORT): then the owner has only the
    values that they share.
    """
    rows = sockets.array
    is_own, has_peer = rows["netns"] == own, known(rows["remote_port"])
    waits = np.flatnonzero(is_own & ~has_peer & (rows["protocol"] == _UDP))
    all_ends = _ends(rows["protocol"], _end(rows, "local"), _end(rows, "remote"))
    waiting_ends = _ends(rows["protocol"], _end(rows, "local"), _NOBODY)
    local, remote = _end(flows, "local"), _end(flows, "remote")
    owners, several = no_owners(len(flows)), np.zeros(len(flows), bool)
    is_found = several.copy()
    for sought, ends, unsorted in (
        (_ends(protocols, local, remote), all_ends, np.flatnonzero(is_own & has_peer)),
        (_ends(protocols, remote, local), all_ends, np.flatnonzero(~is_own & has_peer)),
        (_ends(protocols, local, _NOBODY), waiting_ends, waits),
        (_ends(protocols, (_NO_ADDRESS, local[1]), _NOBODY), waiting_ends, waits),
    ):
        # Among sockets with the same endpoints, prefer one with a process.
        among = unsorted[np.lexsort((rows["process"][unsorted], ends[unsorted]))]
        at = positions(sought, ends[among])
        new = np.flatnonzero(~is_found & (at >= 0))
        at, is_found[new] = at[new], True
        same_pid, same_name = (is_uniform(ends[among], rows[name][among])[at] for name in ("pid", "process"))
        owners["socket"][new], owners["process"][new] = rows["id"][among[at]], rows["process"][among[at]]
        owners["pid"][new] = np.where(same_pid, rows["pid"][among[at]], _UNKNOWN)
        owners["is_far"][new] = ~is_own[among[at]]
        several[new] = ~same_name
    owners["process"] = texts.adopted(owners["process"], sockets.texts["process"])
    owners["process"][several] = texts.code(SEVERAL)
    return owners


def _end(rows: Array, which: str) -> _End:
    """Return the address and port of an endpoint, with 0.0.0.0 as ::."""
    addresses = rows[f"{which}_address"].copy()
    addresses[(addresses == _ANY_V4).all(axis=1)] = 0
    return addresses, rows[f"{which}_port"]


def _ends(protocol: Array, near: _End, far: _End) -> Array:
    """Hash each pair of endpoints: protocol, addresses (n, 2) and ports (n,)."""
    ends = protocol.astype(np.uint64)
    for address, port in (near, far):
        for column in (address[:, 0], address[:, 1], port):
            ends = mix(ends, column.astype(np.uint64))
    return ends
