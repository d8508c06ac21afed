# SPDX-License-Identifier: Apache-2.0
"""The rows of a table that a frontend shows, their order, and totals or differences."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from nettop.errors import UsageError, unknown_word
from nettop.query.filter import Filter, combined, parse_filter
from nettop.settings import ViewSettings
from nettop.snapshots.schema import Table


@dataclass(frozen=True, slots=True)
class Sort:
    """The field to sort by. Unknown values come last in both directions."""

    field: str
    descending: bool = False

    def __str__(self) -> str:
        return ("-" if self.descending else "") + self.field


@dataclass(frozen=True, slots=True)
class Query:
    """A selection of a table's rows, with their order and limit.

    `all_rows` drops the table's default filter. `deltas` turns cumulative counters into per-interval ones. `closed`
    adds the rows that ended in the last interval, with their last values; `gone` shows rows that disappeared without
    last values for one more frame. `limit` is None for all rows.
    """

    table: Table
    sort: Sort
    filter: Filter
    all_rows: bool = False
    deltas: bool = False
    closed: bool = False
    gone: bool = False
    limit: int | None = None


def parse_sort(table: Table, text: str) -> Sort:
    """Parse a sort order: a column, with a leading `-` for descending.

    Raise UsageError for an unknown column, with the nearest names, and for a histogram, with its quantiles.
    """
    name = table.current(text.removeprefix("-"))
    if name not in table.names:
        raise unknown_word("sort field", name, table.sortable)
    if name not in table.sortable:
        instead = ", ".join(table.quantiles_of(name)) or "another field"
        raise UsageError(f"{name} is a histogram, which has no order", f"sort by {instead} instead")
    return Sort(name, descending=text.startswith("-"))


def screen_query(table: Table) -> Query:
    """Return a screen's initial query of `table`."""
    return Query(
        table, parse_sort(table, table.sort), parse_filter(table, ""), deltas=True, closed=True, gone=True
    )


def text_query(table: Table) -> Query:
    """Return plain text's initial query of `table`."""
    return Query(table, parse_sort(table, table.text_sort), parse_filter(table, ""), closed=table.cumulative)


def query_from_settings(base: Query, options: ViewSettings) -> Query:
    """Apply command-line options to `base`, a frontend's initial query.

    Raise UsageError for a column that the table does not have, or an invalid filter.
    """
    table = base.table
    return replace(
        base,
        sort=base.sort if options.sort is None else parse_sort(table, options.sort),
        filter=combined(table, [parse_filter(table, text) for text in options.filters]),
        all_rows=base.all_rows or options.all_rows,
        deltas=base.deltas or options.deltas,
        limit=base.limit if options.limit is None else options.limit,
    )


def columns_from_settings(table: Table, options: ViewSettings) -> tuple[str, ...] | None:
    """Return the columns chosen by --columns without duplicates; None without that option.

    Raise UsageError for a column that the table does not have, with the nearest names.
    """
    return None if options.columns is None else checked_columns(options.columns, table)


def checked_columns(names: Iterable[str], *tables: Table) -> tuple[str, ...]:
    """Return the names of --columns without duplicates. Raise UsageError if no table has one of them, or there is
    none."""
    former = {name: now for table in tables for name, now in table.former.items()}
    known = dict.fromkeys(name for table in tables for name in table.names)
    columns = tuple(dict.fromkeys(former.get(name, name) for name in names))
    for name in columns:
        if name not in known:
            raise unknown_word("column", name, known)
    if not columns:
        raise UsageError("--columns is empty", "give column names separated by commas")
    return columns
