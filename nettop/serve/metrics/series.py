# SPDX-License-Identifier: Apache-2.0
"""Cumulative series over rows: bounded in number, monotonic, and complete.

Each reading adds its difference from the previous one, including rows that ended in between. So a series continues when
rows come and go, and two sets made from the same table have the same sum.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from nettop.query.batches import empty_rows
from nettop.query.joined_rows import cached_by_name
from nettop.query.query import text_query
from nettop.query.units import TIMES
from nettop.query.view import View
from nettop.serve.metrics.families import ROWS, SeriesSet, chosen_edges
from nettop.serve.metrics.places import Key, SeriesPlaces
from nettop.snapshots.arrays import Array, Index, Mask, as_list, distinct_rows
from nettop.snapshots.schema import NO_GROUP, Field, Kind, Table
from nettop.snapshots.snapshot import Frame, Snapshot

OTHERS, EVICTED = "other", "evicted"
"""Labels for groups without their own series, and for the counts of ended series. They are separate so that the rate of
"other" is only that of those groups.
"""
_OTHERS, _REPLACED, _FIRST = 0, 1, 2
"""Slots of these two, and of the first series."""


@dataclass(frozen=True, eq=False)
class GroupIncrements:
    """Increments of a reading, or values of gauges, per group of rows with the same labels.

    `sums` and `known` are by column, of shape (groups,), for histograms (groups, buckets + 1). `rows` is the current
    number of rows per group.
    """

    keys: list[Key]
    sums: dict[str, Array]
    known: dict[str, Mask]
    rows: Array


def reading_view(frame: Frame, before: Snapshot | None, table: Table) -> View:
    """Return all rows of a table with their increments since the reading `before`, or since they began if None."""
    query = replace(text_query(table), all_rows=True, closed=True, deltas=True)
    if before is None:
        rows = frame.now.tables.get(table.name)
        nothing = replace(empty_rows(table), variant="" if rows is None else rows.variant)
        before = Snapshot(frame.now.lens, 0, 0, {table.name: nothing})
    return View(Frame(frame.now, before), query)


# --- one reading ----------------------------------------------------------------------------------------------


class CountedView:
    """View of one table's reading with its rows' increments, shared by the sets made from the table.

    `passes` selects the rows to count.
    """

    def __init__(self, view: View, passes: Mask) -> None:
        self.view = view
        self.passes = passes

    @cached_by_name
    def column(self, name: str) -> tuple[Array, Mask]:
        """Return the increment (a gauge's value) of each row in a column, 0 if unknown, and a mask of the known ones.

        A histogram gives the counts of the chosen buckets, then its sum: shape (n, buckets + 1).
        """
        view, field = self.view, self.view.table.by_name[name]
        if field.kind is Kind.HISTOGRAM:
            counts, buckets = view.histogram(name).astype(np.float64), view.buckets(name)
            parts = np.add.reduceat(counts, (0, *chosen_edges(buckets)), axis=1)
            return np.column_stack([parts, counts @ buckets.middles]), view.known(name)
        column = view.column(name)
        present = column.known & ~view.gone
        if field.kind is Kind.COUNTER:
            # A new row's counter has no increment yet.
            present = view.known(name)
        return np.where(column.known, column.numbers, 0).astype(np.float64), present


def counts_only(declared: SeriesSet) -> bool:
    """Return whether a set lists only the largest and counts no rows, so that idle groups look like gone ones."""
    return bool(declared.metrics.top) and declared.rows is None


def group_increments(declared: SeriesSet, counted: CountedView) -> GroupIncrements:
    """Return the increments of the view's interval, grouped by labels.

    Omit rows that are gone and counted nothing; in a `counts_only` set, omit all rows that counted nothing.
    """
    view = counted.view
    names = [column for family in declared.families for _, column in family.columns]
    matters = np.zeros(view.size, bool) if counts_only(declared) else ~view.gone
    for name in names:
        numbers, present = counted.column(name)
        matters |= present & (_row_sums(numbers) > 0)
    if not declared.filter.is_empty:
        matters &= declared.filter.mask(view)
    at = np.flatnonzero(counted.passes & matters)
    keys, which = _keys(declared, view, at) if len(at) else ([], at)
    sums, known = {}, {}
    for name in names:
        numbers, present = counted.column(name)
        sums[name] = _combined(view.table.by_name[name], numbers[at], which, len(keys))
        known[name] = np.bincount(which[present[at]], minlength=len(keys)) > 0
    rows = np.bincount(which[~view.gone[at]], minlength=len(keys))
    return GroupIncrements(keys, sums, known, rows)


def _combined(field: Field, numbers: Array, which: Index, count: int) -> Array:
    """Combine rows into `count` groups: sums, or maxima for duration gauges. Shape (count,) or (count, columns)."""
    if field.kind is Kind.GAUGE and field.unit in TIMES:
        longest = np.zeros(count)
        np.maximum.at(longest, which, numbers)
        return longest
    if numbers.ndim == 1:
        return np.bincount(which, numbers, count)
    return np.column_stack([np.bincount(which, column, count) for column in numbers.T])


def _row_sums(numbers: Array) -> Array:
    """Return one number per row: a histogram's sum."""
    return numbers if numbers.ndim == 1 else numbers[:, -1]


def _keys(declared: SeriesSet, view: View, at: Index) -> tuple[list[Key], Index]:
    """Return the distinct label combinations of some rows, the newest row's last, and each row's index in them."""
    texts, places = zip(*(_label(view, label, at) for label in declared.metrics.labels), strict=True)
    sizes = [max(1, len(one_text)) for one_text in texts]
    present, which = np.unique(np.ravel_multi_index(places, sizes), return_inverse=True)
    newest = np.zeros(len(present), np.uint64)
    np.maximum.at(newest, which, view.raw(view.table.key)[at])
    order = np.argsort(newest, kind="stable")
    places_of = map(np.asarray, np.unravel_index(present[order], sizes))
    columns = ([text[place] for place in as_list(of)] for text, of in zip(texts, places_of, strict=True))
    return list(zip(*columns, strict=True)), np.argsort(order)[which]


def _label(view: View, name: str, at: Index) -> tuple[list[str], Index]:
    """Return the distinct values of a label in some rows, as displayed by frontends, and each row's index in them."""
    groupings = view.table.groupings
    groupers: Mapping[str, Any] = importlib.import_module(groupings).GROUPERS if groupings else {}
    if name in groupers:
        numbers, names_of = groupers[name](view, at)
        distinct, places = np.unique(numbers, return_inverse=True)
        return _distinct(names_of(as_list(distinct)), places)
    firsts, places = distinct_rows([view.raw(column)[at] for column in view.table.columns_of(name)])
    values = view.values(name, at[firsts])
    return _distinct([NO_GROUP if value in (None, "") else str(value) for value in values], places)


def _distinct(texts: list[str], places: Index) -> tuple[list[str], Index]:
    """Return the distinct texts, and each row's index in them."""
    place_of = {text: place for place, text in enumerate(dict.fromkeys(texts))}
    return list(place_of), np.array([place_of[text] for text in texts], np.intp)[places]


# --- since the start ------------------------------------------------------------------------------------------


class SeriesTotals:
    """Cumulative series of a set: one per group with a place, one for all others, and one for the counts of ended
    series."""

    def __init__(self, declared: SeriesSet, most: int) -> None:
        self.declared = declared
        self._is_top = bool(declared.metrics.top)
        count = len(declared.metrics.labels)
        self._shared: dict[Key, int] = {(OTHERS,) * count: _OTHERS, (EVICTED,) * count: _REPLACED}
        self._places = SeriesPlaces(
            most,
            spare=max(2, most // 2) if self._is_top else 0,
            prefers_present=not self._is_top,
            drops_gone=not counts_only(declared),
        )
        self._sums: dict[str, Array] = {}
        self._known: dict[str, Mask] = {}
        self._size = _FIRST + self._places.size
        self._rows = np.zeros(self._size, np.int64)
        for family in declared.families:
            shape = () if family.buckets is None else (len(chosen_edges(family.buckets)) + 2,)
            for _, column in family.columns:
                self._sums[column] = np.zeros((self._size, *shape))
                self._known[column] = np.zeros(self._size, bool)
        self._gauges = [name for name in self._sums if declared.table.by_name[name].kind is Kind.GAUGE]

    def add(self, reading: GroupIncrements, now_s: float) -> None:
        """Add a reading; `now_s` is by a monotonic clock."""
        for name in self._gauges:
            self._sums[name][:] = 0
            self._known[name][:] = False
        slots = self._slots_of(reading, now_s)
        for name, sums in reading.sums.items():
            field = self.declared.table.by_name[name]
            self._sums[name] += _combined(field, sums, slots, self._size)
            self._known[name][slots[reading.known[name]]] = True
            # Mark the shared series as known from the start, so that its first count shows as an increase.
            self._known[name][_OTHERS] |= self._is_top and bool(reading.known[name].any())
        self._rows[:] = np.bincount(slots, reading.rows, self._size)

    def _slots_of(self, reading: GroupIncrements, now_s: float) -> Index:
        """Return the slot of each group: its own, possibly assigned now, or that of all others."""
        named = np.array([at for at, key in enumerate(reading.keys) if key not in self._shared], np.intp)
        keys = [reading.keys[at] for at in as_list(named)]
        places, left = self._places.update(
            keys, self._weights(reading)[named], reading.rows[named] > 0, now_s
        )
        for place in left:
            self._end(_FIRST + place)
        slots = np.full(len(reading.keys), _OTHERS)
        slots[named] = np.where(places >= 0, _FIRST + places, _OTHERS)
        return slots

    def _weights(self, reading: GroupIncrements) -> Array:
        """Return the weight that ranks each group: its first metric, but at least 1 if another one counted, so that a
        service that only fails gets a free place."""
        if not self.declared.families:
            return reading.rows
        counts = {name: _row_sums(numbers) for name, numbers in reading.sums.items()}
        first = np.add.reduce([counts[column] for _, column in self.declared.families[0].columns])
        weights: Array = np.maximum(first, np.logical_or.reduce([count > 0 for count in counts.values()]))
        return weights

    def _end(self, slot: int) -> None:
        """End a series; move its counts to those of ended series."""
        for name, sums in self._sums.items():
            sums[_REPLACED] += sums[slot]
            self._known[name][_REPLACED] |= self._known[name][slot]
            sums[slot] = 0
            self._known[name][slot] = False

    def mark_listed(self) -> None:
        """Note that a scrape has listed the series."""
        self._places.mark_listed()

    def series(self) -> Iterator[tuple[Key, int]]:
        """Yield the labels and slot of each series; the two shared ones only if they have counts or may get some."""
        for key, slot in self._shared.items():
            is_used = any(sums[slot].any() for sums in self._sums.values())
            if is_used or (slot == _OTHERS and (self._is_top or self._rows[slot])):
                yield key, slot
        for key, place in self._places:
            yield key, _FIRST + place

    def value(self, column: str, slot: int) -> Array | None:
        """Return a series' number in a column, or a histogram's counts and sum; None if unknown."""
        sums = self._rows if column == ROWS else self._sums[column]
        return sums[slot] if column == ROWS or self._known[column][slot] else None
