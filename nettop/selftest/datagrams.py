# SPDX-License-Identifier: Apache-2.0
"""Datagrams of known number and size, from one traffic process to another."""

from __future__ import annotations

from nettop.selftest.paths import TrafficPath
from nettop.selftest.process import CommandFailed


def send_datagrams(path: TrafficPath, family: str, count: int, size: int) -> None:
    """Send datagrams to a bound socket, which nobody reads. Raises CommandFailed."""
    if path.unavailable:
        raise CommandFailed(path.unavailable)
    port = path.server.run("bind_udp", "datagrams", path.server_address[family])
    path.client.run("bind_udp", "datagrams", path.client_address[family])
    path.client.run("send_datagrams", "datagrams", (path.server_address[family], port), count, size)
    for end in (path.client, path.server):
        end.run("close", "datagrams")
