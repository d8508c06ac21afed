# SPDX-License-Identifier: Apache-2.0
"""What the drops lens says of datagrams that nobody receives."""

from __future__ import annotations

import select
import time
from collections.abc import Sequence

from nettop.selftest.paths import FAMILIES, Place
from nettop.selftest.process import PATIENCE_S, CommandFailed
from nettop.selftest.result import SelfTestResult
from nettop.selftest.rows import rows_of
from nettop.snapshots.snapshot import Snapshot
from nettop.snapshots.source import Source

_REFUSED = (997, 499)
"""Datagrams, by family; primes."""
_DATAGRAM_BYTES = 101
_NO_PORTS = {"IPv4": "UdpNoPorts", "IPv6": "Udp6NoPorts"}
_PAUSE_S = 0.01
"""What a CPU still has in its queue is dropped a moment later."""


def run(source: Source, places: Sequence[Place]) -> list[SelfTestResult]:
    """Datagrams to a port that nobody listens on, where nobody else sends any."""
    results: list[SelfTestResult] = []
    for place in places:
        if not place.is_private:
            continue
        for family, count in zip(FAMILIES, _REFUSED, strict=True):
            what = f"{place.name} {family} UDP to a closed port"
            try:
                _send_in_vain(place, family, count)
            except CommandFailed as error:
                results.append(SelfTestResult("drops", what, why_not=error.what))
                continue
            results += _dropped(source, place, family, count, what)
    return results


def _send_in_vain(place: Place, family: str, count: int) -> None:
    """Send datagrams to a port that is free again. Raises CommandFailed."""
    if place.why_not:
        raise CommandFailed(place.why_not)
    port = place.server.tell("udp", "closed", place.server_at[family])
    place.server.tell("close", "closed")
    place.client.tell("udp", "drops", place.client_at[family])
    place.client.tell("datagrams", "drops", (place.server_at[family], port), count, _DATAGRAM_BYTES)
    place.client.tell("close", "drops")


def _dropped(source: Source, place: Place, family: str, count: int, what: str) -> list[SelfTestResult]:
    """What the program and the namespace's own counter tell of it, as soon as they tell of enough."""
    end = time.monotonic() + PATIENCE_S
    while True:
        snapshot = source.read(time.monotonic_ns())
        packets = _packets(snapshot, place.netns, family)
        counted = _counted(snapshot, place.netns, _NO_PORTS[family])
        if min(counted, count if packets is None else packets) >= count or time.monotonic() > end:
            break
        select.select([], [], [], _PAUSE_S)
    if packets is None:
        hook = snapshot.hook("packets")
        program = SelfTestResult("drops", what, why_not=f"no way here: {hook.why if hook else 'no hook'}")
    else:
        program = SelfTestResult("drops", what, count, packets, "packets")
    return [program, SelfTestResult("drops", f"{what}, by the kernel's counter", count, counted, "packets")]


def _packets(snapshot: Snapshot, netns: int, family: str) -> int | None:
    """Datagrams that the program saw dropped, for want of a socket where it knows why; None without a program."""
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


def _counted(snapshot: Snapshot, netns: int, name: str) -> int:
    """What the namespace's own counter says."""
    rows = snapshot.tables["counters"]
    return sum(row["packets"] for row in rows_of(rows, rows.array["netns"] == netns) if row["name"] == name)
