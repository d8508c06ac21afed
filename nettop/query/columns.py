# SPDX-License-Identifier: Apache-2.0
"""The columns of joined rows: numbers, rates, histograms and texts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property

import numpy as np

from nettop.query.address import address_text, distinct_addresses
from nettop.query.joined_rows import ColumnValues, JoinedRows, cached_by_name, present, rows_with
from nettop.snapshots.arrays import Array, Index, Mask, positions
from nettop.snapshots.histograms import Buckets
from nettop.snapshots.schema import RATE, Field, Kind
from nettop.snapshots.snapshot import Frame, Rows, Snapshot, known

FEW_COUNTS = 10
"""A histogram with fewer counts has no meaningful quantiles."""

_FEW_OF = 4
"""Rows are read by themselves if they are at most one in so many."""

Names = Callable[[bytes], "str | None"]
"""Function that returns the name of a 16-byte address; None if it is unknown."""


class Columns(JoinedRows):
    """The columns of joined rows, each computed on first use, and cached. A `View` of a query sets the attributes.

    `missing` columns have no values; frontends show `n/a` instead.
    """

    deltas = False
    """True if counters are per-interval."""
    recent: Snapshot | None = None
    """An older snapshot than the previous one: histograms with few counts in the interval count from it."""
    _names: Names | None = None
    _some_at: Index | None = None
    _some: Columns
    left: Columns | None = None
    """The previous frame's columns of rows that have left it since: a row that disappeared without last values keeps
    the rates of its last interval, and so its place."""

    @cached_property
    def tested(self) -> dict[str, Mask]:
        """The masks of the parts of filters that were tested, by their text. Do not modify them."""
        return {}

    @property
    def has_rest(self) -> bool:
        """True if the rest has counted anything; otherwise it is not shown."""
        return bool((self.rest & ~self.empty_rest).any())

    @cached_property
    def empty_rest(self) -> Mask:
        """The mask of rows of the rest that have counted nothing."""
        empty = self.rest.copy()
        counters = [field.name for field in self.table.fields if field.kind is Kind.COUNTER]
        for name in counters if empty.any() else ():
            counted = self.rest_growth(name) if self.deltas else self.rest_total(name)
            empty[self.rest] &= counted[self._places[self.rest] - self._rest_begin] == 0
        return empty

    # --- columns ----------------------------------------------------------------------------------------

    @cached_property
    def missing(self) -> Mapping[str, str]:
        """The columns not supported by this kernel or host, including rates and composites, and why.

        Ignore any values of these columns in the rows.
        """
        lacking = self.frame.now.missing
        missing = {}
        for name in self.table.names if lacking else ():
            field = self.table.by_name.get(name) or self.table.by_name[name.removesuffix(RATE)]
            # A group needs only its first part, every other composite all its parts.
            needed = field.parts[:1] if field.kind is Kind.GROUP else field.parts
            why = next((lacking[part] for part in (field.name, *needed) if part in lacking), None)
            if why is not None:
                missing[name] = why
        return missing

    @property
    def has_names(self) -> bool:
        """True if addresses may have names, which are then part of their texts."""
        return self._names is not None

    def name_of(self, address: bytes) -> str | None:
        """Return the name of an address if names are shown and it is known."""
        return None if self._names is None else self._names(address)

    def known(self, name: str) -> Mask:
        """Return the mask of rows with a value in a stored column; for an available composite, all rows."""
        if name in self.missing:
            return np.zeros(self.size, bool)
        field = self.table.by_name[name]
        return np.ones(self.size, bool) if field.is_composite else present(field, self.raw(name))

    @cached_by_name
    def column(self, name: str) -> ColumnValues:
        """Return the numbers of a column, for sorting, comparing and summing.

        Texts and addresses are represented by ranks in their sort order, histograms by their total count.
        """
        if name in self.missing:
            return ColumnValues(np.zeros(self.size), np.zeros(self.size, bool))
        field = self.table.by_name.get(name)
        base = self.table.by_name[name.removesuffix(RATE)] if field is None else field
        if base.kind is Kind.SUM:
            return self._sum([part + name.removeprefix(base.name) for part in base.parts])
        if field is None:
            difference = self.column(base.name) if self.deltas else self.difference(base.name)
            rates = np.where(difference.known, difference.numbers / self.elapsed_by_row, 0.0)
            rate = ColumnValues(rates, difference.known)
            return self._keep_gone_values(name, rate)
        maker = {
            Kind.RATIO: self._ratio,
            Kind.QUANTILE: self._quantile,
            Kind.HISTOGRAM: self._total_counts,
            Kind.TEXT: self._rank_values,
            Kind.ENUM: self._rank_values,
        }.get(field.kind)
        if maker is not None:
            return maker(field)
        if field.kind is Kind.COUNTER and self.deltas:
            return self._keep_gone_values(name, self.difference(name))
        if field.is_composite:
            return self.column(field.parts[0])
        raw = self.raw(name)
        return ColumnValues(distinct_addresses(raw)[1] if field.kind is Kind.ADDRESS else raw, known(raw))

    def buckets(self, name: str) -> Buckets:
        """Return the buckets of a histogram."""
        buckets = self.table.by_name[name].buckets
        assert buckets is not None, f"{name} is not a histogram"
        return buckets

    def histogram(self, name: str) -> Array:
        """Return a histogram's count per bucket, cumulative or per interval. Shape (n, buckets).

        Counts are 0 for an unknown histogram; per interval, also for one with a count that went back, and for the rest.
        """
        return self.histogram_counts(name).numbers

    @cached_by_name
    def histogram_counts(self, name: str) -> ColumnValues:
        """Return the counts of `histogram`, and the mask of rows that have them."""
        if name in self.missing:
            nothing = np.zeros((self.size, self.buckets(name).count), np.uint64)
            return ColumnValues(nothing, np.zeros(self.size, bool))
        if self.deltas:
            return self._keep_gone_values(name, self._recent_counts(name))
        present = self.known(name)
        return ColumnValues(np.where(present[:, None], self.raw(name), 0), present)

    @cached_by_name
    def texts(self, name: str) -> tuple[list[str], Array]:
        """Return the distinct texts of a text, enum or address column, and each row's index into them.

        Rows without a value have the index −1. Filters match each distinct text once. An address with a known name has
        both in its text: "203.0.113.9 example.com".
        """
        field = self.table.by_name[name]
        if name in self.missing:
            return [], np.full(self.size, -1)
        return self._address_texts(field) if field.kind is Kind.ADDRESS else self._coded_texts(field)

    @cached_by_name
    def counts_recent(self, name: str) -> Mask:
        """Return the mask of rows whose histogram counts from the recent snapshot."""
        before, size = self.frame.before, len(self.now)
        if not self.deltas or self.recent is None or before is None or self.recent.boot_ns >= before.boot_ns:
            return np.zeros(self.size, bool)
        few: Mask = self.growth(name).numbers.sum(axis=1) < FEW_COUNTS
        few[:size] &= self._since_recent.histogram_counts(name).known
        few[size:] = False
        return few

    @cached_property
    def _since_recent(self) -> Columns:
        """The rows of the newest snapshot, compared with the recent one."""
        columns = Columns(Frame(self.frame.now, self.recent), self.table)
        columns.deltas = True
        return columns

    def some(self, at: Index) -> tuple[Columns, Index]:
        """Return columns that have the rows at `at`, and where: of these alone if they are few."""
        if len(at) * _FEW_OF > self.size or self._has_histograms:
            return self, at
        if self._some_at is None or not np.array_equal(self._some_at, at):
            self._some_at, self._some = at, SomeColumns(self, at)
        return self._some, np.arange(len(at))

    def column_at(self, name: str, at: Index) -> ColumnValues:
        """Return the numbers of a column for the rows at `at`."""
        columns, at = self.some(at)
        column = columns.column(name)
        return ColumnValues(column.numbers[at], column.known[at])

    def only(self, keys: Array) -> Columns | None:
        """Return the columns of the newest snapshot's rows with these keys, from copies of the rows; None if there are
        none."""
        if not len(keys):
            return None
        before = self.frame.before
        frame = Frame(
            rows_with(self.frame.now, self.table, keys), before and rows_with(before, self.table, keys)
        )
        columns = Columns(frame, self.table)
        columns.deltas, columns.recent = self.deltas, self.recent
        return columns

    @cached_property
    def _has_histograms(self) -> bool:
        """True if a column has histograms: such tables have few rows, and their counts may be from several
        intervals."""
        return any(field.kind is Kind.HISTOGRAM for field in self.table.fields)

    # --- making columns ---------------------------------------------------------------------------------

    def _recent_counts(self, name: str) -> ColumnValues:
        """Return a histogram's counts in the interval, or since the recent snapshot where they are few."""
        made, at = self.growth(name), np.flatnonzero(self.counts_recent(name))
        if len(at):
            longer = self._since_recent.histogram_counts(name)
            made.numbers[at], made.known[at] = longer.numbers[at], True
        return made

    def _keep_gone_values(self, name: str, made: ColumnValues) -> ColumnValues:
        """Return the column with gone rows set to their values in the previous frame's columns."""
        last, gone = self.left, self.just_gone_at
        if last is None or last.deltas != self.deltas or not len(gone):
            return made
        was = last.column(name) if made.numbers.ndim == 1 else last.histogram_counts(name)
        at = positions(self.raw(self.table.key)[gone], last.now.array[self.table.key])
        gone, at = gone[at >= 0], at[at >= 0]
        numbers, present = made.numbers.copy(), made.known.copy()
        numbers[gone], present[gone] = was.numbers[at], was.known[at]
        return ColumnValues(numbers, present)

    def _total_counts(self, field: Field) -> ColumnValues:
        counts = self.histogram_counts(field.name)
        return ColumnValues(counts.numbers.sum(axis=1), counts.known)

    def _quantile(self, field: Field) -> ColumnValues:
        (part,) = field.parts
        numbers = self.buckets(part).quantiles(self.histogram(part), field.quantile)
        valid = ~np.isnan(numbers)
        return ColumnValues(np.where(valid, numbers, 0.0), valid)

    def _ratio(self, field: Field) -> ColumnValues:
        over, under = (self.column(part) for part in field.parts)
        valid = over.known & under.known & (under.numbers > 0)
        ratio = np.divide(over.numbers, under.numbers, out=np.zeros(len(valid)), where=valid)
        return ColumnValues(np.minimum(ratio, 1) if field.share else ratio, valid)

    def _sum(self, names: Sequence[str]) -> ColumnValues:
        columns = [self.column(name) for name in names]
        numbers = np.add.reduce([np.where(column.known, column.numbers, 0) for column in columns])
        return ColumnValues(numbers, np.logical_or.reduce([column.known for column in columns]))

    def _rank_values(self, field: Field) -> ColumnValues:
        texts, places = self.texts(field.name)
        return ColumnValues(_ranks(texts)[places], places >= 0)

    def _coded_texts(self, field: Field) -> tuple[list[str], Array]:
        codes, last = self.raw(field.name), max(field.labels, default=0)
        if field.kind is Kind.TEXT:
            texts = list(self.now.texts[field.name])
            return texts, np.where(codes < len(texts), codes.astype(np.int64), -1)
        # A number without a label is shown as unknown, so it is unknown here too.
        place = np.array([n if n in field.labels else -1 for n in range(last + 2)])
        return [field.labels.get(n, "") for n in range(last + 1)], place[np.minimum(codes, last + 1)]

    def _address_texts(self, field: Field) -> tuple[list[str], Array]:
        distinct, places = distinct_addresses(self.raw(field.name))
        texts = list(map(address_text, distinct))
        if not self.has_names:
            return texts, places
        names = map(self.name_of, distinct)
        return [f"{text} {name}" if name else text for text, name in zip(texts, names, strict=True)], places


