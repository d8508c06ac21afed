# SPDX-License-Identifier: Apache-2.0
"""What a frontend shows of a table: which rows, in which order, totals or differences."""

from __future__ import annotations

from dataclasses import dataclass

from nettop.errors import unknown_word
from nettop.query.filter import Filter, parse_filter
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
    `closed` keeps, for one frame, the rows that have just gone; `limit` is None for all.
    """

    table: Table
    sort: Sort
    filter: Filter
    all_rows: bool = False
    deltas: bool = False
    closed: bool = False
    limit: int | None = None


def parse_sort(table: Table, text: str) -> Sort:
    """The order that `text` names: a column, with `-` before it for descending.

    Raises UsageError for an unknown column, with the nearest names.
    """
    name = text.removeprefix("-")
    if name not in table.names:
        raise unknown_word("sort field", name, table.names)
    return Sort(name, descending=text.startswith("-"))


def screen_query(table: Table) -> Query:
    """The query with which a screen opens `table`."""
    return Query(table, parse_sort(table, table.sort), parse_filter(table, ""), deltas=True, closed=True)


def text_query(table: Table) -> Query:
    """The query with which plain text opens `table`."""
    return Query(table, parse_sort(table, table.text_sort), parse_filter(table, ""))
