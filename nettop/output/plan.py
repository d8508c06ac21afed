# SPDX-License-Identifier: Apache-2.0
"""What plain output shows, worked out once from the settings, before anything touches the kernel."""

from __future__ import annotations

from dataclasses import dataclass, replace

from nettop.query.query import Query, columns_from_settings, query_from_settings, text_query
from nettop.settings import Format, Settings
from nettop.snapshots import find_table
from nettop.snapshots.schema import RATE, Field, Kind, Lens, Table

_WHOLE = frozenset(Kind) - {Kind.GROUP}
"""What programs are given by default: a group only repeats its parts."""


@dataclass(frozen=True, slots=True)
class Plan:
    """The lens to read, the query and the columns; `two` when the first output needs two snapshots. `named` are the
    columns that the user names.
    """

    lens: Lens
    query: Query
    columns: tuple[str, ...]
    named: tuple[str, ...]
    two: bool


def make_plan(settings: Settings) -> Plan:
    """The plan for `settings`. Raises UsageError for any word that does not exist, with the nearest ones."""
    lens, table = find_table(settings.view.view)
    columns = columns_from_settings(table, settings.view) or (
        table.text if settings.text.format is Format.TABLE else whole_columns(table)
    )
    query = query_from_settings(text_query(table), settings.view)
    others = (query.sort.field, *query.filter.names)
    two = query.deltas or table.append or any(is_rate(table, name) for name in (*columns, *others))
    named = (*(settings.view.columns or ()), *others)
    # With differences, also of what has ended: they add up to all that was counted.
    return Plan(lens, replace(query, closed=query.closed or two), columns, named, two)


def is_rate(table: Table, name: str) -> bool:
    """True when `name` is the rate of one of the table's counters."""
    return name.endswith(RATE) and name in table.names


def field_of(table: Table, name: str) -> Field:
    """The field that declares a column: of a rate, the counter's."""
    return table.by_name.get(name) or table.by_name[name.removesuffix(RATE)]


def whole_columns(table: Table) -> tuple[str, ...]:
    """Every column, but for those that only repeat others side by side."""
    return tuple(field.name for field in table.fields if field.kind in _WHOLE)
