# SPDX-License-Identifier: Apache-2.0
"""The plan of plain output: the lens, query and columns, derived from the settings before touching the kernel."""

from __future__ import annotations

from dataclasses import dataclass, replace

from nettop.query.query import Query, columns_from_settings, query_from_settings, text_query
from nettop.settings import Format, Settings
from nettop.snapshots import find_table
from nettop.snapshots.findings import FINDINGS
from nettop.snapshots.schema import RATE, Field, Kind, Lens, Table


@dataclass(frozen=True, slots=True)
class Plan:
    """The lens to read, the query and the columns. `named` are the columns named by the user; `needs_two_snapshots` is
    true if the first output needs two snapshots.
    """

    lens: Lens
    query: Query
    columns: tuple[str, ...]
    named: tuple[str, ...]
    needs_two_snapshots: bool


def make_plan(settings: Settings) -> Plan:
    """Make the plan for `settings`. Raise UsageError for an unknown name, with the nearest names."""
    lens, table = find_table(settings.view.view)
    columns = columns_from_settings(table, settings.view) or (
        table.text if settings.text.format is Format.TABLE else whole_columns(table)
    )
    query = query_from_settings(text_query(table), settings.view)
    others = (query.sort.field, *query.filter.names)
    compares = query.deltas or table.append or table.name == FINDINGS.name
    two = compares or any(name.endswith(RATE) and name in table.names for name in (*columns, *others))
    named = (*(settings.view.columns or ()), *others)
    # Per-interval values include closed connections, so that they add up to everything counted.
    return Plan(lens, replace(query, closed=query.closed or two), columns, named, two)


def field_of(table: Table, name: str) -> Field:
    """Return the field that declares a column; for a rate, the counter's field."""
    return table.by_name.get(name) or table.by_name[name.removesuffix(RATE)]


def whole_columns(table: Table) -> tuple[str, ...]:
    """Return every column except groups, which only repeat other columns."""
    return tuple(field.name for field in table.fields if field.kind is not Kind.GROUP)
