# SPDX-License-Identifier: Apache-2.0
"""Ports of dropped packets: the sockets that own them, and SYNs that their listeners drop.

The kernel counts such SYNs by namespace, but frees them as if they had been received.
"""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Mapping

import numpy as np

from nettop.errors import NettopError
from nettop.kernel.net import sock_diag
from nettop.snapshots.arrays import Array, Index, Mask, as_list, is_uniform, positions
from nettop.snapshots.connections import STATES
from nettop.snapshots.snapshot import known

COUNTERS = {"TcpExtListenOverflows": "TCP_LISTEN_OVERFLOW", "TcpExtTCPReqQFullDrop": "TCPReqQFullDrop"}
"""Counters of a namespace, and the drop reason of each."""
_LISTEN = 10
_SERVING = [number for number, name in STATES.items() if name in ("LISTEN", "UNCONN")]

Listeners = Mapping[int, tuple[int, int]]
"""The port and the drops of each listener, by cookie."""


def read_listeners() -> Listeners:
    """Return the listeners of the calling thread's namespace; none if the kernel does not list them."""
    try:
        dumped = sock_diag.dump(socket.IPPROTO_TCP, 1 << _LISTEN, info=False)
    except NettopError:
        return {}
    return {
        cookie: (port, drops)
        for sockets in dumped.sockets
        if "drops" in (sockets.dtype.names or ())
        for cookie, port, drops in zip(
            *(as_list(sockets[name]) for name in ("cookie", "local_port", "drops")), strict=True
        )
    }


class UnseenSyns:
    """SYNs that listeners dropped since the first reading, by namespace, counter and port (0: unknown).

    The growth of a namespace's counter is attributed to the port whose listeners dropped packets meanwhile, if there is
    exactly one; if there is none, to the port whose listener was closed.
    """

    def __init__(self) -> None:
        self.counts: Counter[tuple[int, str, int]] = Counter()
        self._values: dict[tuple[int, str, str], int] = {}
        self._listeners: dict[int, Listeners] = {}
        self._owed: Counter[tuple[int, str]] = Counter()

    def add(
        self,
        netns: int,
        counters: Mapping[str, int],
        listeners: Listeners,
        seen: Mapping[str, int],
        *,
        is_first: bool,
    ) -> None:
        """Add a reading of a namespace. `seen` are packets that the tracepoint reported, by counter: the last ACK of a
        handshake passes it. A namespace that is not in the first reading started from zero."""
        before = self._listeners.get(netns, listeners if is_first else {})
        self._listeners[netns] = listeners
        grown = {
            port for cookie, (port, drops) in listeners.items() if drops > before.get(cookie, (port, 0))[1]
        }
        gone = {before[cookie][0] for cookie in before.keys() - listeners.keys()}
        ports = grown or gone
        port = ports.pop() if len(ports) == 1 else 0
        for name in COUNTERS.keys() & counters.keys():
            # The packets were read before the counters; drops in between are seen in the next reading.
            counted = self._growth((netns, name, "counted"), counters[name], is_first=is_first)
            in_sight = self._growth((netns, name, "seen"), seen.get(name, 0), is_first=is_first)
            self._owed[netns, name] += counted - in_sight
            if self._owed[netns, name] > 0:
                self.counts[netns, name, port] += self._owed.pop((netns, name))

    def _growth(self, key: tuple[int, str, str], value: int, *, is_first: bool) -> int:
        """Return the growth of a counter since the last reading.

        A counter that decreased belongs to a new namespace, which reuses the inode number of a removed one.
        """
        before = self._values.get(key, value if is_first else 0)
        self._values[key] = value
        return value - before if value >= before else value

    def forget(self, netns: int) -> int:
        """Forget a removed namespace; return the number of SYNs counted there."""
        self._listeners.pop(netns, None)
        self._values = {key: value for key, value in self._values.items() if key[0] != netns}
        self._owed = Counter({key: owed for key, owed in self._owed.items() if key[0] != netns})
        return sum(self.counts.pop(key) for key in [key for key in self.counts if key[0] == netns])


def find_owners(keys: Array, sockets: Array) -> tuple[Index, Mask, Mask]:
    """Return for each key (namespace, IP protocol and port) the position of a socket in `sockets` (−1: none), and
    whether all candidates belong to the same process, by name and by PID. Only keys with `has_owner` are looked up.

    Candidates are listeners and UDP sockets without a peer; if there are none, all other sockets. Sockets without a
    process are ignored.
    """
    sought = _ports(keys["netns"], keys["protocol"], keys["port"])
    ports = _ports(sockets["netns"], sockets["protocol"], sockets["local_port"])
    has_process = known(sockets["process"])
    is_serving = np.isin(sockets["state"], _SERVING)
    owners = np.full(len(keys), -1, np.intp)
    same_name, same_pid = np.ones((2, len(keys)), bool)
    for is_candidate in (is_serving, ~is_serving):
        unowned = np.flatnonzero((owners < 0) & (keys["has_owner"] == 1))
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
