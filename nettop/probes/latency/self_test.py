# SPDX-License-Identifier: Apache-2.0
"""Compares what the latency lens sees with datagrams over loopback."""

from __future__ import annotations

import time
from collections.abc import Sequence

from nettop.selftest.datagrams import send_datagrams
from nettop.selftest.paths import IP_VERSIONS, TrafficPath
from nettop.selftest.process import CommandFailed
from nettop.selftest.result import SelfTestResult
from nettop.snapshots.latency import (
    HOOKS,
    LENS,
    PROTOCOL_TABLE,
    PROTOCOLS,
    QDISC,
    SAMPLING,
    STAGES,
    WIRE_IP,
)
from nettop.snapshots.source import Source

_DATAGRAMS = (997, 499)
"""By family; primes."""
_DATAGRAM_BYTES = 101
_UDP = next(number for number, name in PROTOCOLS.items() if name == "udp")
_COMPARED = (QDISC, WIRE_IP)
"""The stages that every datagram passes, on every kernel that measures them."""


def run(source: Source, paths: Sequence[TrafficPath]) -> list[SelfTestResult]:
    """Datagrams over loopback, all of them followed; what others send meanwhile is counted too."""
    path, results = paths[0], []
    source.set(SAMPLING.name, 1)
    for family, (version, count) in enumerate(zip(IP_VERSIONS, _DATAGRAMS, strict=True)):
        what = f"{path.name} {version} UDP, at least"
        before = _matched(source, family)
        try:
            send_datagrams(path, version, count, _DATAGRAM_BYTES)
        except CommandFailed as error:
            results.append(SelfTestResult(LENS.id, what, skipped=error.what))
            continue
        for stage, number in _matched(source, family).items():
            packets = min(number - before.get(stage, 0), count)
            results.append(SelfTestResult(LENS.id, f"{what}, {STAGES[stage]}", count, packets, "packets"))
    return results


def _matched(source: Source, family: int) -> dict[int, int]:
    """The datagrams of UDP and a family that passed each of the compared stages that are measured."""
    snapshot = source.read(time.monotonic_ns())
    rows = snapshot.tables[PROTOCOL_TABLE.name].array
    of_family = rows[(rows["protocol"] == _UDP) & (rows["family"] == family)]
    return {
        stage: int(of_family["matched"][of_family["stage"] == stage].sum())
        for stage in _COMPARED
        if snapshot.why_not(HOOKS[stage].name) is None
    }
