# SPDX-License-Identifier: Apache-2.0
"""Histories of a lens's watched totals and of a selected row's numbers over two minutes, and of its rows' histograms at
the newest refreshes."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import replace
from operator import attrgetter
from typing import NamedTuple

import numpy as np

from nettop.query.filter import parse_filter
from nettop.query.query import screen_query
from nettop.query.view import View
from nettop.snapshots.arrays import Array, as_list
from nettop.snapshots.schema import RATE, Field, Kind, Table
from nettop.snapshots.snapshot import Frame, Snapshot
from nettop.widgets.heat_map import COLUMNS, PARTS
from nettop.widgets.histogram import rebin

SPAN_NS = 120_000_000_000


class Interval(NamedTuple):
    """An interval of CLOCK_BOOTTIME, and the rate per second of each watched field; None if unknown."""

    begin_ns: int
    end_ns: int
    rates: tuple[float | None, ...]


class TotalsHistory:
    """The totals of a table's watched fields in each interval between readings of the last two minutes.

    Missed readings leave a gap. Averaging over several intervals does not blur it, because it keeps the last reading.
    """

    def __init__(self, table: Table) -> None:
        self.table = table
        self._last: Snapshot | None = None
        self._until_ns = 0
        self.intervals: deque[Interval] = deque()

    @property
    def fields(self) -> list[Field]:
        """Fields whose totals are recorded."""
        return [self.table.by_name[part] for part in self.table.watched_parts]

    def add(self, shown: View) -> None:
        """Add the interval that ends with the newest snapshot of a view, which may be of any table."""
        now = shown.frame.now
        earlier = [each for each in (self._last, shown.frame.before) if each is not None]
        self._last = now if self.fields else None
        if not self.fields or not earlier:
            return
        before = max(earlier, key=attrgetter("boot_ns"))
        begin_ns = max(before.boot_ns, self._until_ns)
        if begin_ns < now.boot_ns:
            self.append(Interval(begin_ns, now.boot_ns, self._totals(shown, before)))

    def append(self, interval: Interval) -> None:
        """Add an interval, and evict those more than two minutes older."""
        _add(self.intervals, interval)
        self._until_ns = interval.end_ns

    def _totals(self, shown: View, before: Snapshot) -> tuple[float | None, ...]:
        """Return the totals between an earlier snapshot and the newest; reuse the view if it is of the table."""
        view = shown
        if shown.table is not self.table or before is not shown.frame.before:
            view = View(Frame(shown.frame.now, before), replace(screen_query(self.table), gone=False))
        at = np.flatnonzero(parse_filter(self.table, self.table.whole).mask(view))
        return tuple(view.total(field.name + RATE, at) for field in self.fields)

    def forget_rows(self) -> None:
        """Release the rows; keep the totals."""
        self._last = None

    def averages(self, field: int, cells: int) -> list[float | None]:
        """Return the averages of the field at this index; see `averages`."""
        return averages(self.intervals, field, cells)


class RowHistory:
    """The values of some columns of one row in each interval since its details were opened, for two minutes."""

    def __init__(self, key: int, names: Sequence[str]) -> None:
        self.key = key
        self.names = names
        self.intervals: deque[Interval] = deque()

    def add(self, shown: View) -> None:
        """Add the interval that ends with the newest snapshot, unless already added."""
        before, now = shown.frame.before, shown.frame.now
        until_ns = self.intervals[-1].end_ns if self.intervals else 0
        if before is None or now.boot_ns <= until_ns:
            return
        at = np.flatnonzero((shown.raw(shown.table.key) == self.key) & ~shown.gone)
        columns = map(shown.column, self.names)
        numbers = tuple(float(c.numbers[at[0]]) if len(at) and c.known[at[0]] else None for c in columns)
        _add(self.intervals, Interval(max(before.boot_ns, until_ns), now.boot_ns, numbers))

    @property
    def covered_s(self) -> float:
        """Seconds covered, about two minutes at most."""
        return (self.intervals[-1].end_ns - self.intervals[0].begin_ns) / 1e9 if self.intervals else 0.0


def _add(intervals: deque[Interval], interval: Interval) -> None:
    """Add an interval, and evict those more than two minutes older."""
    intervals.append(interval)
    while intervals[0].end_ns < interval.end_ns - SPAN_NS:
        intervals.popleft()


def averages(intervals: Sequence[Interval], field: int, cells: int) -> list[float | None]:
    """Return the averages of the rate at this index in `cells` equal parts of the last two minutes; None if unknown.

    Parts begin at multiples of their length, so that columns move without changing.
    """
    cell_ns = SPAN_NS // cells
    until_ns = intervals[-1].end_ns if intervals else 0
    first = -(-until_ns // cell_ns) - cells
    amounts, known_ns = [0.0] * cells, [0] * cells
    for begin_ns, end_ns, rates in intervals:
        rate = rates[field]
        for cell in range(max(begin_ns // cell_ns, first), -(-end_ns // cell_ns)):
            overlap_ns = min(end_ns, (cell + 1) * cell_ns) - max(begin_ns, cell * cell_ns)
            if rate is not None:
                amounts[cell - first] += rate * overlap_ns
                known_ns[cell - first] += overlap_ns
    return [amount / ns if ns else None for amount, ns in zip(amounts, known_ns, strict=True)]


# --- histograms -------------------------------------------------------------------------------------------------


class _Refresh(NamedTuple):
    """An interval of CLOCK_BOOTTIME, and the rows' counts per second by key, in equal parts of the axis."""

    begin_ns: int
    end_ns: int
    rates: Mapping[int, Array]


