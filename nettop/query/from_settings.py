# SPDX-License-Identifier: Apache-2.0
"""The words of the command line, turned into a query: the same for every door."""

from __future__ import annotations

from dataclasses import replace

from nettop.errors import UsageError, unknown_word
from nettop.query.filter import parse_filter
from nettop.query.query import Query, parse_sort
from nettop.settings import ViewSettings
from nettop.snapshots.schema import Table


def query_from_settings(base: Query, asked: ViewSettings) -> Query:
    """`base`, with which a door opens its table, as the command line changes it.

    Raises UsageError for a word that the table or the filter does not know.
    """
    table = base.table
    return replace(
        base,
        sort=base.sort if asked.sort is None else parse_sort(table, asked.sort),
        filter=parse_filter(table, " ".join(asked.filters)),
        all_rows=base.all_rows or asked.all_rows,
        deltas=base.deltas or asked.deltas,
        limit=base.limit if asked.limit is None else asked.limit,
    )


def columns_from_settings(table: Table, asked: ViewSettings) -> tuple[str, ...] | None:
    """The columns that were asked for, each once; None when nobody asked.

    Raises UsageError for a column that the table does not have, with the nearest names.
    """
    if asked.columns is None:
        return None
    for name in asked.columns:
        if name not in table.names:
            raise unknown_word("column", name, table.names)
    if not asked.columns:
        raise UsageError("no column is asked for", "give --columns names with commas between them")
    return tuple(dict.fromkeys(asked.columns))
