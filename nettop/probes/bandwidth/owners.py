# SPDX-License-Identifier: Apache-2.0
"""Whose a flow is: the socket with its addresses and ports."""

from __future__ import annotations

import numpy as np

from nettop.kernel.set_table import mixed
from nettop.snapshots.arrays import Index, positions
from nettop.snapshots.snapshot import Array, known

_UDP = 17
_End = tuple[Array, Array]
_NO_ADDRESS = np.zeros((1, 2), ">u8")
_NOBODY: _End = (_NO_ADDRESS, np.zeros(1, "u2"))
_ANY_V4 = np.array([0, 0xFFFF_0000_0000], ">u8")
"""0.0.0.0, as ::ffff:0.0.0.0."""


def find_owners(flows: Array, protocols: Array, sockets: Array, own: int) -> Index:
    """For each flow the position of its socket among `sockets`, or −1. `protocols` are the flows' IP protocols, `own`
    is the network namespace whose interfaces the flows pass.

    A socket of that namespace is the flow's local end. One of another namespace, a container's, is at the other end of
    an interface here, so that its local address is the flow's remote one. An UDP socket without a peer owns what comes
    to its port.
    """
    is_own = sockets["netns"] == own
    has_peer = known(sockets["remote_port"])
    waits = np.flatnonzero(is_own & ~has_peer & (sockets["protocol"] == _UDP))
    all_ends = _ends(sockets["protocol"], _end(sockets, "local"), _end(sockets, "remote"))
    waiting_ends = _ends(sockets["protocol"], _end(sockets, "local"), _NOBODY)
    local, remote = _end(flows, "local"), _end(flows, "remote")
    owners = np.full(len(flows), -1, np.intp)
    for sought, ends, unsorted in (
        (_ends(protocols, local, remote), all_ends, np.flatnonzero(is_own & has_peer)),
        (_ends(protocols, remote, local), all_ends, np.flatnonzero(~is_own & has_peer)),
        (_ends(protocols, local, _NOBODY), waiting_ends, waits),
        (_ends(protocols, (_NO_ADDRESS, local[1]), _NOBODY), waiting_ends, waits),
    ):
        among = unsorted[np.argsort(ends[unsorted], kind="stable")]
        at = positions(sought, ends[among])
        matches = np.flatnonzero((owners < 0) & (at >= 0))
        owners[matches] = among[at[matches]]
    return owners


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
