# SPDX-License-Identifier: Apache-2.0
"""Histories of a lens's watched totals and of a selected row's numbers over two minutes, and of its rows' histograms at
the newest refreshes."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import replace
from operator import attrgetter
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np

from nettop.query.filter import parse_filter
from nettop.query.query import screen_query
from nettop.query.view import View
from nettop.snapshots.arrays import Array, Index, as_list
from nettop.snapshots.schema import RATE, Kind, Table
from nettop.snapshots.snapshot import Frame, Snapshot
from nettop.widgets.blocks import sparkline
from nettop.widgets.durations import MAP_COLUMNS, PARTS, rebin

SPAN_NS = 120_000_000_000
_KEPT_SNAPSHOTS = 4
"""Number of snapshots kept across a recent span."""
Rates = TypeVar("Rates")


class Interval(NamedTuple, Generic[Rates]):
    """An interval of CLOCK_BOOTTIME, and rates per second in it: of each watched field, or of each row by its key."""

    begin_ns: int
    end_ns: int
    rates: Rates


Fields = Interval[tuple[float | None, ...]]
"""An interval with the rate of each watched field; None if unknown."""


def add_interval(intervals: deque[Fields], interval: Fields) -> None:
    """Add an interval, and evict those more than two minutes older."""
    intervals.append(interval)
    while intervals[0].end_ns < interval.end_ns - SPAN_NS:
        intervals.popleft()


def _until_ns(intervals: Sequence[Interval[Any]]) -> int:
    """Return the end of the newest interval, or 0 if there is none."""
    return intervals[-1].end_ns if intervals else 0


def _before(last: Snapshot | None, frame: Frame) -> Snapshot | None:
    """Return what the newest snapshot of a frame follows: the last one that was seen, even if the frame is averaged. Of
    several hosts only the frame knows, as each has its own interval."""
    both = [
        snapshot for snapshot in (None if frame.now.hosts else last, frame.before) if snapshot is not None
    ]
    return max(both, key=attrgetter("boot_ns"), default=None)


def sparkline_of(intervals: Sequence[Fields], field: int, cells: int) -> tuple[str, float | None]:
    """Return the averages of the field at this index as a sparkline, and the highest; see `averages`."""
    amounts = averages(intervals, field, cells)
    peak = max((amount for amount in amounts if amount is not None), default=None)
    return sparkline(amounts, peak or 0.0), peak


class TotalsHistory:
    """The totals of a table's watched fields in each interval between readings of the last two minutes.

    Missed readings leave a gap. Averaging over several intervals does not blur it, because it keeps the last reading.
    """

    def __init__(self, table: Table) -> None:
        self.table = table
        self.fields = [table.by_name[part] for part in table.watched_parts]
        self.intervals: deque[Fields] = deque()
        self._last: Snapshot | None = None

    def add(self, shown: View) -> None:
        """Add the interval that ends with the newest snapshot of a view, which may be of any table."""
        now, before = shown.frame.now, _before(self._last, shown.frame)
        if not self.fields:
            return
        self._last = now
        if before is None:
            return
        begin_ns = max(before.boot_ns, _until_ns(self.intervals))
        if begin_ns < now.boot_ns:
            add_interval(self.intervals, Interval(begin_ns, now.boot_ns, self._totals(shown, before)))

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


class RowHistory:
    """The values of some columns of one row in each interval, for two minutes."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names
        self.intervals: deque[Fields] = deque()

    def add(self, shown: View, at: Index) -> None:
        """Add the interval that ends with the newest snapshot, unless already added; the row's index may be empty."""
        before, now = shown.frame.before, shown.frame.now
        until_ns = _until_ns(self.intervals)
        if before is None or now.boot_ns <= until_ns:
            return
        columns = map(shown.column, self.names)
        numbers = tuple(float(c.numbers[at[0]]) if len(at) and c.known[at[0]] else None for c in columns)
        add_interval(self.intervals, Interval(max(before.boot_ns, until_ns), now.boot_ns, numbers))

    @property
    def covered_s(self) -> float:
        """Seconds covered, about two minutes at most."""
        return (self.intervals[-1].end_ns - self.intervals[0].begin_ns) / 1e9 if self.intervals else 0.0


