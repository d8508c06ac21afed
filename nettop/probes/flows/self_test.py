# SPDX-License-Identifier: Apache-2.0
"""Compares what a running collector received with what it says became of it; no flows are sent to it for a test."""

from __future__ import annotations

import time
from collections.abc import Sequence

from nettop.selftest.paths import TrafficPath
from nettop.selftest.result import SelfTestResult
from nettop.selftest.rows import rows_of
from nettop.snapshots.flows import LEDGER, LENS
from nettop.snapshots.source import Source

_ALL = {"datagrams": "arrived", "sets without template": "held", "flows": "received"}
"""The parts of the ledger, and in each the term that is the sum of the others."""


def run(source: Source, _: Sequence[TrafficPath]) -> list[SelfTestResult]:
    """Each part of the ledger adds up."""
    snapshot = source.read(time.monotonic_ns())
    lacking = snapshot.lacking(LEDGER)
    if lacking is not None:
        return [SelfTestResult(LENS.id, "what was received", skipped=f"not available: {lacking.advice}")]
    ledger = snapshot.tables[LEDGER.name]
    rows = rows_of(ledger, ledger.array["id"] >= 0)
    results = []
    for part, whole in _ALL.items():
        counts = {row["term"]: row["items"] for row in rows if row["of"] == part}
        expected = counts.pop(whole)
        what = f"{part} {whole}: {' + '.join(counts)}"
        results.append(SelfTestResult(LENS.id, what, expected, sum(counts.values()), part))
    return results
