# SPDX-License-Identifier: Apache-2.0
"""Helpers for benches of `nettop collect`: a running collector, and exporters with addresses of their own."""

import contextlib
import socket
from collections.abc import Hashable, Iterator

from programs import readable_folder

from tests.collecting import Running, until

SUMS = ("flows_1m", "flows_5m", "flows_1h", "talkers_1m")
"""Tables that hold sums of flows_raw."""


@contextlib.contextmanager
def collector(*options: str) -> Iterator[Running]:
    """Run `nettop collect` with a directory of its own."""
    with readable_folder("flows") as folder, Running(folder / "flows", *options) as running:
        yield running


def arrived(running: Running, count: int) -> None:
    """Wait until this many datagrams have arrived since the start."""
    until(lambda: running.state()["datagrams"]["arrived"] == count, f"{count} datagrams have arrived")


def all_stored(running: Running) -> None:
    """Wait until the collector has decoded and stored everything."""

    def is_left() -> int:
        state = running.queried()
        return sum((state["datagrams"]["queued"], state["flows"]["pending"], state["flows"]["waiting"]))

    until(lambda: not is_left(), "all is stored")


class Senders:
    """Sockets bound to addresses of this host that send to some ports; only the most recent ones stay open."""

    def __init__(self, *ports: int, most: int = 500) -> None:
        self._ports, self._most = ports, most
        self._sockets: dict[Hashable, socket.socket] = {}

    def send(self, address: str, content: bytes, key: Hashable = None) -> None:
        """Send a datagram from an address; each address and key has its own socket."""
        at = address, key
        if at not in self._sockets:
            if len(self._sockets) == self._most:
                self._sockets.pop(next(iter(self._sockets))).close()
            self._sockets[at] = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            self._sockets[at].bind((address, 0))
        for port in self._ports:
            self._sockets[at].sendto(content, ("127.0.0.1", port))

    def close(self) -> None:
        """Close all sockets."""
        for opened in self._sockets.values():
            opened.close()
