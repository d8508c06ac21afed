# SPDX-License-Identifier: Apache-2.0
"""Rows that have left a table, kept with their last values."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from nettop.query.batches import codes_of, concatenate_batches, recode
from nettop.query.joined_rows import JoinedRows
from nettop.snapshots.arrays import as_list, take_rows
from nettop.snapshots.schema import Table
from nettop.snapshots.snapshot import Frame, Rows

KEPT_CLOSED = 1000


class ClosedRows:
    """The newest rows that have left a table since this object was created; older ones are counted as `dropped`."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self._last: Frame | None = None
        self.rows: Rows | None = None
        self.dropped = 0

    def add(self, frame: Frame) -> None:
        """Add the rows that left between the frame's two snapshots, unless already added."""
        if frame is self._last:
            return
        self._last = frame
        for closed in JoinedRows(frame, self._table, closed=True, gone=True).closed:
            self._add(closed)

    def _add(self, closed: Rows) -> None:
        key, earlier = closed.table.key, self.rows
        if earlier is None or earlier.array.dtype != closed.array.dtype:
            earlier = replace(closed, array=closed.array[:0])
        is_new = ~np.isin(closed.array[key], earlier.array[key])
        if not is_new.any():
            return
        batches = [earlier, replace(closed, array=take_rows(closed.array, np.flatnonzero(is_new)))]
        self.dropped += max(0, sum(map(len, batches)) - KEPT_CLOSED)
        self.rows = _without_unused_texts(concatenate_batches(closed.table, batches, KEPT_CLOSED))


def _without_unused_texts(rows: Rows) -> Rows:
    """Drop unused texts from the rows, as the source does."""
    array, texts = rows.array.copy(), {}
    for name, old in rows.texts.items():
        texts[name] = sorted({old[code] for code in as_list(array[name]) if code < len(old)})
        array[name] = recode(array[name], old, codes_of(texts[name]))
    return replace(rows, array=array, texts=texts)
