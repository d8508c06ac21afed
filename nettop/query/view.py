# SPDX-License-Identifier: Apache-2.0
"""What every frontend shows of a frame: joins, rates, filter and order, each computed once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from nettop.query.address import (
    address_bytes,
    address_text,
    distinct_addresses,
    endpoint_text,
    is_link_local,
)
from nettop.query.batches import KEPT_ROWS, empty_rows, put_together
from nettop.query.filter import parse_filter
from nettop.query.query import Query
from nettop.query.times import rfc3339_all
from nettop.snapshots.arrays import Index, Mask, as_list, joined, positions, take
from nettop.snapshots.histograms import Buckets
from nettop.snapshots.hooks import NOT_AVAILABLE
from nettop.snapshots.schema import BEGAN, RATE, Field, Kind
from nettop.snapshots.snapshot import (
    Array,
    Frame,
    Rows,
    Snapshot,
    known,
    known_histograms,
    sum_of,
    unknown_value,
)

Names = Callable[[bytes], "str | None"]
"""Gives the name of a 16-byte address if it is known by now."""


@dataclass(frozen=True, eq=False, slots=True)
class ColumnValues:
    """Numbers of one column, a value a row, and which of them are known. Shapes (n,) and (n,).

    Of a histogram's counts the numbers have the shape (n, buckets).
    """

    numbers: Array
    known: Mask


class View:
    """A frame seen through a query. Columns are computed when first used, and kept.

    `rows` are all rows of the table, the newest snapshot's first. Where the query keeps them there follow those that
    ended since the snapshot before, with their last values; then one row, the `rest`, for what ended and is not listed,
    so that differences add up to all that was counted; then those that have just gone, nobody knows how. `gone` says
    which rows are there no more. `order` are positions in `rows`: those that pass the filters, sorted.

    With `last`, the view of the frame before, a row that has gone without last values shows the rates of its last
    interval, and so keeps its place. `earlier` are rows that had left before, to be shown still, after all others: they
    have their last totals, no rates, and no part in any sum. One that is back, or leaves just now, is shown once.

    A table to which rows are only added has the `newest` of them (None: all in the frame); no row of it goes, and
    none has a rate. A table that is not in the frame yet has no rows.

    `missing` columns have no values; frontends show `n/a` in their place.
    """

    def __init__(
        self,
        frame: Frame,
        query: Query,
        names: Names | None = None,
        last: View | None = None,
        newest: int | None = KEPT_ROWS,
        *,
        earlier: Rows | None = None,
    ) -> None:
        self.frame = frame
        self.query = query
        self.table = query.table
        self.before: Rows | None = None
        if self.table.append:
            self.now = put_together(self.table, frame.batches.get(self.table.name, ()), newest)
        else:
            now = frame.now.tables.get(self.table.name)
            self.now = empty_rows(self.table) if now is None else now
            before = frame.before.tables.get(self.table.name) if frame.before else None
            self.before = before if before is None or before.variant == self.now.variant else None
        self._earlier = (
            earlier if earlier is not None and earlier.array.dtype == self.now.array.dtype else None
        )
        if self._earlier is not None:
            self.now = _with_texts_of(self.now, self._earlier)
        self._left = frame.now.ended.get(self.table.name) if query.closed else None
        self._names = names
        self._last = last
        if last is not None:
            last._last = None  # two frames are remembered, not all
        self._raw: dict[str, Array] = {}
        self._columns: dict[str, ColumnValues] = {}
        self._counts: dict[str, ColumnValues] = {}
        self._largest: dict[str, float] = {}
        self._texts: dict[str, tuple[list[str], Array]] = {}

    @property
    def snapshot(self) -> Snapshot:
        """The newest snapshot."""
        return self.frame.now

    @property
    def has_names(self) -> bool:
        """True where addresses may have names, which then are part of their texts."""
        return self._names is not None

    @cached_property
    def elapsed_s(self) -> float | None:
        """Seconds between the two snapshots; None when there is only one."""
        if self.before is None or self.now.taken_ns <= self.before.taken_ns:
            return None
        return (self.now.taken_ns - self.before.taken_ns) / 1e9

    @cached_property
    def is_whole(self) -> bool:
        """Whether every hook worked when the interval began: else what rows have gained is not all there was."""
        before = self.frame.before
        return before is None or before.boot_ns >= self.snapshot.whole_since_ns

    @cached_property
    def missing(self) -> Mapping[str, str]:
        """Each column that this kernel or host does not support, rates and composites included, and why.

        It has no values, whatever the rows contain.
        """
        lacking = self.snapshot.missing
        missing = {}
        for name in self.table.names if lacking else ():
            field = self.table.by_name.get(name) or self.table.by_name[name.removesuffix(RATE)]
            # A group needs its first part only; every other composite needs all its parts.
            needed = field.parts[:1] if field.kind is Kind.GROUP else field.parts
            why = next((lacking[part] for part in (field.name, *needed) if part in lacking), None)
            if why is not None:
                missing[name] = why
        return missing

    # --- rows -------------------------------------------------------------------------------------------

    @cached_property
    def rows(self) -> Array:
        """Every row, unsorted, as a structured array. For one column `raw(name)` is quicker."""
        return joined(*self._parts) if len(self._parts) > 1 else self.now.array

    @cached_property
    def size(self) -> int:
        """How many rows there are, filtered out or not."""
        return sum(map(len, self._parts))

    @cached_property
    def gone(self) -> Mask:
        """Which rows are there no more: all but those of the newest snapshot."""
        return np.arange(self.size) >= len(self.now)

    @cached_property
    def just_gone(self) -> Mask:
        """Which rows have gone since the snapshot before."""
        return self.gone & (np.arange(self.size) < self.size - len(self._earlier_rows))

    @property
    def closed(self) -> tuple[Rows, ...]:
        """The rows that have left the table since the snapshot before, as far as they are listed, with their texts."""
        return (*self._ended, *self._gone)

    @cached_property
    def rest(self) -> Mask:
        """Which row stands for what ended and is not listed: one, or none."""
        at = np.arange(self.size) - len(self.now) - len(self._ended_rows)
        rest: Mask = (at == 0) & (self._left is not None)
        return rest

    @cached_property
    def order(self) -> Index:
        """Positions of the rows to show, in their order."""
        passes = self.scope & self.query.filter.mask(self)
        shown = np.flatnonzero(passes if self.has_rest else passes & ~self.rest)
        ordered = shown[self._sorted(shown)]
        return ordered if self.query.limit is None else ordered[: self.query.limit]

    @property
    def is_full(self) -> bool:
        """True where older rows than these may be gone: as many as are kept of a table to which rows are added."""
        return self.table.append and self.size >= KEPT_ROWS

    @cached_property
    def scope(self) -> Mask:
        """The rows that the table's default filter passes, or for which it compares an unknown value, and those that
        counted any of what is watched: headlines show its totals.

        All of them where the query asks for that, or this kernel does not support a column that it compares.
        """
        default = parse_filter(self.table, self.table.default_filter)
        if self.query.all_rows or self.missing.keys() & set(default.names):
            return np.ones(self.size, bool)
        passes = default.mask(self)
        for name in default.names:
            passes = passes | ~self.known(name)
        for name in self.table.watched_parts:
            passes = passes | (self.known(name) & (self.raw(name) > 0))
        return passes

    @cached_property
    def filter_remarks(self) -> list[str]:
        """What the user should know of the filter and the order: which of their columns are not supported, so that no
        comparison with them is true, or the order means nothing."""
        used = dict.fromkeys((*self.query.filter.names, self.query.sort.field))
        return [
            f"{name} is {NOT_AVAILABLE} here: {self.missing[name]}" for name in used if name in self.missing
        ]

    @cached_property
    def appeared(self) -> Mask:
        """Which rows were not in the snapshot before; none where there is no such snapshot."""
        return np.zeros(self.size, bool) if self.before is None else (self.before_at < 0) & ~self.gone

    # --- columns ----------------------------------------------------------------------------------------

    def raw(self, name: str) -> Array:
        """A stored column as the snapshot has it, a value a row: contiguous, so that it is read quickly."""
        column = self._raw.get(name)
        if column is None:
            columns = [part[name] for part in self._parts]
            column = np.concatenate(columns, dtype=columns[0].dtype)
            self._raw[name] = column
        return column

    def column(self, name: str) -> ColumnValues:
        """The numbers of a column: what sorting, comparing and summing work on.

        A text or an address has ranks that order as the text or the address does; a histogram, which has no order, as
        much as it counted.
        """
        column = self._columns.get(name)
        if column is None:
            column = self._columns[name] = self._make_column(name)
        return column

    def buckets(self, name: str) -> Buckets:
        """The buckets of a histogram."""
        buckets = self.table.by_name[name].buckets
        assert buckets is not None, f"{name} is no histogram"
        return buckets

    def histogram(self, name: str) -> Array:
        """What a histogram counted in each bucket: in total, or in what the last interval added. Shape (n, buckets).

        A row counts nothing where its histogram is unknown. So does, in an interval, one of which a count went back,
        and the rest.
        """
        return self._histogram_counts(name).numbers

    def known(self, name: str) -> Mask:
        """Which rows have a value in a stored column; of a composite one, those in which it can be made at all."""
        if name in self.missing:
            return np.zeros(self.size, bool)
        is_composite = self.table.by_name[name].is_composite
        return np.ones(self.size, bool) if is_composite else self._present(name, self.raw(name))

    def values(self, name: str, at: Index) -> list[Any]:
        """The column's values for the rows at `at`, as Python's own types; None is unknown.

        Numbers are in base units; an enum is its label, an address its text, a time RFC 3339. A histogram is a list of
        [low, high, count] for each bucket that has any: it counts numbers from `low` on and below `high`, which is None
        for the last bucket.
        """
        if name in self.missing:
            return [None] * len(at)
        field = self.table.by_name.get(name)
        if field is None:
            return self._number_values(name, at)
        maker = {
            Kind.TEXT: self._text_values,
            Kind.ENUM: self._enum_values,
            Kind.ADDRESS: self._address_values,
            Kind.ENDPOINT: self._endpoint_values,
            Kind.GROUP: self._group_values,
            Kind.HISTOGRAM: self._histogram_values,
            Kind.QUANTILE: self._quantile_values,
        }.get(field.kind)
        if field.kind is Kind.TIME:
            return list(rfc3339_all(self._number_values(name, at)))
        return self._number_values(name, at) if maker is None else maker(field, at)

    def total(self, name: str, at: Index) -> float | None:
        """The sum of what is known of a column in the rows at `at`; None when nothing is.

        What ended is part of a difference, and in totals part of the rest; what is gone, nobody knows how, of neither.
        A difference has no total where the interval was watched in part. What another one of these rows includes counts
        once. For a ratio it is the ratio of the sums, for a quantile that of the merged histograms: what all these rows
        together have. A histogram has none.
        """
        field = self.table.by_name.get(name)
        if field is not None and field.kind is Kind.RATIO:
            over, under = (self.total(part, at) for part in field.parts)
            return over / under if over is not None and under else None
        if field is not None and field.kind is Kind.HISTOGRAM:
            return None
        if self.table.included_in:
            at = at[~np.isin(self.raw(self.table.included_in)[at], self.raw(self.table.key)[at])]
        is_difference = name.endswith(RATE) or self.query.deltas
        counted = self.table.by_name[name.removesuffix(RATE)] if field is None else field
        if is_difference and not self.is_whole and counted.kind in (Kind.COUNTER, Kind.SUM):
            return None
        listed = len(self.now) + (len(self._ended_rows) if is_difference else 0)
        if listed < self.size:
            at = at[(at < listed) | self.rest[at]]
        if field is not None and field.kind is Kind.QUANTILE:
            return self._merged_quantile(field, at)
        column = self.column(name)
        numbers = column.numbers[at][column.known[at]]
        return float(numbers.sum(dtype=np.float64)) if len(numbers) else None

    def largest(self, name: str) -> float:
        """The largest known number of a column among the rows that are shown; 0 where there is none."""
        largest = self._largest.get(name)
        if largest is None:
            column = self.column(name)
            shown = np.where(column.known, column.numbers, 0)[self.order]
            largest = self._largest[name] = float(shown.max(initial=0))
        return largest

    def per_second(self, count: int) -> float | None:
        """`count` of what came or went since the snapshot before, as a rate; None without that snapshot."""
        return None if self.elapsed_s is None else count / self.elapsed_s

    def count_rate(self, name: str) -> float | None:
        """How much one of the snapshot's counts grew since the snapshot before, per second.

        None where only one of the two has it, and where it went back because its source was restarted.
        """
        now, before = self.frame.now, self.frame.before
        if before is None or name not in now.counts or name not in before.counts:
            return None
        added, elapsed_ns = now.counts[name] - before.counts[name], now.boot_ns - before.boot_ns
        return added * 1e9 / elapsed_ns if added >= 0 and elapsed_ns > 0 else None

    def count_by(self, name: str, at: Index) -> dict[str, int]:
        """How many of the rows at `at` have each label of an enum column, the most frequent first."""
        if name in self.missing:
            return {}
        labels = self.table.by_name[name].labels
        numbers, counts = np.unique(self.raw(name)[at], return_counts=True)
        by_label = {labels.get(int(n), str(n)): int(c) for n, c in zip(numbers, counts, strict=True)}
        return dict(sorted(by_label.items(), key=lambda item: -item[1]))

    def texts(self, name: str) -> tuple[list[str], Array]:
        """The distinct texts of a text, enum or address column, and for each row the place of its text.

        A row without a value has the place −1. What matches words runs once per distinct text. An address
        whose name is known has both in its text: "203.0.113.9 example.com".
        """
        texts = self._texts.get(name)
        if texts is None:
            field = self.table.by_name[name]
            make = self._address_texts if field.kind is Kind.ADDRESS else self._coded_texts
            texts = ([], np.full(self.size, -1)) if name in self.missing else make(field)
            self._texts[name] = texts
        return texts

    # --- joining the two snapshots ----------------------------------------------------------------------

    @cached_property
    def _parts(self) -> tuple[Array, ...]:
        """The rows: of the newest snapshot, those that ended, the rest, and those that have gone."""
        rest = () if self._left is None else (self._with_texts(self._left.total),)
        parts = (self.now.array, self._ended_rows, *rest, self._gone_rows, self._earlier_rows)
        return (self.now.array, *(part for part in parts[1:] if len(part)))

    @cached_property
    def _ended_rows(self) -> Array:
        """The last values of what ended since the snapshot before, as far as they are listed."""
        return joined(self.now.array[:0], *map(self._with_texts, self._ended))

    @property
    def _ended(self) -> list[Rows]:
        if self._left is None or self.before is None:
            return []
        return [rows for rows in self._left.rows if rows.taken_ns > self.before.taken_ns]

    @property
    def unlisted(self) -> int:
        """How many rows have left since the snapshot before and are not listed: too many, or too long ago."""
        if self._left is None or self.frame.before is None:
            return 0
        before = self.frame.before.ended.get(self.table.name)
        count = self._left.count - (0 if before is None else before.count)
        return max(0, count - sum(map(len, self._ended)))

    @cached_property
    def _listed_before_at(self) -> Index:
        """For each row of the newest snapshot, and of what ended, its position in the snapshot before, or −1."""
        key = self.table.key
        keys = np.concatenate([self.now.array[key], self._ended_rows[key]])
        return np.full(len(keys), -1) if self.before is None else positions(keys, self.before.array[key])

    @cached_property
    def before_at(self) -> Index:
        """For each row its position in the snapshot before, or −1, also where it has no newest value to compare."""
        listed = self._listed_before_at
        return np.concatenate([listed, np.full(self.size - len(listed), -1)])

    @cached_property
    def _left_at(self) -> Index:
        """The rows of the snapshot before that are listed no more, by their positions in it."""
        left = np.ones(0 if self.before is None else len(self.before), bool)
        left[self._listed_before_at[self._listed_before_at >= 0]] = False
        return np.flatnonzero(left)

    @cached_property
    def _gone_rows(self) -> Array:
        """Copies of the rows that have gone since the snapshot before, with this snapshot's text codes."""
        return joined(self.now.array[:0], *map(self._with_texts, self._gone))

    @property
    def _gone(self) -> list[Rows]:
        if not self.query.gone or self.before is None or self.before.array.dtype != self.now.array.dtype:
            return []
        return [replace(self.before, array=take(self.before.array, self._left_at))]

    @cached_property
    def _earlier_rows(self) -> Array:
        """The rows that had left before, but those that are listed otherwise."""
        if self._earlier is None:
            return self.now.array[:0]
        rows, key = self._with_texts(self._earlier), self.table.key
        others = np.concatenate([self.now.array[key], self._ended_rows[key], self._gone_rows[key]])
        return take(rows, np.flatnonzero(~np.isin(rows[key], others)))

    def _with_texts(self, rows: Rows) -> Array:
        """The rows with codes into this snapshot's texts; a copy where the codes differ."""
        array = rows.array
        for field in self.table.stored if len(array) else ():
            if field.kind is Kind.TEXT and rows.texts[field.name] is not self.now.texts[field.name]:
                array = array.copy()
                array[field.name] = recoded(
                    array[field.name], rows.texts[field.name], self.now.texts[field.name]
                )
        return array

    def _difference(self, name: str) -> ColumnValues:
        """What the last interval added to a counter. A counter that went back has no difference."""
        added = self._added(name)
        added.numbers[self.rest] = rest = self._unlisted(name)
        added.known[self.rest] = rest > 0
        return added

    def _added(self, name: str) -> ColumnValues:
        """What the last interval added to each row's count, or to all counts of its histogram."""
        now, was_there = self.raw(name), self.before_at >= 0
        if self.before is None or self.elapsed_s is None:
            return ColumnValues(np.zeros_like(now), np.zeros(len(now), bool))
        then = np.zeros_like(now)
        then[was_there] = self.before.array[name][self.before_at[was_there]]
        previous = self.frame.before
        # A row that is new, or had no value yet, was at 0 before, if the column was counted then.
        is_counted = previous is not None and name not in previous.missing
        begins = self._begins_at_zero & ~(was_there & self._present(name, then)) & is_counted
        then[begins] = 0
        grew = now >= then if now.ndim == 1 else (now >= then).all(axis=1)
        valid = (was_there | begins) & self._present(name, now) & self._present(name, then) & grew
        numbers = now - then
        numbers[~valid] = 0
        return ColumnValues(numbers, valid)

    @cached_property
    def _begins_at_zero(self) -> Mask:
        """Which rows had counted nothing before they were listed: those that the source saw begin."""
        listed = np.arange(self.size) < len(self._listed_before_at)
        if self.table.begins_at_zero:
            return listed
        has_flag = BEGAN in (self.now.array.dtype.names or ())
        return listed & (self.raw(BEGAN) == 1) if has_flag else np.zeros(self.size, bool)

    def _unlisted(self, name: str) -> int:
        """What the last interval added to a counter in rows that ended and are not listed.

        All that ended in it, less what is listed, less what rows had counted before that have no number now.
        """
        if self._left is None or self.before is None or self.frame.before is None or not self.is_whole:
            return 0
        left_before = self.frame.before.ended.get(self.table.name)
        ended = sum_of(self._left.total.array[name])
        ended_before = 0 if left_before is None else sum_of(left_before.total.array[name])
        unlisted = ended - ended_before - sum_of(self._ended_rows[name])
        if unlisted <= 0:
            return 0
        listed = known(np.concatenate([self.now.array[name], self._ended_rows[name]]))
        left = np.delete(
            self.before.array[name], self._listed_before_at[listed & (self._listed_before_at >= 0)]
        )
        return max(0, unlisted - sum_of(left))

    @cached_property
    def has_rest(self) -> bool:
        """Whether something has ended that is not listed: else the row for it is not shown."""
        counters = [field.name for field in self.table.fields if field.kind is Kind.COUNTER]
        return bool(self.rest.any()) and any(
            self._unlisted(name) if self.query.deltas else self.raw(name)[self.rest].any()
            for name in counters
        )

    # --- making columns ---------------------------------------------------------------------------------

    def _present(self, name: str, column: Array) -> Mask:
        """Which values are known of a column as it is stored."""
        is_histogram = self.table.by_name[name].kind is Kind.HISTOGRAM
        return known_histograms(column) if is_histogram else known(column)

    def _make_column(self, name: str) -> ColumnValues:
        if name in self.missing:
            return ColumnValues(np.zeros(self.size), np.zeros(self.size, bool))
        field = self.table.by_name.get(name)
        base = self.table.by_name[name.removesuffix(RATE)] if field is None else field
        if base.kind is Kind.SUM:
            return self._sum([part + name.removeprefix(base.name) for part in base.parts])
        if field is None:
            added = self._columns.get(base.name) if self.query.deltas else None
            difference = self._difference(base.name) if added is None else added
            rate = ColumnValues(difference.numbers / (self.elapsed_s or 1.0), difference.known)
            return self._kept(name, rate)
        maker = {
            Kind.RATIO: self._ratio,
            Kind.QUANTILE: self._quantile,
            Kind.HISTOGRAM: self._counted,
            Kind.TEXT: self._ranked,
            Kind.ENUM: self._ranked,
        }.get(field.kind)
        if maker is not None:
            return maker(field)
        if field.kind is Kind.COUNTER and self.query.deltas:
            return self._kept(name, self._difference(name))
        if field.is_composite:
            return self.column(field.parts[0])
        raw = self.raw(name)
        return ColumnValues(distinct_addresses(raw)[1] if field.kind is Kind.ADDRESS else raw, known(raw))

    def _kept(self, name: str, made: ColumnValues) -> ColumnValues:
        """The column, in which rows that have gone have the value that the view before gave them."""
        last = self._last
        if last is None or last.query.deltas != self.query.deltas or not len(self._gone_rows):
            return made
        end = self.size - len(self._earlier_rows)
        gone: Index = np.arange(end - len(self._gone_rows), end)
        was = last.column(name) if made.numbers.ndim == 1 else last._histogram_counts(name)
        at = positions(self.raw(self.table.key)[gone], last.now.array[self.table.key])
        gone, at = gone[at >= 0], at[at >= 0]
        numbers, present = made.numbers.copy(), made.known.copy()
        numbers[gone], present[gone] = was.numbers[at], was.known[at]
        return ColumnValues(numbers, present)

    def _histogram_counts(self, name: str) -> ColumnValues:
        """What `histogram` gives, and which rows really have it."""
        counts = self._counts.get(name)
        if counts is None:
            counts = self._counts[name] = self._make_counts(name)
        return counts

    def _make_counts(self, name: str) -> ColumnValues:
        if name in self.missing:
            nothing = np.zeros((self.size, self.buckets(name).count), np.uint64)
            return ColumnValues(nothing, np.zeros(self.size, bool))
        if self.query.deltas:
            return self._kept(name, self._added(name))
        present = self.known(name)
        return ColumnValues(np.where(present[:, None], self.raw(name), 0), present)

    def _counted(self, field: Field) -> ColumnValues:
        counts = self._histogram_counts(field.name)
        return ColumnValues(counts.numbers.sum(axis=1), counts.known)

    def _quantile(self, field: Field) -> ColumnValues:
        (part,) = field.parts
        numbers = self.buckets(part).quantiles(self.histogram(part), field.quantile)
        valid = ~np.isnan(numbers)
        return ColumnValues(np.where(valid, numbers, 0.0), valid)

    def _merged_quantile(self, field: Field, at: Index) -> float | None:
        (part,) = field.parts
        merged = self.histogram(part)[at].sum(axis=0, keepdims=True)
        number = float(self.buckets(part).quantiles(merged, field.quantile)[0])
        return None if np.isnan(number) else number

    def _ratio(self, field: Field) -> ColumnValues:
        over, under = (self.column(part) for part in field.parts)
        valid = over.known & under.known & (under.numbers > 0)
        share = np.divide(over.numbers, under.numbers, out=np.zeros(len(valid)), where=valid)
        return ColumnValues(share, valid)

    def _sum(self, names: Sequence[str]) -> ColumnValues:
        columns = [self.column(name) for name in names]
        numbers = np.add.reduce([np.where(column.known, column.numbers, 0) for column in columns])
        return ColumnValues(numbers, np.logical_or.reduce([column.known for column in columns]))

    def _ranked(self, field: Field) -> ColumnValues:
        texts, places = self.texts(field.name)
        return ColumnValues(_ranks(texts)[places], places >= 0)

    def _coded_texts(self, field: Field) -> tuple[list[str], Array]:
        codes, last = self.raw(field.name), max(field.labels, default=0)
        if field.kind is Kind.TEXT:
            texts = list(self.now.texts[field.name])
            return texts, np.where(codes < len(texts), codes.astype(np.int64), -1)
        # A number that has no label is shown as unknown, so it is unknown here too.
        place = np.array([n if n in field.labels else -1 for n in range(last + 2)])
        return [field.labels.get(n, "") for n in range(last + 1)], place[np.minimum(codes, last + 1)]

    def _address_texts(self, field: Field) -> tuple[list[str], Array]:
        distinct, places = distinct_addresses(self.raw(field.name))
        texts = list(map(address_text, distinct))
        if self._names is None:
            return texts, places
        names = (self._names(raw) for raw in distinct)
        return [f"{text} {name}" if name else text for text, name in zip(texts, names, strict=True)], places

    # --- order ------------------------------------------------------------------------------------------

    def _sorted(self, shown: Index) -> Index:
        """Positions in `shown`, in the query's order: stable for equal values, unknown ones last."""
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

    # --- values -----------------------------------------------------------------------------------------

    def _number_values(self, name: str, at: Index) -> list[Any]:
        column = self.column(name)
        values: list[Any] = column.numbers[at].tolist()
        present = column.known[at]
        return values if present.all() else _gapped(values, present)

    def _quantile_values(self, field: Field, at: Index) -> list[Any]:
        # What stands for a bucket is a whole number.
        return [None if value is None else int(value) for value in self._number_values(field.name, at)]

    def _histogram_values(self, field: Field, at: Index) -> list[Any]:
        counts, edges = self._histogram_counts(field.name), self.buckets(field.name).edges
        ends = [*edges[1:], None]
        values = [
            [[edges[place], ends[place], int(row[place])] for place in as_list(np.flatnonzero(row))]
            for row in counts.numbers[at]
        ]
        return _gapped(values, counts.known[at])

    def _text_values(self, field: Field, at: Index) -> list[Any]:
        texts = self.now.texts[field.name]
        codes = self.raw(field.name)[at]
        # The codes are few beside the rows of a whole table, and many beside those of a screen.
        if len(at) < len(texts):
            return [texts[code] if code < len(texts) else None for code in as_list(codes)]
        return _looked_up([*texts, None], np.minimum(codes, len(texts)))

    def _enum_values(self, field: Field, at: Index) -> list[Any]:
        last = max(field.labels, default=0)
        labels = [field.labels.get(number) for number in range(last + 2)]
        return _looked_up(labels, np.minimum(self.raw(field.name)[at], last + 1))

    def _address_values(self, field: Field, at: Index) -> list[Any]:
        column = self.raw(field.name)[at]
        texts = list(map(address_text, address_bytes(column)))
        present = known(column)
        return texts if present.all() else _gapped(texts, present)

    def _endpoint_values(self, field: Field, at: Index) -> list[Any]:
        address, port = field.parts
        raws = address_bytes(self.raw(address)[at])
        hosts = list(map(address_text, raws))
        if self._names is not None:
            hosts = [self._names(raw) or host for raw, host in zip(raws, hosts, strict=True)]
        ports = self._number_values(port, at)
        if not (field.zone and self.known(field.zone)[at].any()):
            return list(map(endpoint_text, hosts, ports))
        zones = self.values(field.zone, at)
        if not field.binds:
            zones = [zone if is_link_local(raw) else None for raw, zone in zip(raws, zones, strict=True)]
        return list(map(endpoint_text, hosts, ports, zones))

    def _group_values(self, field: Field, at: Index) -> list[Any]:
        parts = [self.values(part, at) for part in field.parts]
        return [" ".join([str(v) for v in row if v is not None]) or None for row in zip(*parts, strict=True)]


