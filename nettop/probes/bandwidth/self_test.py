# SPDX-License-Identifier: Apache-2.0
"""Compares what the bandwidth lens counts with datagrams over loopback."""

from __future__ import annotations

import time
from collections.abc import Sequence

from nettop.selftest.datagrams import send_datagrams
from nettop.selftest.paths import IP_VERSIONS, TrafficPath
from nettop.selftest.process import CommandFailed
from nettop.selftest.result import SelfTestResult
from nettop.selftest.rows import rows_of
from nettop.snapshots.bandwidth import LOOPBACK, PROTOCOLS
from nettop.snapshots.source import Source

_DATAGRAMS = (997, 499)
"""By family; primes."""
_DATAGRAM_BYTES = 101
_UDP = PROTOCOLS.index("udp")


def run(source: Source, paths: Sequence[TrafficPath]) -> list[SelfTestResult]:
    """Datagrams over loopback, both directions of which are counted; what others send meanwhile is counted too."""
    source.set(LOOPBACK.name, "on")
    path, results = paths[0], []
    for family, count in zip(IP_VERSIONS, _DATAGRAMS, strict=True):
        what = f"{path.name} {family} UDP, at least"
        before = _counted(source)
        try:
            send_datagrams(path, family, count, _DATAGRAM_BYTES)
        except CommandFailed as error:
            results.append(SelfTestResult("bandwidth", what, skipped=error.what))
            continue
        for direction, number in _counted(source).items():
            packets = min(number - before[direction], count)
            results.append(SelfTestResult("bandwidth", f"{what}, {direction}", count, packets, "packets"))
    return results


def _counted(source: Source) -> dict[str, int]:
    """Packets of UDP on the loopback interface, or of all protocols where there are only the interface's counters."""
    snapshot = source.read(time.monotonic_ns())
    has_protocols = snapshot.why_not("received") is None
    rows = snapshot.tables["protocols" if has_protocols else "interfaces"]
    counted = dict.fromkeys(("received", "sent"), 0)
    for row in rows_of(rows, rows.array["packets_received"] >= 0):
        if row["interface"] == "lo" and row.get("protocol", _UDP) == _UDP:
            counted = {name: counted[name] + row[f"packets_{name}"] for name in counted}
    return counted
