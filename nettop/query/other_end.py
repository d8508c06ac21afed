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
    namespace, or else on the same host: each namespace has its own loopback addresses, and private addresses of
    containers are often the same on each host.
    """
    rows = _with_ports_of(row, rows)
    is_other = (rows["protocol"] == row["protocol"]) & (rows["id"] != row["id"])
    for mine, theirs in (("local", "remote"), ("remote", "local")):
        is_other &= (rows[f"{mine}_address"] == row[f"{theirs}_address"]).all(axis=1)
    has_host = HOST.name in (rows.dtype.names or ())
    is_here = rows[HOST.name] == row[HOST.name] if has_host else np.ones(len(rows), bool)
    is_near = is_here & (rows["netns"] == row["netns"])
    if _is_loopback(row):
        is_other &= is_near
    near, here, others = (
        take_rows(rows, np.flatnonzero(is_other & mask)) for mask in (is_near, is_here, is_other)
    )
    if len(near):
        return near
    return next((found for found in (here, others) if len(found) == 1), near)


def _with_ports_of(row: Array, rows: Array) -> Array:
    """Return the few rows with the same ports, swapped: columns of a million rows take long to compare."""
    at = np.flatnonzero(rows["remote_port"] == row["local_port"])
    at = at[rows["local_port"][at] == row["remote_port"]]
    return take_rows(rows, at[known(rows["remote_port"][at])])


def _is_loopback(row: Array) -> bool:
    """Return whether a connection never leaves its network namespace."""
    (raw,) = address_bytes(row["local_address"])
    return raw == LOOPBACK or (raw.startswith(MAPPED) and raw[12] == 127)
