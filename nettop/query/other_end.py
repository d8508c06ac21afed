# SPDX-License-Identifier: Apache-2.0
"""The two ends of a connection, if both are on this host, or on hosts that are shown together."""

from __future__ import annotations

import numpy as np

from nettop.query.address import LOOPBACK, MAPPED, address_bytes
from nettop.snapshots.arrays import Array, take_rows
from nettop.snapshots.hosts import HOST
from nettop.snapshots.snapshot import known


def other_end(row: Array, rows: Array) -> Array:
    """Return the row at the other end of the connection `row` (shape (1,)); empty if it is on none of the hosts.

    The other end has the same addresses and ports, swapped. Where several have, it is the one in the same network
    namespace: each namespace has its own loopback addresses.
    """
    is_other = rows["protocol"] == row["protocol"]
    for mine, theirs in (("local", "remote"), ("remote", "local")):
        is_other &= rows[f"{mine}_port"] == row[f"{theirs}_port"]
        is_other &= (rows[f"{mine}_address"] == row[f"{theirs}_address"]).all(axis=1)
    is_other &= known(rows["remote_port"]) & (rows["id"] != row["id"])
    is_near = rows["netns"] == row["netns"]
    if HOST.name in (rows.dtype.names or ()):
        is_near &= rows[HOST.name] == row[HOST.name]
        if _is_loopback(row):
            is_other &= rows[HOST.name] == row[HOST.name]
    others = take_rows(rows, np.flatnonzero(is_other))
    near = take_rows(rows, np.flatnonzero(is_other & is_near))
    return near if len(near) or len(others) > 1 else others


def _is_loopback(row: Array) -> bool:
    """Return whether a connection never leaves its host."""
    (raw,) = address_bytes(row["local_address"])
    return raw == LOOPBACK or (raw.startswith(MAPPED) and raw[12] == 127)
