# SPDX-License-Identifier: Apache-2.0
"""What interfaces had counted that are gone, so that each byte stays in a row and in the totals."""

from __future__ import annotations

import numpy as np

from nettop.snapshots.bandwidth import REMOVED
from nettop.snapshots.schema import Kind, Table
from nettop.snapshots.snapshot import LISTED_READINGS, Ended, Rows, sum_of, unknown_value

_NOT_ADDED = "capacity"


class RemovedRows:
    """Follows the rows of a table of which an interface was removed."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self._counters = [
            field.name for field in table.fields if field.kind is Kind.COUNTER and field.name != _NOT_ADDED
        ]
        self._sums = dict.fromkeys(self._counters, 0)
        self._listed: tuple[Rows, ...] = ()

    def add(self, rows: Rows) -> Ended:
        """Add the rows that have gone since the last reading, with their last values."""
        for name in self._counters:
            self._sums[name] += sum_of(rows.array[name])
        self._listed = (*self._listed, rows)[-LISTED_READINGS:]
        total = np.zeros(1, self._table.dtype)
        for name in self._table.dtype.names or ():
            total[name] = unknown_value(self._table.dtype[name])
        total[self._table.key] = 0
        for name, count in self._sums.items():
            total[name] = count
        texts: dict[str, list[str]] = {
            field.name: [] for field in self._table.fields if field.kind is Kind.TEXT
        }
        total["interface"] = 0
        return Ended(self._listed, Rows(self._table, total, texts | {"interface": [REMOVED]}, rows.taken_ns))
