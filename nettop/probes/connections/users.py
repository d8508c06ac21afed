# SPDX-License-Identifier: Apache-2.0
"""Who uses the sockets that several processes hold: the hooks at messages look those up, and note who calls."""

from __future__ import annotations

import sys
from collections.abc import Mapping

import numpy as np

from nettop.kernel import bpf, maps
from nettop.probes.connections.socket_rows import NO_USERS, NOT_OPEN, TCP, USER
from nettop.snapshots.arrays import positions, take
from nettop.snapshots.snapshot import Array, known

SHARED_MAX = 1 << 14
"""Sockets that are watched at once; of the others the owner is who opened them."""
SHARED_SOCKET = np.dtype([("owner", "u4"), ("user", "u4"), ("owner_used", "u4")])
"""Of a shared socket: the PID of its owner, which nettop sets, the last other one that sent or received on it (0:
none), and whether the owner did."""
WATCHED = 2
"""Where the number of sockets that are watched is, in the map `owned_until`: without any, nothing is looked up."""
_COOKIE = np.dtype("u8")


class SocketUsers:
    """The users of shared sockets, from one reading to the next: an owner that uses a socket keeps it."""

    def __init__(self, program_maps: Mapping[str, int]) -> None:
        self._maps = program_maps
        self._ids: Array = NO_USERS["id"]

    def read(self) -> Array:
        """Return who has used the sockets since they were watched (USER), sorted by id."""
        if not len(self._ids):
            return NO_USERS
        ids, sockets = maps.read_all(self._maps["shared_sockets"], _COOKIE, SHARED_SOCKET)
        order = np.argsort(ids)
        ids, sockets = ids[order], take(sockets, order)
        used = np.flatnonzero((sockets["owner_used"] != 0) | (sockets["user"] != 0))
        users = np.zeros(len(used), USER)
        users["id"] = ids[used]
        users["pid"] = np.where(sockets["owner_used"][used], sockets["owner"][used], sockets["user"][used])
        return users

    def watch(self, held_by_several: Array, rows: Array) -> None:
        """Watch the sockets that several processes hold now, by the rows of each; `rows` are those of the owners."""
        several = held_by_several[np.argsort(held_by_several["id"], kind="stable")]
        of_others = several["pid"][1:] != several["pid"][:-1]
        ids = np.unique(several["id"][1:][of_others & (several["id"][1:] == several["id"][:-1])])[:SHARED_MAX]
        at = positions(ids, rows["id"])
        owned = take(rows, at[at >= 0])
        is_used = ~((owned["protocol"] == TCP) & np.isin(owned["state"], NOT_OPEN)) & known(owned["pid"])
        owned = take(owned, np.flatnonzero(is_used))
        table = self._maps["shared_sockets"]
        maps.delete_all(table, self._ids[positions(self._ids, owned["id"]) < 0])
        for cookie, pid in zip(owned["id"].tolist(), owned["pid"].tolist(), strict=True):
            value = np.array([(pid, 0, 0)], SHARED_SOCKET).tobytes()
            bpf.set_element(table, cookie.to_bytes(_COOKIE.itemsize, sys.byteorder), value)
        if len(owned) or len(self._ids):
            count = len(owned).to_bytes(8, sys.byteorder)
            bpf.set_element(self._maps["owned_until"], WATCHED.to_bytes(4, sys.byteorder), count)
        self._ids = np.ascontiguousarray(owned["id"])
