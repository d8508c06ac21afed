# SPDX-License-Identifier: Apache-2.0
"""Check that the findings lens notices datagrams sent to a closed port."""

from __future__ import annotations

import select
import time
from collections.abc import Sequence

from nettop.process.clocks import monotonic_ns
from nettop.selftest.paths import IP_VERSIONS, TrafficPath, send_to_closed_port
from nettop.selftest.process import TIMEOUT_S, CommandFailed
from nettop.selftest.result import SelfTestResult
from nettop.selftest.rows import rows_of
from nettop.snapshots.findings import FINDINGS, LENS
from nettop.snapshots.source import Source

_DATAGRAMS = 997
_KIND = "closed UDP port"
_PAUSE_S = 0.01
"""Datagrams in a CPU's queue are dropped a moment later."""


def run(source: Source, paths: Sequence[TrafficPath]) -> list[SelfTestResult]:
    """Send datagrams to a closed port, in namespaces without other traffic, and look for the finding."""
    results = []
    for path in paths:
        if not path.is_private:
            continue
        what = f"{path.name} {_KIND}"
        try:
            source.read(monotonic_ns())
            send_to_closed_port(path, IP_VERSIONS[0], _DATAGRAMS)
        except CommandFailed as error:
            results.append(SelfTestResult(LENS.id, what, skipped=error.what))
        else:
            results.append(
                SelfTestResult(LENS.id, what, 1, _wait_for_finding(source, path.netns), "findings")
            )
    return results


def _wait_for_finding(source: Source, netns: int) -> int:
    """Count the findings of this kind in a namespace, as soon as there is one."""
    end = time.monotonic() + TIMEOUT_S
    while True:
        rows = source.read(monotonic_ns()).tables[FINDINGS.name]
        found: int = sum(row["kind"] == _KIND for row in rows_of(rows, rows.array["netns"] == netns))
        if found or time.monotonic() > end:
            return found
        select.select([], [], [], _PAUSE_S)
