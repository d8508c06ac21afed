# SPDX-License-Identifier: Apache-2.0
"""Whether a service is slower than usual: its response times of the last seconds beside those of the last minutes."""

from __future__ import annotations

import warnings
from collections import deque
from typing import NamedTuple

import numpy as np

from nettop.snapshots.arrays import growth, positions
from nettop.snapshots.services import (
    BUCKETS,
    NORMAL,
    RECENT_S,
    SLOWER,
    SLOWER_FROM,
    STUCK,
    STUCK_FROM,
    STUCK_LEAST_S,
    USUAL_S,
)
from nettop.snapshots.snapshot import Array, known

KEPT_EVERY_S = 5.0
_RECENT_LEAST = 10
"""Of fewer answers nothing is said."""
_USUAL_LEAST = 3
"""So many earlier values say what is usual."""


class _Histograms(NamedTuple):
    """What services counted until a reading, by their ids, ascending."""

    taken_ns: int
    ids: Array
    counts: Array


class _Recent(NamedTuple):
    """The p99 of services in the seconds before a reading, by their ids, ascending: ns, NaN where unknown."""

    taken_ns: int
    ids: Array
    p99: Array


class UsualTimes:
    """The response times of services in the last minutes."""

    def __init__(self) -> None:
        self._histograms: deque[_Histograms] = deque()
        self._recent: deque[_Recent] = deque()

    def put(self, rows: Array, taken_ns: int) -> None:
        """Set the columns recent_p99, usual_p99 and speed of rows, which are sorted by their id.

        The usual p99 is the median of what the recent one was: a p99 over all of the time would follow a slow spell as
        soon as that has one answer in a hundred.
        """
        recent, usual = self._recent_p99(rows, taken_ns), self._usual_p99(rows, taken_ns)
        for name, p99 in (("recent_p99", recent), ("usual_p99", usual)):
            is_known = np.isfinite(p99)
            rows[name][is_known] = p99[is_known].round()
        rows["speed"] = _speeds(recent, usual, rows["oldest"])
        if self._histograms and taken_ns - self._histograms[-1].taken_ns < KEPT_EVERY_S * 1e9:
            return
        self._histograms.append(_Histograms(taken_ns, rows["id"].copy(), rows["response"].copy()))
        self._recent.append(_Recent(taken_ns, rows["id"].copy(), recent))
        while len(self._histograms) > 1 and taken_ns - self._histograms[1].taken_ns >= RECENT_S * 1e9:
            self._histograms.popleft()
        while taken_ns - self._recent[0].taken_ns > USUAL_S * 1e9:
            self._recent.popleft()

    def _recent_p99(self, rows: Array, taken_ns: int) -> Array:
        """Of what each service has counted in the last seconds, or since it is known."""
        added = rows["response"].copy()
        earlier = [kept for kept in self._histograms if taken_ns - kept.taken_ns >= RECENT_S * 1e9]
        if earlier:
            at = positions(rows["id"], earlier[-1].ids)
            added[at >= 0] = growth(added[at >= 0], earlier[-1].counts[at[at >= 0]])
        p99 = np.full(len(rows), np.nan)
        is_enough = added.sum(axis=1) >= _RECENT_LEAST
        p99[is_enough] = BUCKETS.quantiles(added[is_enough], 0.99)
        return p99

    def _usual_p99(self, rows: Array, taken_ns: int) -> Array:
        """The median of what was recent before the seconds that are recent now."""
        values = [np.full(len(rows), np.nan)]
        for kept in self._recent:
            if taken_ns - kept.taken_ns >= RECENT_S * 1e9:
                p99, at = np.full(len(rows), np.nan), positions(rows["id"], kept.ids)
                p99[at >= 0] = kept.p99[at[at >= 0]]
                values.append(p99)
        table = np.stack(values)
        table[:, np.isfinite(table).sum(axis=0) < _USUAL_LEAST] = np.nan
        with warnings.catch_warnings():  # of services without any
            warnings.simplefilter("ignore", RuntimeWarning)
            return np.asarray(np.nanmedian(table, axis=0))


def _speeds(recent: Array, usual: Array, oldest: Array) -> Array:
    """The number of each service's speed; where the usual p99 is unknown only the least wait counts."""
    is_slower = recent > SLOWER_FROM * usual
    longest = np.maximum(STUCK_FROM * np.nan_to_num(usual), STUCK_LEAST_S * 1e9)
    is_stuck = known(oldest) & (oldest > longest)
    return np.where(is_stuck, STUCK, np.where(is_slower, SLOWER, NORMAL))
