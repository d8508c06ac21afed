# SPDX-License-Identifier: Apache-2.0
"""Whether a service is slower than usual: its response times of the last seconds beside those of the last minutes."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

import numpy as np

from nettop.snapshots.arrays import positions
from nettop.snapshots.services import (
    BUCKETS,
    RECENT_S,
    SLOWER_FROM,
    SPEEDS,
    STUCK_FROM,
    STUCK_LEAST_S,
    USUAL_S,
)
from nettop.snapshots.snapshot import Array, known

_KEPT_EVERY_S = 5.0
_RECENT_LEAST, _USUAL_LEAST = 10, 100
"""Of fewer answers nothing is said."""
NORMAL, SLOWER, STUCK = SPEEDS


class _Moment(NamedTuple):
    """The histograms of the services at a reading, by their ids, ascending."""

    taken_ns: int
    ids: Array
    histograms: Array


class UsualTimes:
    """The response times of services at the readings of the last minutes."""

    def __init__(self) -> None:
        self._moments: deque[_Moment] = deque()

    def put(self, rows: Array, taken_ns: int) -> None:
        """Set the columns recent_p99, usual_p99 and speed of rows, which are sorted by their id."""
        recent = self._since(rows, taken_ns, RECENT_S)
        usual = self._since(rows, taken_ns, USUAL_S) - recent
        for name, counts, least in (
            ("recent_p99", recent, _RECENT_LEAST),
            ("usual_p99", usual, _USUAL_LEAST),
        ):
            is_enough = counts.sum(axis=1) >= least
            rows[name][is_enough] = BUCKETS.quantiles(counts[is_enough], 0.99)
        self._put_speed(rows)
        if not self._moments or taken_ns - self._moments[-1].taken_ns >= _KEPT_EVERY_S * 1e9:
            self._moments.append(_Moment(taken_ns, rows["id"].copy(), rows["response"].copy()))
        while taken_ns - self._moments[0].taken_ns > (USUAL_S + _KEPT_EVERY_S) * 1e9:
            self._moments.popleft()

    def _since(self, rows: Array, taken_ns: int, seconds: float) -> Array:
        """What each service has counted in the last seconds, or since it is known."""
        added = rows["response"].astype(np.int64)
        earlier = [moment for moment in self._moments if taken_ns - moment.taken_ns >= seconds * 1e9]
        then = earlier[-1] if earlier else None
        if then is not None:
            at = positions(rows["id"], then.ids)
            added[at >= 0] -= then.histograms[at[at >= 0]].astype(np.int64)
        return added

    @staticmethod
    def _put_speed(rows: Array) -> None:
        recent, usual = rows["recent_p99"], rows["usual_p99"]
        is_slower = known(recent) & known(usual) & (recent > SLOWER_FROM * usual.astype(np.float64))
        usually = np.where(known(usual), usual, 0).astype(np.float64)
        longest = np.maximum(STUCK_FROM * usually, STUCK_LEAST_S * 1e9)
        is_stuck = known(rows["oldest"]) & (rows["oldest"] > longest)
        rows["speed"] = np.where(is_stuck, STUCK, np.where(is_slower, SLOWER, NORMAL))
