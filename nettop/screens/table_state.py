# SPDX-License-Identifier: Apache-2.0
"""The state of a screen's table (query and columns), and the changes that keys make to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from nettop.query.query import Query, Sort, columns_from_settings, query_from_settings, screen_query
from nettop.query.units import unit_of
from nettop.settings import ViewSettings
from nettop.snapshots.schema import Kind, Table
from nettop.widgets.columns import Column, as_rates, as_totals, declared

_ASCENDING = frozenset({Kind.TEXT, Kind.ENUM, Kind.ADDRESS, Kind.ENDPOINT, Kind.LABEL, Kind.KEY})
"""Kinds sorted in ascending order at first; all others are sorted in descending order."""


@dataclass(frozen=True, slots=True)
class TableState:
    """A query and columns. `declared_names` are the columns as declared, `names` as shown, in totals or rates."""

    query: Query
    declared_names: tuple[str, ...]
    chosen_by_user: bool = False
    """True if the user chose the columns; a wide terminal then adds no others."""

    @property
    def totals(self) -> bool:
        """True if counters are shown as totals since each row began, not as rates."""
        return not self.query.deltas

    @property
    def names(self) -> tuple[str, ...]:
        """The columns to show."""
        table, names = self.query.table, self.declared_names
        if self.totals == _are_totals(table, names):
            return names
        convert = as_totals if self.totals else as_rates
        return tuple(dict.fromkeys(convert(table, name) for name in names))

    def with_columns(self, names: Sequence[str], *, chosen_by_user: bool) -> TableState:
        """Return the state with these columns, in totals if one of them is; convert a sort column not among them."""
        query, totals = self.query, _are_totals(self.query.table, names)
        state = replace(self, declared_names=tuple(names), chosen_by_user=chosen_by_user)
        if query.sort.field in names:
            return replace(state, query=replace(query, deltas=not totals))
        return state.with_totals(on=totals)

    def sorted_by(self, name: str) -> TableState:
        """Return the state sorted by `name`, in reverse if it is the sort column already."""
        table, now = self.query.table, self.query.sort
        kind = declared(table, name).kind
        descending = bool(unit_of(table, name)) if kind is Kind.GROUP else kind not in _ASCENDING
        sort = Sort(name, not now.descending if now.field == name else descending)
        return replace(self, query=replace(self.query, sort=sort))

    def sorted_beside(self, columns: Sequence[Column], step: int, *, around: bool) -> TableState:
        """Return the state sorted by the column `step` to the right; at the end stay, or wrap `around`."""
        names = [column.sort for column in columns if column.field.is_sortable]
        if not names:
            return self
        if self.query.sort.field not in names:
            return self.sorted_by(names[0])
        at = names.index(self.query.sort.field) + step
        if not around and not 0 <= at < len(names):
            return self
        name = names[at % len(names)]
        return self if name == self.query.sort.field else self.sorted_by(name)

    def with_totals(self, *, on: bool) -> TableState:
        """Return the state in totals or rates, sorted by the same counter."""
        table, sort = self.query.table, self.query.sort
        field = (as_totals if on else as_rates)(table, sort.field)
        return replace(self, query=replace(self.query, sort=replace(sort, field=field), deltas=not on))

    @property
    def has_forms(self) -> bool:
        """True if totals and rates can be switched: the table has counters, and no column shows one both ways."""
        table, names = self.query.table, self.declared_names
        both = any(as_rates(table, name) in names for name in names if _is_counter(table, name))
        return any(field.has_rate for field in table.fields) and not both


def initial_state(
    table: Table, settings: ViewSettings | None, remembered: Sequence[str] | None = None
) -> TableState:
    """Return the initial state of `table`: as declared, changed by the settings.

    Columns are those of the settings, else those remembered, else the table's defaults.
    """
    query, chosen = screen_query(table), remembered
    if settings is not None:
        query = query_from_settings(query, settings)
        chosen = columns_from_settings(table, settings) or remembered
    state = TableState(query, table.screen)
    return state.with_columns(chosen or table.screen, chosen_by_user=chosen is not None)


def _are_totals(table: Table, names: Sequence[str]) -> bool:
    """Return whether a column is a counter's total."""
    return any(_is_counter(table, name) for name in names)


def _is_counter(table: Table, name: str) -> bool:
    field = table.by_name.get(name)
    return field is not None and field.has_rate
