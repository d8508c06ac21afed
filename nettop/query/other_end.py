# SPDX-License-Identifier: Apache-2.0
"""The two ends of a connection, if both are on this host."""

from __future__ import annotations

import numpy as np

from nettop.snapshots.arrays import Array, take_rows
from nettop.snapshots.snapshot import known


def other_end(row: Array, rows: Array) -> Array:
    """Return the row at the other end of the connection `row` (shape (1,)); empty if it is not on this host.

    The other end has the same addresses and ports, swapped. Where several have, it is the one in the same network
    namespace: each namespace has its own loopback addresses.
    """
    is_other = rows["protocol"] == row["protocol"]
    for mine, theirs in (("local", "remote"), ("remote", "local")):
        is_other &= rows[f"{mine}_port"] == row[f"{theirs}_port"]
        is_other &= (rows[f"{mine}_address"] == row[f"{theirs}_address"]).all(axis=1)
    others = take_rows(
        rows, np.flatnonzero(is_other & known(rows["remote_port"]) & (rows["id"] != row["id"]))
    )
    near = take_rows(others, np.flatnonzero(others["netns"] == row["netns"]))
    return near if len(near) or len(others) > 1 else others
