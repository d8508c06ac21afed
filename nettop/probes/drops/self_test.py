# SPDX-License-Identifier: Apache-2.0
"""Check the drops lens against datagrams sent to a closed port."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from nettop.process.clocks import monotonic_ns
from nettop.selftest.paths import IP_VERSIONS, TrafficPath, read_until, send_to_closed_port
from nettop.selftest.process import CommandFailed
from nettop.selftest.result import SelfTestResult
from nettop.selftest.rows import rows_of
from nettop.snapshots.snapshot import Snapshot
from nettop.snapshots.source import Source

_DATAGRAMS = (997, 499)
"""Datagrams to send by IP version; primes."""
_NO_PORTS = {"IPv4": "UdpNoPorts", "IPv6": "Udp6NoPorts"}


def run(source: Source, paths: Sequence[TrafficPath]) -> list[SelfTestResult]:
    """Send datagrams to a closed port, in namespaces without other traffic."""
    results: list[SelfTestResult] = []
    for path in paths:
        if not path.is_private:
            continue
        for family, count in zip(IP_VERSIONS, _DATAGRAMS, strict=True):
            what = f"{path.name} {family} UDP to a closed port"
            try:
                send_to_closed_port(path, family, count)
            except CommandFailed as error:
                results.append(SelfTestResult("drops", what, skipped=error.what))
            else:
                results += _compare(source, path, family, count, what)
    return results


def _compare(source: Source, path: TrafficPath, family: str, count: int, what: str) -> list[SelfTestResult]:
    """Compare the counts of the program and of the namespace, as soon as both are high enough."""

    def read() -> tuple[Snapshot, int | None, int]:
        snapshot = source.read(monotonic_ns())
        counters = snapshot.tables["counters"]
        counted = sum(
            row["packets"]
            for row in rows_of(counters, counters.array["netns"] == path.netns)
            if row["name"] == _NO_PORTS[family]
        )
        return snapshot, _program_count(snapshot, path.netns, family), counted

    snapshot, packets, counted = read_until(
        read, lambda said: min(said[2], count if said[1] is None else said[1]) >= count
    )
    by_program = (
        SelfTestResult("drops", what, skipped=f"not available: {snapshot.why_not('packets') or 'no hook'}")
        if packets is None
        else SelfTestResult("drops", what, count, packets, "packets")
    )
    by_counter = SelfTestResult("drops", f"{what}, by the kernel's counter", count, counted, "packets")
    if path.netns not in snapshot.tables["counters"].array["netns"]:
        why = next((why for why in snapshot.gaps.values() if why.startswith("not entered")), "not read")
        by_counter = replace(by_counter, skipped=f"its network namespace was {why}")
    return [by_program, by_counter]


def _program_count(snapshot: Snapshot, netns: int, family: str) -> int | None:
    """Return the datagrams that the program saw dropped, with reason NO_SOCKET if reasons are known; None without a
    program."""
    hook, reasons = snapshot.hook("packets"), snapshot.hook("reasons")
    if hook is None or hook.mechanism is None:
        return None
    has_reasons = reasons is None or reasons.mechanism is not None
    rows = snapshot.tables["packets"]
    packets: int = sum(
        row["packets"]
        for row in rows_of(rows, rows.array["netns"] == netns)
        if (row["protocol"], row["family"]) == ("udp", family)
        and (row["reason"] == "NO_SOCKET" or not has_reasons)
    )
    return packets
