# SPDX-License-Identifier: Apache-2.0
"""The rows of a frame's two snapshots, joined by key, and the growth of their counters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, wraps
from typing import TypeVar

import numpy as np

from nettop.query.batches import codes_of, concatenate_batches, empty_rows, recode
from nettop.snapshots.arrays import Array, Index, Mask, concatenate_rows, positions, take_rows
from nettop.snapshots.hosts import HOST
from nettop.snapshots.schema import BEGAN, Field, Kind, Table
from nettop.snapshots.snapshot import Frame, Rows, Snapshot, known, known_histograms, sum_of


@dataclass(frozen=True, eq=False, slots=True)
class ColumnValues:
    """The numbers of a column, one per row, and the mask of known ones. Shapes (n,) and (n,).

    For a histogram's counts the numbers have the shape (n, buckets).
    """

    numbers: Array
    known: Mask


Holder = TypeVar("Holder")
Value = TypeVar("Value")


def cached_by_name(make: Callable[[Holder, str], Value]) -> Callable[[Holder, str], Value]:
    """Cache a method's results in its object, by the name of a column."""
    attribute = f"_by_name_{make.__name__}"

    @wraps(make)
    def cached(self: Holder, name: str) -> Value:
        values: dict[str, Value] = self.__dict__.setdefault(attribute, {})
        if name not in values:
            values[name] = make(self, name)
        return values[name]

    return cached