class HistogramHistory:
    """The histograms of a table's rows at the newest refreshes.

    Missed readings leave a gap. Averaging over several intervals does not blur it, because it keeps the last reading.
    """

    def __init__(self, table: Table) -> None:
        self._name = next(field.name for field in table.fields if field.kind is Kind.HISTOGRAM)
        self._query = replace(screen_query(table), gone=False)
        self._last: Snapshot | None = None
        self._refreshes: deque[_Refresh] = deque(maxlen=COLUMNS)

    def add(self, frame: Frame) -> None:
        """Add the interval that ends with the frame's newest snapshot, unless already added."""
        earlier = [each for each in (self._last, frame.before) if each is not None]
        self._last = frame.now
        until_ns = self._refreshes[-1].end_ns if self._refreshes else 0
        if not earlier or frame.now.boot_ns <= until_ns:
            return
        before = max(earlier, key=attrgetter("boot_ns"))
        begin_ns = max(before.boot_ns, until_ns)
        if 0 < until_ns < begin_ns:
            self._refreshes.append(_Refresh(until_ns, begin_ns, {}))
        self._refreshes.append(_Refresh(begin_ns, frame.now.boot_ns, self._rates(Frame(frame.now, before))))

    def _rates(self, frame: Frame) -> dict[int, Array]:
        view = View(frame, self._query)
        counts = view.histogram(self._name)
        counted = np.flatnonzero(counts.any(axis=1))
        rates = rebin(counts[counted], view.buckets(self._name), PARTS) / (view.elapsed_s or 1.0)
        keys = as_list(view.raw(view.table.key)[counted])
        return dict(zip(keys, rates.astype(np.float32), strict=True))

    def forget_rows(self) -> None:
        """Release the rows; keep their counts."""
        self._last = None

    def columns(self, key: int) -> Array:
        """Return the row's counts per second at each refresh, the newest last. Shape (refreshes, `PARTS`)."""
        nothing = np.zeros(PARTS, np.float32)
        return np.array([each.rates.get(key, nothing) for each in self._refreshes]).reshape(-1, PARTS)

    def span_s(self, refreshes: int) -> float:
        """Return the time covered by the newest refreshes."""
        newest = list(self._refreshes)[-refreshes:]
        return (newest[-1].end_ns - newest[0].begin_ns) / 1e9 if newest else 0.0
