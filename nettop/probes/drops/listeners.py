# SPDX-License-Identifier: Apache-2.0
"""SYNs that listeners drop: the kernel counts them in their namespace, and frees them as if they had been received."""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Mapping

from nettop.errors import NettopError
from nettop.kernel import sock_diag
from nettop.snapshots.arrays import as_list

COUNTERS = {"TcpExtListenOverflows": "TCP_LISTEN_OVERFLOW", "TcpExtTCPReqQFullDrop": "TCPReqQFullDrop"}
"""What a namespace counts, and the reason that it stands for."""
_LISTEN = 10

Listeners = Mapping[int, tuple[int, int]]
"""The port of each listener, and what it has dropped, by its cookie."""


def read_listeners() -> Listeners:
    """Return the listeners of the calling thread's namespace; none where the kernel does not list them."""
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
    """Adds up what listeners dropped since the first reading, by namespace, counter and port; port 0: nobody knows.

    All that a namespace counts belongs to the one port whose listeners dropped anything meanwhile, if it is one; where
    none did, to the one whose listener has gone.
    """

    def __init__(self) -> None:
        self.counted: Counter[tuple[int, str, int]] = Counter()
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
        """Add a reading of a namespace. `seen` are packets that have a row already, by counter: the last ACK of a
        handshake is dropped in sight. A namespace that is not in the first reading counted nothing before."""
        before = self._listeners.get(netns, listeners if is_first else {})
        self._listeners[netns] = listeners
        grown = {
            port for cookie, (port, drops) in listeners.items() if drops > before.get(cookie, (port, 0))[1]
        }
        gone = {before[cookie][0] for cookie in before.keys() - listeners.keys()}
        ports = grown or gone
        port = ports.pop() if len(ports) == 1 else 0
        for name in COUNTERS.keys() & counters.keys():
            # The packets were read before the counters: what was dropped in between is seen the next time.
            values = {"counted": counters[name], "seen": seen.get(name, 0)}
            counted, dropped_in_sight = (
                self._growth((netns, name, what), value, is_first=is_first) for what, value in values.items()
            )
            self._owed[netns, name] += counted - dropped_in_sight
            if self._owed[netns, name] > 0:
                self.counted[netns, name, port] += self._owed.pop((netns, name))

    def _growth(self, key: tuple[int, str, str], value: int, *, is_first: bool) -> int:
        """Return by how much a counter grew since the last reading.

        One that went back is that of another namespace, which has the number of one that is gone.
        """
        before = self._values.get(key, value if is_first else 0)
        self._values[key] = value
        return value - before if value >= before else value

    def forget(self, netns: int) -> int:
        """Forget a namespace that is gone; return how many SYNs were counted there."""
        self._listeners.pop(netns, None)
        self._values = {key: value for key, value in self._values.items() if key[0] != netns}
        self._owed = Counter({key: owed for key, owed in self._owed.items() if key[0] != netns})
        return sum(self.counted.pop(key) for key in [key for key in self.counted if key[0] == netns])
