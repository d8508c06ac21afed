# SPDX-License-Identifier: Apache-2.0
"""Whose a port is: the socket there."""

from __future__ import annotations

import numpy as np

from nettop.snapshots.arrays import Index, positions
from nettop.snapshots.connections import STATES
from nettop.snapshots.snapshot import Array, known

_SERVING = [number for number, name in STATES.items() if name in ("LISTEN", "UNCONN")]


def find_owners(keys: Array, sockets: Array) -> Index:
    """For each key with a namespace, an IP protocol and a port the position of a socket there among `sockets`, or −1.

    Of several it is one that hears everybody, a listener or an UDP socket without a peer; of these the one whose
    process has the lowest PID; of these the first. Sockets without a process are left out, and a port of 0 is none.
    """
    sought = _ports(keys["netns"], keys["protocol"], keys["port"])
    ports = _ports(sockets["netns"], sockets["protocol"], sockets["local_port"])
    has_process = known(sockets["process"])
    is_serving = np.isin(sockets["state"], _SERVING)
    owners = np.full(len(keys), -1, np.intp)
    for is_meant in (is_serving, ~is_serving):
        unowned = np.flatnonzero((owners < 0) & (keys["port"] > 0))
        at = np.flatnonzero(is_meant & has_process & np.isin(ports, sought[unowned]))
        at = at[np.lexsort((sockets["pid"][at], ports[at]))]
        first = positions(sought[unowned], ports[at])
        owners[unowned[first >= 0]] = at[first[first >= 0]]
    return owners


def _ports(netns: Array, protocol: Array, port: Array) -> Array:
    """A number for each port of a protocol in a namespace."""
    number: Array = netns.astype(np.uint64) << np.uint64(32) | protocol.astype(np.uint64) << np.uint64(16)
    return number | port
