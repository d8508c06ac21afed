# SPDX-License-Identifier: Apache-2.0
"""Users of sockets that several processes hold: the hooks at messages look these sockets up and record the caller."""

from __future__ import annotations

import sys
from collections.abc import Mapping

import numpy as np

from nettop.kernel import bpf_syscall as bpf
from nettop.kernel.bpf import maps
from nettop.probes.connections.socket_rows import NO_USERS, TCP, UNCONNECTED_STATES, USER
from nettop.snapshots.arrays import Array, positions, take_rows
from nettop.snapshots.snapshot import known

SHARED_MAX = 1 << 14
"""Maximum sockets watched at once; the owner of any other is the process that opened it."""
SHARED_SOCKET = np.dtype([("owner", "u4"), ("user", "u4"), ("owner_used", "u4")])
"""A shared socket: PID of its owner, set by nettop; PID of the last other process that sent or received on it (0:
none); whether the owner did."""
WATCHED = 2
"""Index in the map `owned_until` of the number of watched sockets: at 0, nothing is looked up."""
_COOKIE = np.dtype("u8")


class SocketUsers:
    """Users of shared sockets from one reading to the next: an owner that uses a socket keeps it."""

    def __init__(self, program_maps: Mapping[str, int]) -> None:
        self._maps = program_maps
        self._ids: Array = NO_USERS["id"]

    def read(self) -> Array:
        """Return the processes that used the sockets since they were watched (USER), sorted by id."""
        if not len(self._ids):
            return NO_USERS
        ids, sockets = maps.read_all(self._maps["shared_sockets"], _COOKIE, SHARED_SOCKET)
        order = np.argsort(ids)
        ids, sockets = ids[order], take_rows(sockets, order)
        used = np.flatnonzero((sockets["owner_used"] != 0) | (sockets["user"] != 0))
        users = np.zeros(len(used), USER)
        users["id"] = ids[used]
        users["pid"] = np.where(sockets["owner_used"][used], sockets["owner"][used], sockets["user"][used])
        return users

    def watch(self, held_by_several: Array, rows: Array) -> None:
        """Watch the sockets that several processes hold now, given all their rows; `rows` are those of the owners."""
        several = held_by_several[np.argsort(held_by_several["id"], kind="stable")]
        of_others = several["pid"][1:] != several["pid"][:-1]
        ids = np.unique(several["id"][1:][of_others & (several["id"][1:] == several["id"][:-1])])[:SHARED_MAX]
        at = positions(ids, rows["id"])
        owned = take_rows(rows, at[at >= 0])
        is_used = ~((owned["protocol"] == TCP) & np.isin(owned["state"], UNCONNECTED_STATES)) & known(
            owned["pid"]
        )
        owned = take_rows(owned, is_used)
        table = self._maps["shared_sockets"]
        maps.delete_all(table, self._ids[positions(self._ids, owned["id"]) < 0])
        for cookie, pid in zip(owned["id"].tolist(), owned["pid"].tolist(), strict=True):
            value = np.array([(pid, 0, 0)], SHARED_SOCKET).tobytes()
            bpf.set_element(table, cookie.to_bytes(_COOKIE.itemsize, sys.byteorder), value)
        if len(owned) or len(self._ids):
            count = len(owned).to_bytes(8, sys.byteorder)
            bpf.set_element(self._maps["owned_until"], WATCHED.to_bytes(4, sys.byteorder), count)
        self._ids = np.ascontiguousarray(owned["id"])