def averages(intervals: Sequence[Fields], field: int, cells: int) -> list[float | None]:
    """Return the averages of the rate at this index in `cells` equal parts of the last two minutes; None if unknown.

    Parts begin at multiples of their length, so that columns move without changing. Times are multiplied by `cells`,
    so that this length is an integer, SPAN_NS: multiples of a rounded one drift with the time since boot.
    """
    first = -(-_until_ns(intervals) * cells // SPAN_NS) - cells
    amounts, known = [0.0] * cells, [0] * cells
    for begin_ns, end_ns, rates in intervals:
        rate, begin, end = rates[field], begin_ns * cells, end_ns * cells
        for cell in range(max(begin // SPAN_NS, first), -(-end // SPAN_NS)):
            overlap = min(end, (cell + 1) * SPAN_NS) - max(begin, cell * SPAN_NS)
            if rate is not None:
                amounts[cell - first] += rate * overlap
                known[cell - first] += overlap
    return [amount / parts if parts else None for amount, parts in zip(amounts, known, strict=True)]


# --- histograms -------------------------------------------------------------------------------------------------


class HistogramHistory:
    """The histograms of a table's rows at the newest refreshes: their counts per second in equal parts of the axis.

    Missed readings leave a gap. Averaging over several intervals does not blur it, because it keeps the last reading.
    """

    def __init__(self, table: Table) -> None:
        self._name = next(field.name for field in table.fields if field.kind is Kind.HISTOGRAM)
        self._query = replace(screen_query(table), gone=False)
        self._last: Snapshot | None = None
        self._refreshes: deque[Interval[Mapping[int, Array]]] = deque(maxlen=MAP_COLUMNS)

    def add(self, shown: View) -> None:
        """Add the interval that ends with the newest snapshot of a view, which may be of any table, unless already
        added."""
        frame = shown.frame
        before, self._last = _before(self._last, frame), frame.now
        until_ns = _until_ns(self._refreshes)
        if before is None or frame.now.boot_ns <= until_ns:
            return
        begin_ns = max(before.boot_ns, until_ns)
        if 0 < until_ns < begin_ns:
            self._refreshes.append(Interval(until_ns, begin_ns, {}))
        self._refreshes.append(Interval(begin_ns, frame.now.boot_ns, self._rates(Frame(frame.now, before))))

    def _rates(self, frame: Frame) -> dict[int, Array]:
        view = View(frame, self._query)
        counts = view.histogram(self._name)
        elapsed_s = np.broadcast_to(view.elapsed_by_row, view.size)
        counted = np.flatnonzero(counts.any(axis=1) & ~np.isnan(elapsed_s))
        rates = rebin(counts[counted], view.buckets(self._name), PARTS) / elapsed_s[counted, np.newaxis]
        keys = as_list(view.raw(view.table.key)[counted])
        return dict(zip(keys, rates.astype(np.float32), strict=True))

    def forget_rows(self) -> None:
        """Release the rows; keep their counts."""
        self._last = None

    def columns(self, key: int) -> Array:
        """Return the row's counts per second at each refresh, the newest last. Shape (refreshes, `PARTS`)."""
        nothing = np.zeros(PARTS, np.float32)
        return np.array([refresh.rates.get(key, nothing) for refresh in self._refreshes]).reshape(-1, PARTS)

    def span_s(self, refreshes: int) -> float:
        """Return the time covered by the newest refreshes."""
        newest = list(self._refreshes)[-refreshes:]
        return (newest[-1].end_ns - newest[0].begin_ns) / 1e9 if newest else 0.0


class RecentSnapshots:
    """Snapshots of one table, up to `span_s` old or a little older: few enough to take little memory."""

    def __init__(self, table: Table, span_s: float) -> None:
        self._table = table
        self._spacing_ns = round(span_s * 1e9) // _KEPT_SNAPSHOTS
        self._kept: list[Snapshot] = []

    def add(self, now: Snapshot) -> Snapshot:
        """Add the newest snapshot, unless it follows closely on another one; return the oldest kept one."""
        longest_ns = (_KEPT_SNAPSHOTS + 1) * self._spacing_ns
        self._kept = [snapshot for snapshot in self._kept if 0 <= now.boot_ns - snapshot.boot_ns < longest_ns]
        if not self._kept or now.boot_ns - self._kept[-1].boot_ns >= self._spacing_ns:
            tables = {name: rows for name, rows in now.tables.items() if name == self._table.name}
            self._kept.append(replace(now, tables=tables))
        return self._kept[0]

    def forget(self) -> None:
        """Release the snapshots."""
        self._kept.clear()
