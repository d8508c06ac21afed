# SPDX-License-Identifier: Apache-2.0
"""Select the groups that get their own series: those with the largest counts in the last 15 minutes.

Every group with counts is a candidate, so a steady trickle eventually overtakes an old burst. A set may have spare
places: a group that drops out of the largest keeps its place until another needs it, so series seldom come and go.
Small newcomers do not displace it: short-lived processes would make hundreds of thousands of series a day.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from nettop.snapshots.arrays import Array, Index, Mask, as_list

WINDOW_S, _STEP_S = 15 * 60.0, 10.0
"""Seconds of the window in which groups are compared, and of the steps by which it slides."""
_STEPS = int(WINDOW_S / _STEP_S) + 1
"""Number of steps kept: one more than the window, because the current step is incomplete."""
UNSEEN_S = 60.0
"""Minimum seconds that a new series keeps its place, unless a scrape lists it earlier."""
CANDIDATES_MAX = 8192
"""Maximum candidates, or twice the number of places if that is more. Beyond it the smallest without a place are
evicted."""

Key = tuple[str, ...]


class SeriesPlaces:
    """Places, numbered from 0, for the `most` largest groups and `spare` more.

    With `prefers_present`, existing groups rank before gone ones, whatever their counts. With `drops_gone`, a group
    that has been gone for a whole window loses its place.
    """

    def __init__(self, most: int, spare: int, *, prefers_present: bool, drops_gone: bool) -> None:
        self.size = most + spare
        self._wanted = most + spare // 2
        """Groups of this rank or better get a place even if another must be evicted."""
        self._candidates_max = max(CANDIDATES_MAX, 2 * self.size)
        self._prefers_present, self._drops_gone = prefers_present, drops_gone
        self._places: dict[Key, int] = {}
        self._free = list(reversed(range(self.size)))
        self._rows: dict[Key, int] = {}
        self._keys: list[Key] = []
        """Candidates, by row of the arrays below."""
        self._counted: Array = np.zeros((0, _STEPS))
        self._in_window: Array = np.zeros(0)
        self._is_present = np.zeros(0, bool)
        self._step = 0
        self._unseen_until: dict[Key, float] = {}
        """New series that no scrape has listed yet."""
        self._just_left: set[Key] = set()
        """Listed series that have ended: the next scrape must omit them, because they would restart at 0."""

    def __iter__(self) -> Iterator[tuple[Key, int]]:
        """Yield each group that has a place, and its place."""
        yield from self._places.items()

    def mark_listed(self) -> None:
        """Note that a scrape has listed all series."""
        self._unseen_until.clear()
        self._just_left.clear()

    def update(
        self, keys: Sequence[Key], counted: Array, is_present: Mask, now_s: float
    ) -> tuple[Index, list[int]]:
        """Add the counts of groups (n,), newest last; give places to the largest.

        `now_s` is by a monotonic clock. Return the place of each group (n,), -1 for none, and the places whose former
        group was evicted.
        """
        left = self._slide(now_s)
        self._count(keys, counted, is_present)
        ranked = [self._keys[row] for row in as_list(self._ranked())]
        left += self._admit(ranked, now_s)
        self._forget_smallest()
        return np.array([self._places.get(key, -1) for key in keys], np.intp), left

    def _slide(self, now_s: float) -> list[int]:
        """Discard counts from before the window. Return the places freed by groups gone for all of it."""
        step = int(now_s / _STEP_S)
        passed = min(step - self._step, _STEPS)
        if passed <= 0:
            return []
        self._step = step
        self._counted[:, [passed_step % _STEPS for passed_step in range(step - passed + 1, step + 1)]] = 0
        self._in_window = self._counted.sum(axis=1)
        is_idle = (self._in_window == 0) & ~self._is_present
        gone = [key for row in as_list(np.flatnonzero(is_idle)) if (key := self._keys[row]) in self._places]
        left = [self._leave(key) for key in gone] if self._drops_gone else []
        self._forget(is_idle)
        return left

    def _count(self, keys: Sequence[Key], counted: Array, is_present: Mask) -> None:
        rows = np.array([self._row(key) for key in keys], np.intp)
        new = len(self._keys) - len(self._counted)
        if new:
            self._counted = np.pad(self._counted, ((0, new), (0, 0)))
            self._in_window = np.pad(self._in_window, (0, new))
        self._counted[rows, self._step % _STEPS] += counted
        self._in_window[rows] += counted
        self._is_present = np.zeros(len(self._keys), bool)
        self._is_present[rows] = is_present

    def _forget_smallest(self) -> None:
        surplus = len(self._keys) - self._candidates_max
        if surplus > 0:
            smallest = np.argsort(self._in_window)[: surplus + self._candidates_max // 4]
            self._forget(np.isin(np.arange(len(self._keys)), smallest))

    def _row(self, key: Key) -> int:
        """Return the row of a candidate, adding one if needed."""
        if key not in self._rows:
            self._rows[key] = len(self._keys)
            self._keys.append(key)
        return self._rows[key]

    def _forget(self, is_small: Mask) -> None:
        """Evict these candidates unless they have a place."""
        if not is_small.any():
            return
        is_kept = ~is_small | np.array([key in self._places for key in self._keys], bool)
        self._counted, self._in_window = self._counted[is_kept], self._in_window[is_kept]
        self._is_present = self._is_present[is_kept]
        self._keys = [self._keys[row] for row in as_list(np.flatnonzero(is_kept))]
        self._rows = {key: row for row, key in enumerate(self._keys)}

    def _admit(self, ranked: list[Key], now_s: float) -> list[int]:
        """Give the largest groups a place. Return the places of the groups evicted for them."""
        smallest = (key for key in reversed(ranked[self.size :]) if self._may_leave(key, now_s))
        wanted = {*ranked[: self._wanted]}
        left: list[int] = []
        for key in ranked[: self.size]:
            if key in self._places or key in self._just_left:
                continue
            stays = key in wanted
            other = next(smallest, None) if stays and not self._free else None
            if other is not None:
                left.append(self._leave(other))
            if self._free:
                self._places[key] = self._free.pop()
                self._unseen_until[key] = now_s + UNSEEN_S if stays else now_s
        return left

    def _ranked(self) -> Index:
        """Return the rows of candidates, largest first; among equals, those with a place first, then the newest, which
        stay in the window longest."""
        has_place = np.array([key in self._places for key in self._keys], bool)
        is_present = self._is_present & self._prefers_present
        order = np.lexsort((-np.arange(len(has_place)), ~has_place, -self._in_window, ~is_present))
        ranked: Index = order[(has_place | is_present | (self._in_window > 0))[order]]
        return ranked

    def _may_leave(self, key: Key, now_s: float) -> bool:
        return key in self._places and self._unseen_until.get(key, 0.0) <= now_s

    def _leave(self, key: Key) -> int:
        """Free the place of a group, and return it."""
        place = self._places.pop(key)
        self._free.append(place)
        if self._unseen_until.pop(key, None) is None:
            self._just_left.add(key)
        return place
