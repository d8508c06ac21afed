# SPDX-License-Identifier: Apache-2.0
"""Map ports to the sockets that own them."""

from __future__ import annotations

import numpy as np

from nettop.snapshots.arrays import Array, Index, Mask, is_uniform, positions
from nettop.snapshots.connections import STATES
from nettop.snapshots.snapshot import known

_SERVING = [number for number, name in STATES.items() if name in ("LISTEN", "UNCONN")]


def find_owners(keys: Array, sockets: Array) -> tuple[Index, Mask, Mask]:
    """Return for each key (namespace, IP protocol and port) the position of a socket in `sockets` (−1: none), and
    whether all candidates belong to the same process, by name and by PID.

    Candidates are listeners and UDP sockets without a peer; if there are none, all other sockets. Sockets without a
    process are ignored, and port 0 has no owner.
    """
    sought = _ports(keys["netns"], keys["protocol"], keys["port"])
    ports = _ports(sockets["netns"], sockets["protocol"], sockets["local_port"])
    has_process = known(sockets["process"])
    is_serving = np.isin(sockets["state"], _SERVING)
    owners = np.full(len(keys), -1, np.intp)
    same_name, same_pid = np.ones((2, len(keys)), bool)
    for is_candidate in (is_serving, ~is_serving):
        unowned = np.flatnonzero((owners < 0) & (keys["port"] > 0))
        at = np.flatnonzero(is_candidate & has_process & np.isin(ports, sought[unowned]))
        at = at[np.argsort(ports[at], kind="stable")]
        first = positions(sought[unowned], ports[at])
        found, first = unowned[first >= 0], first[first >= 0]
        owners[found] = at[first]
        same_name[found] = is_uniform(ports[at], sockets["process"][at])[first]
        same_pid[found] = is_uniform(ports[at], sockets["pid"][at])[first]
    return owners, same_name, same_pid


def _ports(netns: Array, protocol: Array, port: Array) -> Array:
    """Encode namespace, protocol and port as one number."""
    number: Array = netns.astype(np.uint64) << np.uint64(32) | protocol.astype(np.uint64) << np.uint64(16)
    return number | port