class JoinedRows:
    """All rows of a table in a frame: those of the newest snapshot first, then those that left it.

    With `closed`, the rows that ended since the previous snapshot follow, with their last values. One more row, the
    `rest`, sums up ended rows that are not listed, so that differences add up to everything counted; if rows are from
    several hosts, one for each. With `gone`, the
    rows that just disappeared without last values follow. The last ones are the `earlier` rows, which left before and
    are still shown, with their last totals and no growth. A row that is back, or has just left, is listed once.

    An append table has its `kept_rows` newest rows, or all in the frame (`all_batches`); they never leave or grow.
    A table that is not in the frame yet has no rows.
    """

    def __init__(
        self,
        frame: Frame,
        table: Table,
        *,
        all_batches: bool = False,
        earlier: Rows | None = None,
        closed: bool = False,
        gone: bool = False,
    ) -> None:
        self.frame = frame
        self.table = table
        self.before: Rows | None = None
        if table.append:
            newest = None if all_batches else table.kept_rows
            self.now = concatenate_batches(table, frame.batches.get(table.name, ()), newest)
        else:
            now = frame.now.tables.get(table.name)
            self.now = empty_rows(table) if now is None else now
            before = frame.before.tables.get(table.name) if frame.before else None
            self.before = before if before is None or before.variant == self.now.variant else None
        self._earlier = (
            earlier if earlier is not None and earlier.array.dtype == self.now.array.dtype else None
        )
        self._left = frame.now.ended.get(table.name) if closed else None
        self._totals = () if self._left is None else (self._left.total,)
        for left in filter(None, (self._earlier, self.before if gone else None, *self._ended, *self._totals)):
            self.now = _with_texts_of(self.now, left)
        self._shows_gone = gone

    @cached_property
    def elapsed_s(self) -> float | None:
        """Seconds between the two snapshots; None if there is only one."""
        if self.before is None or self.now.taken_ns <= self.before.taken_ns:
            return None
        return (self.now.taken_ns - self.before.taken_ns) / 1e9

    @cached_property
    def elapsed_by_row(self) -> Array:
        """Seconds between the two readings of each row's host; NaN if it was read only once. Shape (n,), or (1,) if all
        rows are from one host."""
        hosts, before = self.frame.now.hosts, self.frame.before
        if not hosts:
            return np.array([self.elapsed_s or np.nan])
        read_before = {} if before is None else before.hosts
        seconds = [
            (hosts[host] - read_before[host]) / 1e9 if host in hosts and host in read_before else np.nan
            for host in self.now.texts[HOST.name]
        ]
        codes = np.minimum(self.raw(HOST.name), len(seconds))
        elapsed: Array = np.array([*seconds, self.elapsed_s or np.nan])[codes]
        return np.where(elapsed > 0, elapsed, np.nan)

    @cached_property
    def is_whole(self) -> bool:
        """True if every hook worked when the interval began; otherwise per-interval counts are incomplete."""
        before = self.frame.before
        return before is None or before.boot_ns >= self.frame.now.complete_since_ns

    # --- all rows ---------------------------------------------------------------------------------------

    @cached_by_name
    def raw(self, name: str) -> Array:
        """Return a stored column as in the snapshot, one value per row, contiguous for fast access."""
        column, others = self.now.column(name), self._parts[1:]
        if not others:
            return column
        return np.concatenate([column, *(part[name] for part in others)], dtype=column.dtype)

    @cached_property
    def size(self) -> int:
        """The number of rows."""
        return sum(map(len, self._parts))

    @cached_property
    def _places(self) -> Index:
        """The positions of the rows in `_parts`."""
        return np.arange(self.size)

    @cached_property
    def gone(self) -> Mask:
        """The mask of rows that are not in the newest snapshot."""
        return self._places >= len(self.now)

    @cached_property
    def just_gone(self) -> Mask:
        """The mask of rows that have gone since the previous snapshot."""
        return self.gone & (self._places < self._earlier_begin)

    @cached_property
    def appeared(self) -> Mask:
        """The mask of rows that were not in the previous snapshot; none if there is no previous one."""
        return np.zeros(self.size, bool) if self.before is None else (self.before_at < 0) & ~self.gone

    @cached_property
    def rest(self) -> Mask:
        """The mask of the rows, if any, that sum up ended rows that are not listed."""
        at = self._places - self._rest_begin
        rest: Mask = (at >= 0) & (at < (0 if self._left is None else len(self._left.total)))
        return rest

    @property
    def just_gone_at(self) -> Index:
        """Positions of the rows that disappeared since the previous snapshot without last values."""
        begin = self._earlier_begin - len(self._gone_rows)
        return np.flatnonzero((self._places >= begin) & (self._places < self._earlier_begin))

    @property
    def closed(self) -> tuple[Rows, ...]:
        """The listed rows that left the table since the previous snapshot, with their texts."""
        return (*self._ended, *self._gone)

    @property
    def unlisted(self) -> int:
        """The number of rows that left since the previous snapshot and are not listed: too many, or too old."""
        if self._left is None or self.frame.before is None:
            return 0
        before = self.frame.before.ended.get(self.table.name)
        count = self._left.count - (0 if before is None else before.count)
        return max(0, count - sum(map(len, self._ended)))

    # --- joining the two snapshots ----------------------------------------------------------------------

    @cached_property
    def _parts(self) -> tuple[Array, ...]:
        """The rows in parts: of the newest snapshot, ended ones, the rest, gone ones, and earlier ones."""
        rest = map(self._with_texts, self._totals)
        parts = (self.now.array, self._ended_rows, *rest, self._gone_rows, self._earlier_rows)
        return (self.now.array, *(part for part in parts[1:] if len(part)))

    @cached_property
    def _rest_begin(self) -> int:
        return len(self.now) + len(self._ended_rows)

    @cached_property
    def _earlier_begin(self) -> int:
        return sum(map(len, self._parts)) - len(self._earlier_rows)

    @cached_property
    def _ended_rows(self) -> Array:
        """Last values of listed rows that ended since the previous snapshot."""
        return concatenate_rows(self.now.array[:0], *map(self._with_texts, self._ended))

    @property
    def _ended(self) -> list[Rows]:
        if self._left is None or self.before is None:
            return []
        return [rows for rows in self._left.rows if rows.taken_ns > self.before.taken_ns]

    @cached_property
    def _listed_before_at(self) -> Index:
        """Positions, in the previous snapshot, of the newest snapshot's rows and of ended rows; −1 if absent."""
        key = self.table.key
        keys = np.concatenate([self.now.column(key), self._ended_rows[key]])
        return np.full(len(keys), -1) if self.before is None else positions(keys, self.before.column(key))

    @cached_property
    def before_at(self) -> Index:
        """Positions of all rows in the previous snapshot; −1 for a row that is new, or has no new value to compare."""
        listed = self._listed_before_at
        return np.concatenate([listed, np.full(self.size - len(listed), -1)])

    @cached_property
    def _has_same_rows(self) -> bool:
        """True if the previous snapshot has these rows at the same positions."""
        return self.before is not None and np.array_equal(self.before_at, np.arange(len(self.before)))

    @cached_property
    def _was_there(self) -> Mask:
        """The mask of the rows in the previous snapshot."""
        return self.before_at >= 0

    @cached_property
    def _gone_rows(self) -> Array:
        """Copies of the rows that disappeared since the previous snapshot, with this snapshot's text codes."""
        return concatenate_rows(self.now.array[:0], *map(self._with_texts, self._gone))

    @cached_property
    def _gone(self) -> list[Rows]:
        """The rows of the previous snapshot that are no longer listed."""
        before = self.before
        if not self._shows_gone or before is None or before.array.dtype != self.now.array.dtype:
            return []
        left = np.ones(len(before), bool)
        left[self._listed_before_at[self._listed_before_at >= 0]] = False
        return [replace(before, array=take_rows(before.array, np.flatnonzero(left)))]

    @cached_property
    def _earlier_rows(self) -> Array:
        """The rows that left before, except those listed elsewhere."""
        if self._earlier is None:
            return self.now.array[:0]
        rows, key = self._with_texts(self._earlier), self.table.key
        others = np.concatenate([self.now.array[key], self._ended_rows[key], self._gone_rows[key]])
        return take_rows(rows, np.flatnonzero(~np.isin(rows[key], others)))

    def _with_texts(self, rows: Rows) -> Array:
        """Return the rows with codes into this snapshot's texts, copied if the codes differ."""
        array = rows.array
        for name, texts in self.now.texts.items() if len(array) else ():
            if rows.texts[name] is not texts:
                array = array.copy()
                array[name] = recode(array[name], rows.texts[name], codes_of(texts))
        return array

    # --- growth -----------------------------------------------------------------------------------------

    def difference(self, name: str) -> ColumnValues:
        """Return a counter's growth in the last interval, with that of the rest. A counter that went back has none."""
        added = self.growth(name)
        if self._left is not None and self.rest.any():
            rest = self.rest_growth(name)[self._places[self.rest] - self._rest_begin]
            added.numbers[self.rest] = rest
            added.known[self.rest] = rest > 0
        return added

    def rest_total(self, name: str) -> Array:
        """Return a counter's total in each row of the rest."""
        return np.concatenate([rows.array[name] for rows in self._totals])

    def rest_growth(self, name: str) -> Array:
        """Return a counter's growth in the last interval in each row of the rest."""
        return np.array([rows.unlisted_growth(name) for rows in self._by_host or [self]], np.uint64)

    def growth(self, name: str) -> ColumnValues:
        """Return the growth in the last interval of each row's counter, or of its histogram's counts."""
        now = self.raw(name)
        if self.before is None or self.elapsed_s is None:
            return ColumnValues(np.zeros_like(now), np.zeros(len(now), bool))
        previous, field = self.frame.before, self.table.by_name[name]
        then = self._values_in(self.before, name) if len(self.before) else np.zeros_like(now)
        was_known = self._was_there & present(field, then)
        valid = was_known
        # A row that is new, or had no value yet, was at 0 before if the column was being counted.
        if previous is not None and name not in previous.missing and not was_known.all():
            begins = self._begins_at_zero & ~was_known
            then = np.where(begins if then.ndim == 1 else begins[:, None], then.dtype.type(0), then)
            valid = was_known | begins
        grew = now >= then if now.ndim == 1 else (now >= then).all(axis=1)
        valid = valid & present(field, now) & grew & ~np.isnan(self.elapsed_by_row)
        numbers = now - then
        numbers[~valid] = 0
        return ColumnValues(numbers, valid)

    def _values_in(self, before: Rows, name: str) -> Array:
        """Return the rows' values in the previous snapshot, those of any row where one was not in it."""
        column = before.column(name)
        return column if self._has_same_rows else column[self.before_at]

    @cached_property
    def _begins_at_zero(self) -> Mask:
        """The mask of rows that the source saw begin, so their counters started at 0."""
        listed = self._places < len(self._listed_before_at)
        if self.table.begins_at_zero:
            return listed
        has_flag = BEGAN in (self.now.array.dtype.names or ())
        return listed & (self.raw(BEGAN) == 1) if has_flag else np.zeros(self.size, bool)

    @cached_property
    def _by_host(self) -> list[JoinedRows]:
        """For each row of the rest, the rows of its host, which it completes; empty if it completes all rows."""
        if self._left is None or not self.frame.now.hosts:
            return []
        total = self._left.total
        hosts = [total.texts[HOST.name][code] for code in total.array[HOST.name]]
        return [JoinedRows(_of_host(self.frame, self.table, host), self.table, closed=True) for host in hosts]

    def unlisted_growth(self, name: str) -> int:
        """Return a counter's growth in the last interval in ended rows that are not listed.

        This is the growth of the total of ended rows, less the listed rows, less earlier counts of unlisted rows.
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


def present(field: Field, column: Array) -> Mask:
    """Return the mask of known values in a stored column."""
    return known_histograms(column) if field.kind is Kind.HISTOGRAM else known(column)


def _with_texts_of(rows: Rows, others: Rows) -> Rows:
    """Append the texts of other rows to those of `rows`."""
    more = {
        name: sorted(set(others.texts[name]).difference(own))
        for name, own in rows.texts.items()
        if others.texts[name] is not own
    }
    texts = {name: [*rows.texts[name], *added] for name, added in more.items() if added}
    return replace(rows, texts={**rows.texts, **texts}) if texts else rows


def rows_with(snapshot: Snapshot, table: Table, keys: Array) -> Snapshot:
    """Return a snapshot with copies of one table's rows that have these keys, and nothing that ended."""
    kept = {
        name: replace(rows, array=take_rows(rows.array, np.isin(rows.array[table.key], keys)))
        for name, rows in snapshot.tables.items()
        if name == table.name
    }
    return replace(snapshot, tables=kept, ended={})


def _of_host(frame: Frame, table: Table, host: str) -> Frame:
    """Return the rows of one of several hosts, as if it were the only one."""
    before = frame.before
    return Frame(
        _snapshot_of(frame.now, table, host),
        None if before is None or host not in before.hosts else _snapshot_of(before, table, host),
    )


def _snapshot_of(snapshot: Snapshot, table: Table, host: str) -> Snapshot:
    tables = {name: _rows_of(rows, host) for name, rows in snapshot.tables.items() if name == table.name}
    ended = {
        name: replace(
            left, rows=tuple(_rows_of(r, host) for r in left.rows), total=_rows_of(left.total, host)
        )
        for name, left in snapshot.ended.items()
        if name == table.name
    }
    return replace(snapshot, tables=tables, ended=ended, hosts={})


def _rows_of(rows: Rows, host: str) -> Rows:
    codes = [code for code, text in enumerate(rows.texts[HOST.name]) if text == host]
    return replace(rows, array=take_rows(rows.array, np.isin(rows.array[HOST.name], codes)))
