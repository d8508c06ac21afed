# SPDX-License-Identifier: Apache-2.0
"""Detection of a table's troubles in a view, by the number of rows that match their filters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nettop.query.filter import Filter, parse_filter
from nettop.query.view import View
from nettop.snapshots.schema import Table, Trouble
from nettop.snapshots.snapshot import Frame

_INTERVAL_TOLERANCE = 0.9
"""Two readings may be slightly closer than the interval."""


@dataclass(frozen=True, slots=True)
class FoundTrouble:
    """A trouble that was found: its number of rows, and their growth per second (None if irrelevant)."""

    trouble: Trouble
    rows: int
    growth_per_s: float | None = None


def trouble_filters(table: Table) -> list[tuple[Trouble, Filter]]:
    """Return a table's troubles, the worst first, with their parsed filters."""
    return [(trouble, parse_filter(table, trouble.filter)) for trouble in table.troubles]


def present_troubles(view: View, filters: Sequence[tuple[Trouble, Filter]]) -> list[FoundTrouble]:
    """Return the troubles with enough rows, whichever rows the query shows."""
    present = []
    for trouble, rows_in_trouble in filters:
        if view.elapsed_s is not None and view.elapsed_s < trouble.min_interval_s * _INTERVAL_TOLERANCE:
            continue
        rows, growth_per_s = _count(view, rows_in_trouble), None
        least = trouble.min_rows
        if trouble.min_growing_rows is not None and rows >= trouble.min_growing_rows:
            growth_per_s = _growth_per_s(view, rows_in_trouble, rows)
            least = trouble.min_growing_rows if growth_per_s and growth_per_s > 0 else least
        if rows >= least:
            present.append(FoundTrouble(trouble, rows, growth_per_s))
    return present


def threshold(trouble: Trouble) -> str:
    """Describe the threshold from which a trouble is shown."""
    rows = f"from {trouble.min_rows:,} {'row' if trouble.min_rows == 1 else 'rows'} on"
    growing = "" if trouble.min_growing_rows is None else f", or {trouble.min_growing_rows:,} and growing"
    interval = (
        "" if not trouble.min_interval_s else f", if the interval is {trouble.min_interval_s:g} s or more"
    )
    return rows + growing + interval


def _count(view: View, rows: Filter) -> int:
    return int(np.count_nonzero(rows.mask(view) & ~view.gone))


def _growth_per_s(view: View, rows: Filter, count: int) -> float | None:
    """Return how many more rows match than in the previous snapshot, per second; None without one."""
    if view.frame.before is None or view.elapsed_s is None:
        return None
    before = View(Frame(view.frame.before), view.query)
    return (count - _count(before, rows)) / view.elapsed_s
