# SPDX-License-Identifier: Apache-2.0
"""Whose a flow is: the socket with its addresses and ports."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from nettop.kernel.set_table import mixed
from nettop.snapshots.arrays import Index, Mask, agreed, as_list, positions, take
from nettop.snapshots.connections import SEVERAL
from nettop.snapshots.snapshot import Array, Rows, TextTable, known

_UDP = 17
_End = tuple[Array, Array]
_NO_ADDRESS = np.zeros((1, 2), ">u8")
_NOBODY: _End = (_NO_ADDRESS, np.zeros(1, "u2"))
_ANY_V4 = np.array([0, 0xFFFF_0000_0000], ">u8")
"""0.0.0.0, as ::ffff:0.0.0.0."""


OWNER = np.dtype([("socket", "u8"), ("process", "u4"), ("pid", "u4")])
"""The process of a flow, by its code, and the socket by which it is known."""
_UNKNOWN = np.iinfo(np.uint32).max


class Found(NamedTuple):
    """For each flow the position of its socket, or −1, and whether all sockets with its ends have the same process by
    name, and by PID."""

    at: Index
    same_name: Mask
    same_pid: Mask


def no_owners(count: int) -> Array:
    """Return so many unknown owners: OWNER."""
    owners = np.zeros(count, OWNER)
    owners["process"] = owners["pid"] = _UNKNOWN
    return owners


def owners_among(flows: Array, protocols: Array, sockets: Rows, own: int, texts: TextTable) -> Array:
    """Return the owner of each flow among these sockets, with codes into `texts`: OWNER. See `find_owners`."""
    found = find_owners(flows, protocols, sockets.array, own)
    owners, at = no_owners(len(flows)), np.flatnonzero(found.at >= 0)
    socket_rows = take(sockets.array, found.at[at])
    owners["socket"][at] = socket_rows["id"]
    owners["pid"][at] = np.where(found.same_pid[at], socket_rows["pid"], _UNKNOWN)
    owners["process"][at] = recoded(socket_rows["process"], sockets, texts)
    owners["process"][at[~found.same_name[at]]] = texts.code(SEVERAL)
    return owners


def recoded(codes: Array, rows: Rows, texts: TextTable) -> Array:
    """Return the codes of processes, which are of these rows' texts, as codes into `texts`."""
    distinct, groups = np.unique(codes, return_inverse=True)
    names = rows.texts["process"]
    new = [texts.code(names[code]) if code < len(names) else _UNKNOWN for code in as_list(distinct)]
    return np.array(new, "u4")[groups] if new else codes


def with_before(now: Array, before: Array, texts: TextTable) -> Array:
    """Return who owns flows by what is known now and what was known before; where those are two processes,
    several."""
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
    """Return the socket of each flow. `protocols` are the flows' IP protocols, `own` is the network namespace
    whose interfaces the flows pass.

    A socket of that namespace is the flow's local end. One of another namespace, a container's, is at the
    other end of an interface here, so that its local address is the flow's remote one. An UDP socket without
    a peer owns what comes to its port; there may be several of those (SO_REUSEPORT).
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
        # Of sockets with the same ends one with a process is first.
        among = unsorted[np.lexsort((sockets["process"][unsorted], ends[unsorted]))]
        at = positions(sought, ends[among])
        matches = np.flatnonzero((found.at < 0) & (at >= 0))
        found.at[matches] = among[at[matches]]
        for same, column in ((found.same_name, "process"), (found.same_pid, "pid")):
            same[matches] = agreed(ends[among], sockets[column][among])[at[matches]]
    return found


def _end(rows: Array, which: str) -> _End:
    """The address and port of an end, 0.0.0.0 as ::."""
    addresses = rows[f"{which}_address"].copy()
    addresses[(addresses == _ANY_V4).all(axis=1)] = 0
    return addresses, rows[f"{which}_port"]


def _ends(protocol: Array, near: _End, far: _End) -> Array:
    """A number for each pair of ends, made of protocol, addresses (n, 2) and ports (n,)."""
    ends = protocol.astype(np.uint64)
    for address, port in (near, far):
        for column in (address[:, 0], address[:, 1], port):
            ends = mixed(ends, column.astype(np.uint64))
    return ends
