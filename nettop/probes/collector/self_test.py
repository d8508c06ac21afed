# SPDX-License-Identifier: Apache-2.0
"""Check that a running collector accounts for everything it received; the test sends no flows."""

from __future__ import annotations

from collections.abc import Sequence

from nettop.process.clocks import monotonic_ns
from nettop.selftest.paths import TrafficPath
from nettop.selftest.result import SelfTestResult
from nettop.selftest.rows import rows_of
from nettop.snapshots.collector import LEDGER, LENS
from nettop.snapshots.source import Source

_TOTALS = {"datagrams": "arrived", "sets without template": "held", "flows": "received"}
"""The parts of the ledger, and the term of each that is the sum of the others."""


def run(source: Source, _: Sequence[TrafficPath]) -> list[SelfTestResult]:
    """Check that each part of the ledger adds up."""
    snapshot = source.read(monotonic_ns())
    lacking = snapshot.missing_hook(LEDGER)
    if lacking is not None:
        return [SelfTestResult(LENS.id, "ledger", skipped=f"not available: {lacking.advice}")]
    ledger = snapshot.tables[LEDGER.name]
    rows = rows_of(ledger, ledger.array["id"] >= 0)
    results = []
    for part, total in _TOTALS.items():
        counts = {row["term"]: row["items"] for row in rows if row["of"] == part}
        expected = counts.pop(total)
        what = f"{part} {total}: {' + '.join(counts)}"
        results.append(SelfTestResult(LENS.id, what, expected, sum(counts.values()), part))
    return results
