# SPDX-License-Identifier: Apache-2.0
"""Check that the findings lens notices datagrams sent to a closed port."""

from __future__ import annotations

from collections.abc import Sequence

from nettop.process.clocks import monotonic_ns
from nettop.selftest.paths import IP_VERSIONS, TrafficPath, read_until, send_to_closed_port
from nettop.selftest.process import CommandFailed
from nettop.selftest.result import SelfTestResult
from nettop.selftest.rows import rows_of
from nettop.snapshots.findings import FINDINGS, LENS
from nettop.snapshots.source import Source

_DATAGRAMS = 997
_KIND = "closed UDP port"


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
            found = read_until(lambda: _count_findings(source, path.netns), bool)  # noqa: B023
            results.append(SelfTestResult(LENS.id, what, 1, found, "findings"))
    return results


def _count_findings(source: Source, netns: int) -> int:
    """Count the findings of this kind in a namespace."""
    rows = source.read(monotonic_ns()).tables[FINDINGS.name]
    return sum(row["kind"] == _KIND for row in rows_of(rows, rows.array["netns"] == netns))
