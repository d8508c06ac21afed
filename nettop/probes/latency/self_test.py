# SPDX-License-Identifier: Apache-2.0
"""Check the latency lens against datagrams sent over loopback."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from nettop.process.clocks import monotonic_ns
from nettop.selftest.paths import IP_VERSIONS, TrafficPath, compare_datagrams
from nettop.selftest.result import SelfTestResult
from nettop.snapshots import latency as spec
from nettop.snapshots.source import Source

_UDP = next(number for number, name in spec.PROTOCOLS.items() if name == "udp")
_COMPARED = (spec.QDISC, spec.WIRE_IP)
"""The stages that every datagram passes on every kernel that measures them."""
OPTIONS = {spec.SAMPLING: 1}
"""The lens options that the self-test needs."""


def run(source: Source, paths: Sequence[TrafficPath]) -> list[SelfTestResult]:
    """Send datagrams over loopback and follow all of them."""
    return compare_datagrams(spec.LENS.id, paths[0], partial(_matched, source))


def _matched(source: Source, version: str) -> dict[str, int]:
    """Return the UDP datagrams of an IP version that passed each of the compared stages, if it is measured."""
    snapshot = source.read(monotonic_ns())
    rows = snapshot.tables[spec.PROTOCOL_TABLE.name].array
    of_family = rows[(rows["protocol"] == _UDP) & (rows["family"] == IP_VERSIONS.index(version))]
    return {
        spec.STAGES[stage]: int(of_family["matched"][of_family["stage"] == stage].sum())
        for stage in _COMPARED
        if snapshot.why_not(spec.HOOKS[stage].name) is None
    }
