# SPDX-License-Identifier: Apache-2.0
"""Whose a port is: the socket there."""

from __future__ import annotations

import numpy as np

from nettop.snapshots.arrays import Index, Mask, agreed, positions
from nettop.snapshots.connections import STATES
from nettop.snapshots.snapshot import Array, known

_SERVING = [number for number, name in STATES.items() if name in ("LISTEN", "UNCONN")]


def find_owners(keys: Array, sockets: Array) -> tuple[Index, Mask, Mask]:
    """Return for each key with a namespace, an IP protocol and a port the position of a socket there among
    `sockets`, or −1, and whether all that may be meant have the same process by name, and by PID.

    Meant are those that hear everybody, listeners or UDP sockets without a peer; where there are none, all
    others. Sockets without a process are left out, and a port of 0 is none.
    """
    sought = _ports(keys["netns"], keys["protocol"], keys["port"])
    ports = _ports(sockets["netns"], sockets["protocol"], sockets["local_port"])
    has_process = known(sockets["process"])
    is_serving = np.isin(sockets["state"], _SERVING)
    owners = np.full(len(keys), -1, np.intp)
    same_name, same_pid = np.ones((2, len(keys)), bool)
    for is_meant in (is_serving, ~is_serving):
        unowned = np.flatnonzero((owners < 0) & (keys["port"] > 0))
        at = np.flatnonzero(is_meant & has_process & np.isin(ports, sought[unowned]))
        at = at[np.argsort(ports[at], kind="stable")]
        first = positions(sought[unowned], ports[at])
        found, first = unowned[first >= 0], first[first >= 0]
        owners[found] = at[first]
        same_name[found] = agreed(ports[at], sockets["process"][at])[first]
        same_pid[found] = agreed(ports[at], sockets["pid"][at])[first]
    return owners, same_name, same_pid


def _ports(netns: Array, protocol: Array, port: Array) -> Array:
    """A number for each port of a protocol in a namespace."""
    number: Array = netns.astype(np.uint64) << np.uint64(32) | protocol.astype(np.uint64) << np.uint64(16)
    return number | port
