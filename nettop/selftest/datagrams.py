# SPDX-License-Identifier: Apache-2.0
"""Known numbers and sizes of datagrams, sent from one traffic process to another, compared with a lens's counts."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from nettop.selftest.paths import IP_VERSIONS, TrafficPath
from nettop.selftest.process import CommandFailed
from nettop.selftest.result import SelfTestResult

_DATAGRAMS = (997, 499)
"""Datagrams to send by IP version; primes."""
_DATAGRAM_BYTES = 101


def compare_datagrams(
    lens: str, path: TrafficPath, count_seen: Callable[[str], Mapping[str, int]]
) -> list[SelfTestResult]:
    """Send datagrams of each IP version, and check that at least these were seen: other traffic is counted too.

    `count_seen` returns the datagrams of an IP version that were seen so far, by place.
    """
    results = []
    for version, count in zip(IP_VERSIONS, _DATAGRAMS, strict=True):
        what = f"{path.name} {version} UDP"
        before = count_seen(version)
        try:
            _send_datagrams(path, version, count)
        except CommandFailed as error:
            results.append(SelfTestResult(lens, what, skipped=error.what))
            continue
        for place, number in count_seen(version).items():
            packets = min(number - before.get(place, 0), count)
            results.append(SelfTestResult(lens, f"{what} {place}, at least", count, packets, "packets"))
    return results


def _send_datagrams(path: TrafficPath, family: str, count: int) -> None:
    """Send datagrams to a bound socket that nobody reads. Raise CommandFailed if that fails."""
    if path.unavailable:
        raise CommandFailed(path.unavailable)
    port = path.server.run("bind_udp", "datagrams", path.server_address[family])
    path.client.run("bind_udp", "datagrams", path.client_address[family])
    path.client.run(
        "send_datagrams", "datagrams", (path.server_address[family], port), count, _DATAGRAM_BYTES
    )
    for end in (path.client, path.server):
        end.run("close", "datagrams")
