# SPDX-License-Identifier: Apache-2.0
"""A frame as every frontend shows it: joined, with rates, filtered and sorted, each computed once."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np

from nettop.query.columns import Columns, Names
from nettop.query.filter import parse_filter
from nettop.query.joined_rows import cached_by_name
from nettop.query.query import Query
from nettop.query.values import values_of
from nettop.snapshots.arrays import Array, Index, Mask
from nettop.snapshots.hooks import NOT_AVAILABLE
from nettop.snapshots.schema import RATE, Field, Kind
from nettop.snapshots.snapshot import Frame, Rows, Snapshot
from nettop.snapshots.thresholds import rules_of


class View(Columns):
    """The columns of a frame seen through a query: the rows shown, their order, and their totals.

    `order` are the positions of the rows that match the filters, sorted. If the query keeps closed or gone rows, they
    follow those of the newest snapshot (see JoinedRows), as do `earlier` ones. `last` are the columns of the previous
    frame, or what the view of the same frame has `left` of them.
    """

    def __init__(
        self,
        frame: Frame,
        query: Query,
        names: Names | None = None,
        last: Columns | None = None,
        *,
        all_batches: bool = False,
        earlier: Rows | None = None,
        recent: Snapshot | None = None,
    ) -> None:
        super().__init__(
            frame, query.table, all_batches=all_batches, earlier=earlier, closed=query.closed, gone=query.gone
        )
        self.query = query
        self.deltas = query.deltas
        self.recent = recent
        self._names = names
        # Copies of few rows: a frame that is no longer shown keeps no reading in memory.
        self.left = None if last is None else last.only(self.raw(self.table.key)[self.just_gone_at])

    @property
    def snapshot(self) -> Snapshot:
        """The newest snapshot."""
        return self.frame.now

    def values(self, name: str, at: Index) -> list[Any]:
        """Return the column's values for the rows at `at`, as native Python types; see `values_of`."""
        return values_of(self, name, at)

    # --- chosen and ordered rows ------------------------------------------------------------------------

    @cached_property
    def order(self) -> Index:
        """Positions of the rows to show, sorted."""
        ordered = self._matching[self._sorted(self._matching)]
        return ordered if self.query.limit is None else ordered[: self.query.limit]

    @cached_property
    def shown(self) -> Index:
        """Positions of the rows to show, ascending."""
        return self._matching if self.query.limit is None else np.sort(self.order)

    @cached_property
    def _matching(self) -> Index:
        """Positions of the rows that match the filters, ascending."""
        return np.flatnonzero(self.scope & self.query.filter.mask(self) & ~self.empty_rest)

    @property
    def is_full(self) -> bool:
        """True if older rows may have been dropped: an append table holds as many rows as are kept."""
        return self.table.append and self.size >= self.table.kept_rows

    @cached_property
    def scope(self) -> Mask:
        """The mask of rows that match the table's default filter or have an unknown value in it, and of rows with
        nonzero watched counters, because headlines show their totals.

        All rows if the query asks for them or selects those of a finding, or if this kernel does not support a column
        of the filter.
        """
        default = parse_filter(self.table, self.table.default_filter)
        wanted = self.query.filter.text
        seeks_finding = any(
            wanted.endswith((rule.filter, f"({rule.filter})")) for rule in rules_of(self.table)
        )
        if self.query.all_rows or seeks_finding or self.missing.keys() & set(default.names):
            return np.ones(self.size, bool)
        passes = default.mask(self)
        for name in default.names:
            passes = passes | ~self.known(name)
        for name in self.table.watched_parts:
            passes = passes | (self.known(name) & (self.raw(name) > 0))
        return passes

    @cached_property
    def filter_remarks(self) -> list[str]:
        """Remarks for the user on unsupported columns in the filter and the order: comparisons with them are never
        true, and sorting by them has no effect."""
        used = dict.fromkeys((*self.query.filter.names, self.query.sort.field))
        return [
            f"{name} is {NOT_AVAILABLE} here: {self.missing[name]}" for name in used if name in self.missing
        ]

    def _sorted(self, shown: Index) -> Index:
        """Return positions in `shown` in the query's order: stable, unknown values last."""
        sort = self.query.sort
        field = self.table.by_name.get(sort.field)
        parts = field.parts if field and field.kind in (Kind.ENDPOINT, Kind.GROUP) else (sort.field,)
        keys: list[Array] = []
        for column in map(self.column, parts):
            numbers, present = column.numbers[shown], column.known[shown]
            if sort.descending:
                numbers = -numbers if numbers.dtype.kind == "f" else ~numbers
            keys += [numbers] if present.all() else [~present, np.where(present, numbers, 0)]
        return np.argsort(keys[0], kind="stable") if len(keys) == 1 else np.lexsort(keys[::-1])

    # --- totals -----------------------------------------------------------------------------------------

    def total(self, name: str, at: Index, *, with_closed: bool = False) -> float | None:
        """Return the sum of a column's known values in the rows at `at`; None if none is known.

        Ended rows are part of per-interval sums, and of cumulative ones through the rest; rows that disappeared without
        last values are in neither; `with_closed` adds both to every sum. There is no per-interval sum if the interval
        was covered only in part. Rows included in another one of these rows count once. The total of a ratio is the
        ratio of the sums, that of a quantile the quantile of the merged histograms. A histogram has none.
        """
        field = self.table.by_name.get(name)
        if field is not None and field.kind is Kind.RATIO:
            over, under = (self.total(part, at, with_closed=with_closed) for part in field.parts)
            ratio = over / under if over is not None and under else None
            return min(ratio, 1.0) if ratio is not None and field.share else ratio
        if field is not None and field.kind is Kind.HISTOGRAM:
            return None
        if self.table.included_in:
            at = at[~np.isin(self.raw(self.table.included_in)[at], self.raw(self.table.key)[at])]
        is_difference = name.endswith(RATE) or self.deltas
        counted = self.table.by_name[name.removesuffix(RATE)] if field is None else field
        if is_difference and not self.is_whole and counted.kind in (Kind.COUNTER, Kind.SUM):
            return None
        listed = len(self.now) + (len(self._ended_rows) if is_difference else 0)
        if listed < self.size and not with_closed:
            at = at[(at < listed) | self.rest[at]]
        if field is not None and field.kind is Kind.QUANTILE:
            return self._merged_quantile(field, at)
        column = self.column(name)
        known = column.known[at]
        numbers = column.numbers[at] if known.all() else column.numbers[at[known]]
        return float(numbers.sum(dtype=np.float64)) if len(numbers) else None

    @cached_by_name
    def largest(self, name: str) -> float:
        """Return the largest known number of a column among the rows shown; 0 if there is none."""
        column = self.column(name)
        return float(np.where(column.known, column.numbers, 0)[self.shown].max(initial=0))

    def per_second(self, count: int) -> float | None:
        """Convert a count since the previous snapshot to a rate; None without a previous one."""
        return None if self.elapsed_s is None else count / self.elapsed_s

    def count_rate(self, name: str) -> float | None:
        """Return the growth per second of a snapshot count since the previous snapshot.

        None if only one of the two has it, or if it went back because its source was restarted.
        """
        now, before = self.frame.now, self.frame.before
        if before is None or name not in now.counts or name not in before.counts:
            return None
        added, elapsed_ns = now.counts[name] - before.counts[name], now.boot_ns - before.boot_ns
        return added * 1e9 / elapsed_ns if added >= 0 and elapsed_ns > 0 else None

    def count_by(self, name: str, at: Index) -> dict[str, int]:
        """Count the rows at `at` by the label of an enum column, the most frequent first."""
        if name in self.missing:
            return {}
        labels = self.table.by_name[name].labels
        numbers, counts = np.unique(self.raw(name)[at], return_counts=True)
        by_label = {labels.get(int(n), str(n)): int(c) for n, c in zip(numbers, counts, strict=True)}
        return dict(sorted(by_label.items(), key=lambda item: -item[1]))

    def _merged_quantile(self, field: Field, at: Index) -> float | None:
        (part,) = field.parts
        merged = self.histogram(part)[at].sum(axis=0, keepdims=True)
        number = float(self.buckets(part).quantiles(merged, field.quantile)[0])
        return None if np.isnan(number) else number
