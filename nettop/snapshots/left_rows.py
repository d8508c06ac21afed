# SPDX-License-Identifier: Apache-2.0
"""Totals of rows that left a table, so that their counts are not lost."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from nettop.snapshots.arrays import Array
from nettop.snapshots.schema import Kind, Table
from nettop.snapshots.snapshot import LISTED_READINGS, Ended, Rows, known_histograms, sum_of, unknown_value

ENDED = "(ended)"
"""The name of the row that sums up evicted rows."""


class LeftRows:
    """The sum of rows that left a table, as one row whose `column` is `text`. It omits the counters `not_added`."""

    def __init__(self, table: Table, column: str, text: str, not_added: Collection[str] = ()) -> None:
        self._table = table
        texts: dict[str, list[str]] = {field.name: [] for field in table.fields if field.kind is Kind.TEXT}
        self._texts = texts | {column: [text]}
        self._counted = [
            field.name
            for field in table.stored
            if field.kind in (Kind.COUNTER, Kind.HISTOGRAM) and field.name not in not_added
        ]
        self._total = np.zeros(1, table.dtype)
        for name in table.dtype.names or ():
            if name not in self._counted:
                self._total[name] = unknown_value(table.dtype[name])
        self._total[table.key] = self._total[column] = 0
        self._listed: tuple[Rows, ...] = ()

    def add(self, rows: Rows) -> Ended:
        """Add the rows that left since the last reading, with their last values."""
        self._total = self._total.copy()
        for name in self._counted:
            self._total[name] += _sum(rows.array[name])
        self._listed = (*self._listed, rows)[-LISTED_READINGS:]
        return Ended(self._listed, Rows(self._table, self._total, self._texts, rows.taken_ns))


def _sum(column: Array) -> Array | int:
    """Return the sum of a column's known values; of histograms, by bucket."""
    if column.ndim == 1:
        return sum_of(column)
    total: Array = column[known_histograms(column)].sum(axis=0, dtype=column.dtype)
    return total
