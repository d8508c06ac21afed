# SPDX-License-Identifier: Apache-2.0
"""The bound on memory: how many sockets have a row, and the counters of the others."""

from __future__ import annotations

import numpy as np

from nettop.probes.connections.ended import COUNTERS
from nettop.probes.connections.socket_rows import ROW
from nettop.process.limits import available_memory, resident_memory
from nettop.snapshots.arrays import Array, positions, take_rows
from nettop.snapshots.schema import BEGAN
from nettop.snapshots.snapshot import sum_of

ROW_BYTES = 4 << 10
"""Memory that a row costs on the screens, which need most: in two readings, with columns, texts and history."""
LEAST_ROWS = 1000
"""Rows to hold in any case: a table without rows helps nobody."""


def rows_within(max_memory: int) -> int:
    """Return how many rows fit into a process of `max_memory` bytes or, if 0, into a quarter of what is available."""
    room = max_memory - resident_memory() if max_memory else available_memory() // 4
    return max(LEAST_ROWS, room // ROW_BYTES)


class RowBound:
    """A choice of `most` sockets with a row, in which a socket stays as it is: else its growth would be unknown.

    Of the others, `found` is the number since the start, `sums` are the counters, and `hidden` the sorted ids of those
    that were open at the last or the last but one reading.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._listed: Array | None = None
        self._left_out: Array = np.zeros(0, ROW["id"])
        self.hidden = self._left_out
        self.found = 0
        self.sums: dict[str, int] = {}
        self._unseen = dict.fromkeys(COUNTERS, 0)

    def choose(self, rows: Array) -> Array:
        """Return the rows, sorted by id, of the sockets that have one."""
        ids = np.ascontiguousarray(rows["id"])
        if len(rows) <= self._most and not self.found:
            self._listed = ids
            return rows
        is_first, listed = self._listed is None, ids[:0] if self._listed is None else self._listed
        is_listed, is_left_out = (positions(ids, some) >= 0 for some in (listed, self._left_out))
        room = max(0, self._most - int(is_listed.sum()))
        came = np.flatnonzero(~is_listed & ~is_left_out)[room:]
        if not is_first:
            # What a socket counted before it was found is not growth.
            found_late = take_rows(rows, came[rows[BEGAN][came] != 1])
            for name in COUNTERS:
                self._unseen[name] += sum_of(found_late[name])
        is_left_out[came] = True
        self.found += len(came)
        self._listed, before, self._left_out = ids[~is_left_out], self._left_out, ids[is_left_out]
        self.hidden = np.union1d(before, self._left_out)
        others = take_rows(rows, is_left_out)
        self.sums = {name: sum_of(others[name]) - self._unseen[name] for name in COUNTERS}
        return take_rows(rows, ~is_left_out)
