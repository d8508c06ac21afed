# SPDX-License-Identifier: Apache-2.0
"""What a frontend shows of a table: which rows, in which order, totals or differences."""

from __future__ import annotations

from collections.abc import Collection, Iterable
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
    """What to show of a table.

    `all_rows` drops the table's default filter; `deltas` turns counters into what the last interval added;
    `closed` adds the rows that ended in the last interval, with their last values, `gone` for one frame those that have
    just gone without such; `limit` is None for all.
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
    """The order that `text` names: a column, with `-` before it for descending.

    Raises UsageError for an unknown column, with the nearest names, and for a histogram, with its quantiles.
    """
    name = text.removeprefix("-")
    if name not in table.names:
        raise unknown_word("sort field", name, table.sortable)
    if name not in table.sortable:
        instead = ", ".join(table.quantiles_of(name)) or "another field"
        raise UsageError(f"{name} is a histogram, which has no order", f"sort by {instead} instead")
    return Sort(name, descending=text.startswith("-"))


def screen_query(table: Table) -> Query:
    """The query with which a screen opens `table`."""
    return Query(
        table, parse_sort(table, table.sort), parse_filter(table, ""), deltas=True, closed=True, gone=True
    )


def text_query(table: Table) -> Query:
    """The query with which plain text opens `table`."""
    return Query(table, parse_sort(table, table.text_sort), parse_filter(table, ""), closed=table.cumulative)


def query_from_settings(base: Query, options: ViewSettings) -> Query:
    """`base`, with which a frontend opens its table, with the options of the command line applied.

    Raises UsageError for a word that the table or the filter does not know.
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
    """The columns chosen by --columns, each once; None without that option.

    Raises UsageError for a column that the table does not have, with the nearest names.
    """
    return None if options.columns is None else checked_columns(options.columns, table.names)


def checked_columns(names: Iterable[str], known: Collection[str]) -> tuple[str, ...]:
    """The columns that --columns names, each once. Raises UsageError where one is not `known`, or there is none."""
    columns = tuple(dict.fromkeys(names))
    for name in columns:
        if name not in known:
            raise unknown_word("column", name, known)
    if not columns:
        raise UsageError("--columns is empty", "name columns with commas between them")
    return columns
