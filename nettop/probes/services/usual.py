# SPDX-License-Identifier: Apache-2.0
"""Response times of a service in the last seconds, compared with those in the last minutes."""

from __future__ import annotations

import warnings
from collections import deque
from typing import NamedTuple

import numpy as np

from nettop.snapshots import services as spec
from nettop.snapshots.arrays import Array, Mask, growth, positions
from nettop.snapshots.snapshot import known

KEPT_EVERY_S = 5.0
_RECENT_MIN_RESPONSES = 10
"""Minimum responses for a recent p99."""
_USUAL_MIN_VALUES = 3
"""Minimum earlier values for a usual p99."""


class _UsualValues(NamedTuple):
    """Values of services at a reading, by ID in ascending order."""

    taken_ns: int
    ids: Array
    values: Array

    def of(self, ids: Array, missing: float) -> Array:
        """Return the values of these services, and `missing` for those that were not there."""
        at = positions(ids, self.ids)
        values = np.full((len(ids), *self.values.shape[1:]), missing, self.values.dtype)
        values[at >= 0] = self.values[at[at >= 0]]
        return values


_NO_HISTOGRAMS = _UsualValues(0, np.zeros(0, np.uint64), np.zeros((0, spec.BUCKETS.count), np.uint64))


class UsualTimes:
    """Response times of services in the last minutes."""

    def __init__(self) -> None:
        self._histograms: deque[_UsualValues] = deque()
        """Cumulative histograms."""
        self._recent: deque[_UsualValues] = deque()
        """The p99 in the seconds before a reading, or the usual one in a spell: ns, NaN if unknown."""
        self._last = _NO_HISTOGRAMS
        """The histograms of the previous reading."""
        self._slow = self._spells = _UsualValues(0, np.zeros(0, np.uint64), np.zeros(0, np.int64))
        """When a reading last had slow responses; since when a service has been slower, or has answered nothing: ns,
        CLOCK_MONOTONIC; 0 if never, or not now."""

    def set_columns(self, rows: Array, taken_ns: int) -> None:
        """Set the columns recent_p99, usual_p99 and speed of rows, which are sorted by ID.

        The usual p99 is the median of earlier recent ones: a p99 over the whole time would follow a slow spell as soon
        as one response in a hundred belongs to it. In a spell it stays what it was, or the spell would end by itself.
        """
        recent, usual = self._recent_p99(rows, taken_ns), self._usual_p99(rows, taken_ns)
        for name, p99 in (("recent_p99", recent), ("usual_p99", usual)):
            is_known = np.isfinite(p99)
            rows[name][is_known] = p99[is_known].round()
        is_slower = _exceeds(recent, usual) & self._was_slow(rows, usual, taken_ns)
        rows["speed"] = _speeds(is_slower, recent, usual, rows["stalled"])
        # Of a service that answers others as usual, a request that waits is a long poll.
        is_silent = (rows["speed"] == spec.STUCK) & np.isnan(recent)
        is_spell = self._is_spell(rows["id"], is_slower | is_silent, taken_ns)
        ids = rows["id"].copy()
        self._last = _UsualValues(taken_ns, ids, rows["response"].copy())
        if self._histograms and taken_ns - self._histograms[-1].taken_ns < KEPT_EVERY_S * 1e9:
            return
        self._histograms.append(self._last)
        self._recent.append(_UsualValues(taken_ns, ids, np.where(is_spell, usual, recent)))
        while len(self._histograms) > 1 and taken_ns - self._histograms[1].taken_ns >= spec.RECENT_S * 1e9:
            self._histograms.popleft()
        while taken_ns - self._recent[0].taken_ns > spec.USUAL_S * 1e9:
            self._recent.popleft()

    def _recent_p99(self, rows: Array, taken_ns: int) -> Array:
        """Return the p99 of each service in the last seconds, or since it was first seen."""
        earlier = [kept for kept in self._histograms if taken_ns - kept.taken_ns >= spec.RECENT_S * 1e9]
        return _p99_since(rows, [_NO_HISTOGRAMS, *earlier][-1], _RECENT_MIN_RESPONSES)

    def _was_slow(self, rows: Array, usual: Array, taken_ns: int) -> Mask:
        """Return whether the responses between two readings were slow within the last SLOWER_FOR_S seconds."""
        slow_at = self._slow.of(rows["id"], 0)
        slow_at[_exceeds(_p99_since(rows, self._last, 1), usual)] = taken_ns
        self._slow = _UsualValues(taken_ns, rows["id"].copy(), slow_at)
        return slow_at > taken_ns - spec.SLOWER_FOR_S * 1e9

    def _is_spell(self, ids: Array, is_bad: Mask, taken_ns: int) -> Mask:
        """Return which services are slower or answer nothing, and have been so for less than SPELL_S."""
        began_at = self._spells.of(ids, 0)
        began_at[began_at == 0] = taken_ns
        began_at[~is_bad] = 0
        self._spells = _UsualValues(taken_ns, ids.copy(), began_at)
        is_spell: Mask = (began_at > 0) & (taken_ns - began_at < spec.SPELL_S * 1e9)
        return is_spell

    def _usual_p99(self, rows: Array, taken_ns: int) -> Array:
        """Return the median of the recent p99s measured before the last RECENT_S seconds."""
        earlier = [kept for kept in self._recent if taken_ns - kept.taken_ns >= spec.RECENT_S * 1e9]
        unknown = np.full(len(rows), np.nan)
        table = np.stack([unknown, *(kept.of(rows["id"], np.nan) for kept in earlier)])
        table[:, np.isfinite(table).sum(axis=0) < _USUAL_MIN_VALUES] = np.nan
        with warnings.catch_warnings():  # for services without values
            warnings.simplefilter("ignore", RuntimeWarning)
            return np.asarray(np.nanmedian(table, axis=0))


def _p99_since(rows: Array, earlier: _UsualValues, least: int) -> Array:
    """Return the p99 of each service's responses since earlier histograms: ns, NaN if there are fewer than `least`."""
    added = growth(rows["response"], earlier.of(rows["id"], 0))
    p99 = np.full(len(rows), np.nan)
    is_enough = added.sum(axis=1) >= least
    p99[is_enough] = spec.BUCKETS.quantiles(added[is_enough], 0.99)
    return p99


def _exceeds(p99: Array, usual: Array) -> Mask:
    """Return whether a p99 is so much longer than the usual that the service is slower."""
    exceeds: Mask = (p99 > spec.SLOWER_FROM * usual) & (p99 >= spec.SLOWER_LEAST_S * 1e9)
    return exceeds


def _speeds(is_slower: Mask, recent: Array, usual: Array, stalled: Array) -> Array:
    """Return each service's speed number; where no p99 is known, only the minimum wait counts."""
    of_p99 = np.maximum(
        spec.STUCK_FROM * np.nan_to_num(usual), spec.STUCK_FROM_RECENT * np.nan_to_num(recent)
    )
    longest = np.maximum(of_p99, spec.STUCK_LEAST_S * 1e9)
    is_stuck = known(stalled) & (stalled > longest)
    return np.where(is_stuck, spec.STUCK, np.where(is_slower, spec.SLOWER, spec.NORMAL))
