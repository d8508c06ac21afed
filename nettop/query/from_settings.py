# SPDX-License-Identifier: Apache-2.0
"""The command line's view options as a query: the same for every frontend."""

from __future__ import annotations

from dataclasses import replace

from nettop.errors import UsageError, unknown_word
from nettop.query.filter import parse_filter
from nettop.query.query import Query, parse_sort
from nettop.settings import ViewSettings
from nettop.snapshots.schema import Table


def query_from_settings(base: Query, options: ViewSettings) -> Query:
    """`base`, with which a frontend opens its table, with the options of the command line applied.

    Raises UsageError for a word that the table or the filter does not know.
    """
    table = base.table
    return replace(
        base,
        sort=base.sort if options.sort is None else parse_sort(table, options.sort),
        filter=parse_filter(table, " ".join(options.filters)),
        all_rows=base.all_rows or options.all_rows,
        deltas=base.deltas or options.deltas,
        limit=base.limit if options.limit is None else options.limit,
    )


def columns_from_settings(table: Table, options: ViewSettings) -> tuple[str, ...] | None:
    """The columns chosen by --columns, each once; None without that option.

    Raises UsageError for a column that the table does not have, with the nearest names.
    """
    if options.columns is None:
        return None
    for name in options.columns:
        if name not in table.names:
            raise unknown_word("column", name, table.names)
    if not options.columns:
        raise UsageError("--columns is empty", "name columns with commas between them")
    return tuple(dict.fromkeys(options.columns))