_SHARED = (
    "frame", "table", "now", "before", "elapsed_s", "is_whole", "missing", "deltas", "recent", "_names", "left",
    "_left", "_parts", "_ended_rows", "_gone_rows", "_rest_begin", "_earlier_begin", "_listed_before_at", "_by_host",
)  # fmt: skip
"""What is the same for any of the rows."""


class SomeColumns(Columns):
    """The columns of some rows of others, computed for these rows alone."""

    def __init__(self, whole: Columns, at: Index) -> None:
        self.__dict__ |= {name: getattr(whole, name) for name in _SHARED}
        self.size, self._places = len(at), at
        self.before_at = whole.before_at[at]

    @cached_by_name
    def raw(self, name: str) -> Array:
        """Return the rows' values in a stored column."""
        if not self.gone.any():
            return self.now.values(name, self._places)
        made = np.empty(self.size, self.now.array.dtype[name])
        begin = 0
        for part in self._parts:
            mine = (self._places >= begin) & (self._places < begin + len(part))
            made[mine] = part[name][self._places[mine] - begin]
            begin += len(part)
        return made

    def _values_in(self, before: Rows, name: str) -> Array:
        return before.values(name, self.before_at)


def _ranks(texts: list[str]) -> Array:
    """Return the case-insensitive rank of each text, followed by a 0 for missing text."""
    rank = np.zeros(len(texts) + 1, np.int64)
    places = {text: place for place, text in enumerate(sorted({text.casefold() for text in texts}))}
    rank[:-1] = [places[text.casefold()] for text in texts]
    return rank
