# SPDX-License-Identifier: Apache-2.0
"""Series that add up what rows count: a bounded number of them, none of which ever falls, and nothing uncounted.

Each reading adds the difference to the one before, which has what ended in between. So a series goes on when its rows
come and go, and two sets made of the same table have the same sum.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from nettop.query.address import address_text, distinct_addresses
from nettop.query.batches import empty_rows
from nettop.query.groupings import FOLDS, Folded
from nettop.query.query import text_query
from nettop.query.units import TIMES
from nettop.query.view import View
from nettop.serve.metrics.families import SeriesSet, chosen_edges
from nettop.snapshots.arrays import Index, Mask, as_list
from nettop.snapshots.connections import NO_GROUP
from nettop.snapshots.schema import Field, Kind, Table
from nettop.snapshots.snapshot import Array, Frame, Snapshot

KEPT_S = 15 * 60.0
"""A series stays as long after it was last among the largest of a reading."""
GONE_S = 5 * 60.0
"""A series that was replaced does not come back, counting from 0, before scrapes have shown that it had gone."""
OTHERS, REPLACED = "other", "evicted"
"""The labels of what has no series of its own, and of what had one that made room for another: the latter is apart, so
that the rate of the others is what they do."""
_OTHERS, _REPLACED, _FIRST = 0, 1, 2
"""Their slots, and that of the first series."""

Key = tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Grouped:
    """What a reading adds, or of gauges is: by group of rows with the same labels.

    `sums` and `known` are by column, of the shapes (groups,), for histograms (groups, buckets + 1). `rows` is how many
    rows each group has now.
    """

    keys: list[Key]
    sums: dict[str, Array]
    known: dict[str, Mask]
    rows: Array


def reading_view(frame: Frame, before: Snapshot | None, table: Table) -> View:
    """All rows of a table, and what they have counted since the reading `before`; without one since they began."""
    query = replace(text_query(table), all_rows=True, closed=True, deltas=True)
    if before is None:
        nothing = {table.name: replace(empty_rows(table), variant=_variant(frame.now, table))}
        before = Snapshot(frame.now.lens, 0, 0, nothing)
    return View(Frame(frame.now, before), query)


def _variant(snapshot: Snapshot, table: Table) -> str:
    rows = snapshot.tables.get(table.name)
    return "" if rows is None else rows.variant


# --- one reading ----------------------------------------------------------------------------------------------


class Counted:
    """The view of a reading of one table, with what its rows have counted: the sets made of the table share it.

    `passes` are the rows that are to be counted at all.
    """

    def __init__(self, view: View, passes: Mask) -> None:
        self.view = view
        self.passes = passes
        self._columns: dict[str, tuple[Array, Mask]] = {}

    def column(self, name: str) -> tuple[Array, Mask]:
        """What each row has counted in a column, of a gauge what it is, 0 where that is not known; and where it is.

        Of a histogram it is the counts of the chosen buckets, and last what it counted together: (n, buckets + 1).
        """
        if name not in self._columns:
            self._columns[name] = self._added(name)
        return self._columns[name]

    def _added(self, name: str) -> tuple[Array, Mask]:
        view, field = self.view, self.view.table.by_name[name]
        if field.kind is Kind.HISTOGRAM:
            counts, buckets = view.histogram(name).astype(np.float64), view.buckets(name)
            parts = np.add.reduceat(counts, (0, *chosen_edges(buckets)), axis=1)
            return np.column_stack([parts, counts @ buckets.middles]), view.known(name)
        column = view.column(name)
        present = column.known & ~view.gone
        if field.kind is Kind.COUNTER:
            # What is new has counted nothing since it was first seen.
            present = view.known(name)
        return np.where(column.known, column.numbers, 0).astype(np.float64), present


def grouped(declared: SeriesSet, counted: Counted) -> Grouped:
    """What the rows have counted in the view's interval, by their labels.

    Rows that have gone, and counted nothing, are left out; in a set that lists the largest only, and counts no rows,
    all that counted nothing.
    """
    view = counted.view
    names = [column for family in declared.families for _, column in family.columns]
    only_counting = declared.metrics.top and declared.rows is None
    matters = np.zeros(view.size, bool) if only_counting else ~view.gone
    for name in names:
        numbers, present = counted.column(name)
        matters |= present & (_in_all(numbers) > 0)
    at = np.flatnonzero(counted.passes & matters)
    keys, which = _keys(declared, view, at)
    sums, known = {}, {}
    for name in names:
        numbers, present = counted.column(name)
        sums[name] = _together(view.table.by_name[name], numbers[at], which, len(keys))
        known[name] = np.bincount(which[present[at]], minlength=len(keys)) > 0
    rows = np.bincount(which[~view.gone[at]], minlength=len(keys))
    return Grouped(keys, sums, known, rows)


def _together(field: Field, numbers: Array, which: Index, count: int) -> Array:
    """What rows have together that belong to the same of `count` groups: their sums, of how long something lasts the
    longest. Shape (count,) or (count, columns).
    """
    if field.kind is Kind.GAUGE and field.unit in TIMES:
        longest = np.zeros(count)
        np.maximum.at(longest, which, numbers)
        return longest
    if numbers.ndim == 1:
        return np.bincount(which, numbers, count)
    return np.column_stack([np.bincount(which, column, count) for column in numbers.T])


def _in_all(numbers: Array) -> Array:
    """One number a row: of a histogram what it counted together."""
    return numbers if numbers.ndim == 1 else numbers[:, -1]


def _keys(declared: SeriesSet, view: View, at: Index) -> tuple[list[Key], Index]:
    """The distinct combinations of labels in some rows, and for each of these rows the place of its own."""
    combined: Index = np.zeros(len(at), np.int64)
    texts: list[list[str]] = []
    for label in declared.metrics.labels:
        numbers, names_of = _label(view, label, at)
        distinct, places = np.unique(numbers, return_inverse=True)
        texts.append(names_of(as_list(distinct)))
        combined = combined * max(1, len(distinct)) + places
    if len(texts) == 1:
        return [(name,) for name in texts[0]], combined
    present, which = np.unique(combined, return_inverse=True)
    places_of = np.unravel_index(present, [max(1, len(names)) for names in texts])
    columns = ([names[place] for place in as_list(at)] for names, at in zip(texts, places_of, strict=True))
    return list(zip(*columns, strict=True)), which


def _label(view: View, name: str, at: Index) -> Folded:
    """For each of these rows a number that stands for its label, and what names these numbers."""
    field = view.table.by_name.get(name)
    if field is None:
        return FOLDS[name](view, at)
    if field.kind is Kind.ADDRESS:
        distinct, places = distinct_addresses(view.raw(name)[at])
        return places, lambda numbers: [address_text(distinct[place]) for place in numbers]
    if field.kind in (Kind.TEXT, Kind.ENUM):
        texts, places = view.texts(name)
        return places[at], lambda numbers: [texts[place] if place >= 0 else NO_GROUP for place in numbers]
    column = view.column(name)
    numbers = np.where(column.known, column.numbers.astype(np.int64), -1)
    return numbers[at], lambda some: [NO_GROUP if number < 0 else str(number) for number in some]


# --- since the start ------------------------------------------------------------------------------------------


class SeriesTotals:
    """The series of a set since the start: at most `most`, one for all others, and one for those that were replaced."""

    def __init__(self, declared: SeriesSet, most: int) -> None:
        self.declared = declared
        self._top = bool(declared.metrics.top)
        count = len(declared.metrics.labels)
        self._slots: dict[Key, int] = {(OTHERS,) * count: _OTHERS, (REPLACED,) * count: _REPLACED}
        self._free = list(range(_FIRST + most - 1, _FIRST - 1, -1))
        self._most = most
        self._until = np.zeros(_FIRST + most)
        self._gone: dict[Key, float] = {}
        self._gauges = {
            column
            for family in declared.families
            if family.kind is Kind.GAUGE
            for _, column in family.columns
        }
        self._sums: dict[str, Array] = {}
        self._known: dict[str, Mask] = {}
        self._rows = np.zeros(_FIRST + most, np.int64)
        for family in declared.families:
            shape = () if family.buckets is None else (len(chosen_edges(family.buckets)) + 2,)
            for _, column in family.columns:
                self._sums[column] = np.zeros((_FIRST + most, *shape))
                self._known[column] = np.zeros(_FIRST + most, bool)

    def add(self, reading: Grouped, now_s: float) -> None:
        """Add what a reading counted; `now_s` is that of a monotonic clock."""
        for name in self._gauges:
            self._sums[name][:] = 0
            self._known[name][:] = False
        slots = self._slots_of(reading, now_s)
        for name, sums in reading.sums.items():
            field = self.declared.table.by_name[name]
            self._sums[name] += _together(field, sums, slots, len(self._until))
            self._known[name][slots[reading.known[name]]] = True
            # So that the first of what they count is seen as an increase.
            self._known[name][_OTHERS] |= self._top and bool(reading.known[name].any())
        self._rows[:] = np.bincount(slots, reading.rows, len(self._until))

    def _slots_of(self, reading: Grouped, now_s: float) -> Index:
        """The slot of each group: its own, if it has one or gets one now, or that of all others."""
        weights = self._weights(reading)
        largest = as_list(np.argsort(-weights, kind="stable")[: self._most])
        keys = [reading.keys[at] for at in largest if weights[at] or not self._top]
        # First those that stay, so that none of them makes room for another.
        for slot in filter(None, map(self._slots.get, keys)):
            self._until[slot] = now_s + KEPT_S
        for key in keys:
            if key not in self._slots:
                self._admit(key, now_s)
        return np.array([self._slots.get(key, _OTHERS) for key in reading.keys], np.intp)

    def _weights(self, reading: Grouped) -> Array:
        """By how much each group is large: the numbers of the first metric."""
        if not self.declared.families:
            return reading.rows
        columns = [reading.sums[column] for _, column in self.declared.families[0].columns]
        weights: Array = np.add.reduce([_in_all(numbers) for numbers in columns])
        return weights

    def _admit(self, key: Key, now_s: float) -> None:
        """Give a new series a slot, unless all are taken by series that stay."""
        if self._gone.get(key, now_s) > now_s:
            return
        if not self._free:
            slots = ((old, slot) for old, slot in self._slots.items() if slot >= _FIRST)
            replaced = next((old for old, slot in slots if self._until[slot] <= now_s), None)
            if replaced is None or not self._top:
                return
            self._replace(self._slots.pop(replaced))
            self._gone = {old: until for old, until in self._gone.items() if until > now_s}
            self._gone[replaced] = now_s + GONE_S
        self._slots[key] = slot = self._free.pop()
        self._until[slot] = now_s + KEPT_S

    def _replace(self, slot: int) -> None:
        """Free a slot; what its series had counted stays in the sum."""
        for name, sums in self._sums.items():
            sums[_REPLACED] += sums[slot]
            self._known[name][_REPLACED] |= self._known[name][slot]
            sums[slot] = 0
            self._known[name][slot] = False
        self._free.append(slot)

    def series(self) -> Iterator[tuple[Key, int]]:
        """The labels of each series, and its slot. That of all others is there where it has counted, or may yet."""
        for key, slot in self._slots.items():
            is_used = slot >= _FIRST or any(sums[slot].any() for sums in self._sums.values())
            if is_used or (slot == _OTHERS and (self._top or self._rows[slot])):
                yield key, slot

    def value(self, column: str, slot: int) -> Array | None:
        """What a series has in a column: a number, or of a histogram its counts and its sum; None is unknown."""
        if not self._known[column][slot]:
            return None
        value: Array = self._sums[column][slot]
        return value

    def rows(self, slot: int) -> int:
        """How many rows a series has now."""
        return int(self._rows[slot])
