# SPDX-License-Identifier: Apache-2.0
"""Which of the troubles that a table declares there are in a view: as many rows as pass their filters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nettop.query.filter import Filter, parse_filter
from nettop.query.view import View
from nettop.snapshots.schema import Table, Trouble
from nettop.snapshots.snapshot import Frame

_ON_TIME = 0.9
"""Two readings may be a little closer to each other than the interval."""


@dataclass(frozen=True, slots=True)
class Present:
    """A trouble that there is: how many rows, and how many more each second; None where that does not matter."""

    trouble: Trouble
    rows: int
    growth_per_s: float | None = None


def trouble_filters(table: Table) -> list[tuple[Trouble, Filter]]:
    """The troubles of a table, the worst first, and their filters, to be parsed once."""
    return [(trouble, parse_filter(table, trouble.filter)) for trouble in table.troubles]


def present_troubles(view: View, filters: Sequence[tuple[Trouble, Filter]]) -> list[Present]:
    """The troubles of which there are enough rows, whatever rows the query shows."""
    present = []
    for trouble, rows_in_trouble in filters:
        if view.elapsed_s is not None and view.elapsed_s < trouble.least_s * _ON_TIME:
            continue
        rows, growth_per_s = _count(view, rows_in_trouble), None
        least = trouble.least
        if trouble.least_growing is not None and rows >= trouble.least_growing:
            growth_per_s = _growth_per_s(view, rows_in_trouble, rows)
            least = trouble.least_growing if growth_per_s and growth_per_s > 0 else least
        if rows >= least:
            present.append(Present(trouble, rows, growth_per_s))
    return present


def threshold(trouble: Trouble) -> str:
    """From when on a trouble is shown, in words."""
    rows = f"from {trouble.least:,} {'row' if trouble.least == 1 else 'rows'} on"
    growing = "" if trouble.least_growing is None else f", or {trouble.least_growing:,} and growing"
    interval = "" if not trouble.least_s else f", where the interval is {trouble.least_s:g} s or more"
    return rows + growing + interval


def _count(view: View, rows: Filter) -> int:
    return int(np.count_nonzero(rows.mask(view) & ~view.gone))


def _growth_per_s(view: View, rows: Filter, count: int) -> float | None:
    """How many more rows pass than in the snapshot before, per second; None without that snapshot."""
    if view.frame.before is None or view.elapsed_s is None:
        return None
    before = View(Frame(view.frame.before), view.query)
    return (count - _count(before, rows)) / view.elapsed_s
