# SPDX-License-Identifier: Apache-2.0
"""Check the bandwidth lens against datagrams sent over loopback."""

from __future__ import annotations

from collections.abc import Sequence

from nettop.process.clocks import monotonic_ns
from nettop.selftest.paths import TrafficPath, compare_datagrams
from nettop.selftest.result import SelfTestResult
from nettop.selftest.rows import rows_of
from nettop.snapshots.bandwidth import LOOPBACK, PROTOCOLS
from nettop.snapshots.source import Source

_UDP = PROTOCOLS.index("udp")
OPTIONS = {LOOPBACK: "on"}
"""The lens options that the self-test needs."""


def run(source: Source, paths: Sequence[TrafficPath]) -> list[SelfTestResult]:
    """Send datagrams over loopback, where both directions are counted."""
    return compare_datagrams("bandwidth", paths[0], lambda _: _counted(source))


def _counted(source: Source) -> dict[str, int]:
    """Return the UDP packets on loopback, or those of all protocols if only the interface's own counters are read."""
    snapshot = source.read(monotonic_ns())
    has_protocols = snapshot.why_not("received") is None
    rows = snapshot.tables["protocols" if has_protocols else "interfaces"]
    counted = dict.fromkeys(("received", "sent"), 0)
    for row in rows_of(rows, rows.array["packets_received"] >= 0):
        if row["interface"] == "lo" and row.get("protocol", _UDP) == _UDP:
            counted = {name: counted[name] + row[f"packets_{name}"] for name in counted}
    return counted