def _with_texts_of(rows: Rows, others: Rows) -> Rows:
    """The rows with the texts of others too, behind their own."""
    texts = dict(rows.texts)
    for name, own in rows.texts.items():
        if more := sorted(set(others.texts[name]).difference(own)):
            texts[name] = [*own, *more]
    return replace(rows, texts=texts)


def recoded(codes: Array, old: Sequence[str], new: Sequence[str]) -> Array:
    """Codes into `old` as codes into `new`; a text that the newer table has no more becomes unknown."""
    place = {text: code for code, text in enumerate(new)}
    none = int(unknown_value(codes.dtype))
    known_codes = [place.get(old[code], none) if code < len(old) else none for code in as_list(codes)]
    return np.array(known_codes, codes.dtype)


def _ranks(texts: list[str]) -> Array:
    """For each text a number that orders as the texts do, without regard to case; one more for no text."""
    rank = np.zeros(len(texts) + 1, np.int64)
    places = {text: place for place, text in enumerate(sorted({text.casefold() for text in texts}))}
    rank[:-1] = [places[text.casefold()] for text in texts]
    return rank


def _gapped(values: list[Any], present: Mask) -> list[Any]:
    """The values with None where none is present."""
    for at in as_list(np.flatnonzero(~present)):
        values[at] = None
    return values


def _looked_up(choices: list[str | None], at: Array) -> list[Any]:
    table = np.empty(len(choices), object)
    table[:] = choices
    return as_list(table[at])
