# SPDX-License-Identifier: Apache-2.0
"""Response times of a service in the last seconds, compared with those in the last minutes."""

from __future__ import annotations

import warnings
from collections import deque
from typing import NamedTuple

import numpy as np

from nettop.snapshots.arrays import Array, growth, positions
from nettop.snapshots.services import (
    BUCKETS,
    NORMAL,
    RECENT_S,
    SLOWER,
    SLOWER_FROM,
    STUCK,
    STUCK_FROM,
    STUCK_FROM_RECENT,
    STUCK_LEAST_S,
    USUAL_S,
)
from nettop.snapshots.snapshot import known

KEPT_EVERY_S = 5.0
_RECENT_MIN_ANSWERS = 10
"""Minimum answers for a recent p99."""
_USUAL_MIN_VALUES = 3
"""Minimum earlier values for a usual p99."""


class _Kept(NamedTuple):
    """Values of services at a reading, by ID in ascending order."""

    taken_ns: int
    ids: Array
    values: Array


class UsualTimes:
    """Response times of services in the last minutes."""

    def __init__(self) -> None:
        self._histograms: deque[_Kept] = deque()
        """Cumulative histograms."""
        self._recent: deque[_Kept] = deque()
        """The p99 in the seconds before a reading: ns, NaN if unknown."""

    def set_columns(self, rows: Array, taken_ns: int) -> None:
        """Set the columns recent_p99, usual_p99 and speed of rows, which are sorted by ID.

        The usual p99 is the median of earlier recent ones: a p99 over the whole time would follow a slow spell as soon
        as one answer in a hundred belongs to it.
        """
        recent, usual = self._recent_p99(rows, taken_ns), self._usual_p99(rows, taken_ns)
        for name, p99 in (("recent_p99", recent), ("usual_p99", usual)):
            is_known = np.isfinite(p99)
            rows[name][is_known] = p99[is_known].round()
        rows["speed"] = _speeds(recent, usual, rows["stalled"])
        if self._histograms and taken_ns - self._histograms[-1].taken_ns < KEPT_EVERY_S * 1e9:
            return
        ids = rows["id"].copy()
        self._histograms.append(_Kept(taken_ns, ids, rows["response"].copy()))
        self._recent.append(_Kept(taken_ns, ids, recent))
        while len(self._histograms) > 1 and taken_ns - self._histograms[1].taken_ns >= RECENT_S * 1e9:
            self._histograms.popleft()
        while taken_ns - self._recent[0].taken_ns > USUAL_S * 1e9:
            self._recent.popleft()

    def _recent_p99(self, rows: Array, taken_ns: int) -> Array:
        """Return the p99 of each service in the last seconds, or since it was first seen."""
        added = rows["response"].copy()
        earlier = [kept for kept in self._histograms if taken_ns - kept.taken_ns >= RECENT_S * 1e9]
        if earlier:
            at = positions(rows["id"], earlier[-1].ids)
            added[at >= 0] = growth(added[at >= 0], earlier[-1].values[at[at >= 0]])
        p99 = np.full(len(rows), np.nan)
        is_enough = added.sum(axis=1) >= _RECENT_MIN_ANSWERS
        p99[is_enough] = BUCKETS.quantiles(added[is_enough], 0.99)
        return p99

    def _usual_p99(self, rows: Array, taken_ns: int) -> Array:
        """Return the median of the recent p99s measured before the last RECENT_S seconds."""
        values = [np.full(len(rows), np.nan)]
        for kept in self._recent:
            if taken_ns - kept.taken_ns >= RECENT_S * 1e9:
                p99, at = np.full(len(rows), np.nan), positions(rows["id"], kept.ids)
                p99[at >= 0] = kept.values[at[at >= 0]]
                values.append(p99)
        table = np.stack(values)
        table[:, np.isfinite(table).sum(axis=0) < _USUAL_MIN_VALUES] = np.nan
        with warnings.catch_warnings():  # for services without values
            warnings.simplefilter("ignore", RuntimeWarning)
            return np.asarray(np.nanmedian(table, axis=0))


def _speeds(recent: Array, usual: Array, stalled: Array) -> Array:
    """Return each service's speed number; where no p99 is known, only the minimum wait counts."""
    is_slower = recent > SLOWER_FROM * usual
    of_p99 = np.maximum(STUCK_FROM * np.nan_to_num(usual), STUCK_FROM_RECENT * np.nan_to_num(recent))
    longest = np.maximum(of_p99, STUCK_LEAST_S * 1e9)
    is_stuck = known(stalled) & (stalled > longest)
    return np.where(is_stuck, STUCK, np.where(is_slower, SLOWER, NORMAL))
