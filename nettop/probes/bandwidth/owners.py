# SPDX-License-Identifier: Apache-2.0
"""Map flows to their owners: the process of the socket with the same addresses and ports."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from nettop.kernel.bpf.set_table import mix
from nettop.snapshots.arrays import Array, Index, Mask, as_list, is_uniform, positions, take_rows
from nettop.snapshots.connections import SEVERAL
from nettop.snapshots.snapshot import Rows, TextTable, known

_UDP = 17
_End = tuple[Array, Array]
_NO_ADDRESS = np.zeros((1, 2), ">u8")
_NOBODY: _End = (_NO_ADDRESS, np.zeros(1, "u2"))
_ANY_V4 = np.array([0, 0xFFFF_0000_0000], ">u8")
"""0.0.0.0, as ::ffff:0.0.0.0."""


OWNER = np.dtype([("socket", "u8"), ("process", "u4"), ("pid", "u4")])
"""The owner of a flow: the ID of its socket, the code of the process, its PID."""
_UNKNOWN = np.iinfo(np.uint32).max


class Found(NamedTuple):
    """The position of each flow's socket (−1: none), and whether all sockets with its endpoints belong to the same
    process, by name and by PID."""

    at: Index
    same_name: Mask
    same_pid: Mask


def no_owners(count: int) -> Array:
    """Return `count` unknown owners, as OWNER."""
    owners = np.zeros(count, OWNER)
    owners["process"] = owners["pid"] = _UNKNOWN
    return owners


def owners_among(flows: Array, protocols: Array, sockets: Rows, own: int, texts: TextTable) -> Array:
    """Return the owner of each flow among these sockets, as OWNER with codes into `texts`. See `find_owners`."""
    found = find_owners(flows, protocols, sockets.array, own)
    owners, at = no_owners(len(flows)), np.flatnonzero(found.at >= 0)
    socket_rows = take_rows(sockets.array, found.at[at])
    owners["socket"][at] = socket_rows["id"]
    owners["pid"][at] = np.where(found.same_pid[at], socket_rows["pid"], _UNKNOWN)
    owners["process"][at] = recode_processes(socket_rows["process"], sockets, texts)
    owners["process"][at[~found.same_name[at]]] = texts.code(SEVERAL)
    return owners


def recode_processes(codes: Array, rows: Rows, texts: TextTable) -> Array:
    """Convert process codes from the texts of `rows` to codes into `texts`."""
    distinct, groups = np.unique(codes, return_inverse=True)
    names = rows.texts["process"]
    new = [texts.code(names[code]) if code < len(names) else _UNKNOWN for code in as_list(distinct)]
    return np.array(new, "u4")[groups] if new else codes


def merge_owners(now: Array, before: Array, texts: TextTable) -> Array:
    """Combine the current and the previous owners of flows; two different processes become `several`."""
    several = texts.code(SEVERAL)
    owners = np.where(known(now["process"]), now, before)
    is_other = known(now["process"]) & known(before["process"]) & (now["socket"] != before["socket"])
    is_other &= (now["pid"] != before["pid"]) | ~known(now["pid"])
    owners["pid"][is_other] = _UNKNOWN
    is_other &= now["process"] != before["process"]
    is_other |= before["process"] == several
    owners["process"][is_other], owners["pid"][is_other] = several, _UNKNOWN
    return owners


def find_owners(flows: Array, protocols: Array, sockets: Array, own: int) -> Found:
    """Find the socket of each flow. `protocols` are the flows' IP protocols, `own` is the network namespace
    whose interfaces carry the flows.

    A socket of that namespace is the local end of a flow. A socket of another namespace (a container's) is at the
    far end of one of the interfaces, so its local address is the flow's remote address. A UDP socket without a
    peer owns everything sent to its port; several sockets may share a port (SO_REUSEPORT).
    """
    is_own = sockets["netns"] == own
    has_peer = known(sockets["remote_port"])
    waits = np.flatnonzero(is_own & ~has_peer & (sockets["protocol"] == _UDP))
    all_ends = _ends(sockets["protocol"], _end(sockets, "local"), _end(sockets, "remote"))
    waiting_ends = _ends(sockets["protocol"], _end(sockets, "local"), _NOBODY)
    local, remote = _end(flows, "local"), _end(flows, "remote")
    found = Found(np.full(len(flows), -1, np.intp), *np.ones((2, len(flows)), bool))
    for sought, ends, unsorted in (
        (_ends(protocols, local, remote), all_ends, np.flatnonzero(is_own & has_peer)),
        (_ends(protocols, remote, local), all_ends, np.flatnonzero(~is_own & has_peer)),
        (_ends(protocols, local, _NOBODY), waiting_ends, waits),
        (_ends(protocols, (_NO_ADDRESS, local[1]), _NOBODY), waiting_ends, waits),
    ):
        # Among sockets with the same endpoints, prefer one with a process.
        among = unsorted[np.lexsort((sockets["process"][unsorted], ends[unsorted]))]
        at = positions(sought, ends[among])
        matches = np.flatnonzero((found.at < 0) & (at >= 0))
        found.at[matches] = among[at[matches]]
        for same, column in ((found.same_name, "process"), (found.same_pid, "pid")):
            same[matches] = is_uniform(ends[among], sockets[column][among])[at[matches]]
    return found


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
