# SPDX-License-Identifier: Apache-2.0
"""Rows that have left a table, with their last values."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from nettop.query.batches import put_together
from nettop.query.query import screen_query
from nettop.query.view import View, recoded
from nettop.snapshots.arrays import as_list, take
from nettop.snapshots.schema import Table
from nettop.snapshots.snapshot import Frame, Rows

KEPT_CLOSED = 1000


class ClosedRows:
    """The rows that have left a table since this began: the newest, the others are counted as `dropped`."""

    def __init__(self, table: Table) -> None:
        self._query = replace(screen_query(table), gone=True)
        self._last: Frame | None = None
        self.rows: Rows | None = None
        self.dropped = 0

    def add(self, frame: Frame) -> None:
        """Add what has left between the frame's two snapshots, unless it was added before."""
        if frame is self._last:
            return
        self._last = frame
        for closed in View(frame, self._query).closed:
            self._add(closed)

    def _add(self, closed: Rows) -> None:
        key, earlier = closed.table.key, self.rows
        if earlier is None or earlier.array.dtype != closed.array.dtype:
            earlier = replace(closed, array=closed.array[:0])
        is_new = ~np.isin(closed.array[key], earlier.array[key])
        if not is_new.any():
            return
        batches = [earlier, replace(closed, array=take(closed.array, np.flatnonzero(is_new)))]
        self.dropped += max(0, sum(map(len, batches)) - KEPT_CLOSED)
        self.rows = _with_own_texts(put_together(closed.table, batches, KEPT_CLOSED))


def _with_own_texts(rows: Rows) -> Rows:
    """The rows with no more texts than they need: a source drops those that it does not need any more."""
    array, texts = rows.array.copy(), {}
    for name, old in rows.texts.items():
        texts[name] = sorted({old[code] for code in as_list(array[name]) if code < len(old)})
        array[name] = recoded(array[name], old, texts[name])
    return replace(rows, array=array, texts=texts)
