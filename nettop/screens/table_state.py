# SPDX-License-Identifier: Apache-2.0
"""What a screen asks of its table, and the ways in which keys change it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from nettop.query.from_settings import columns_from_settings, query_from_settings
from nettop.query.query import Query, Sort, screen_query
from nettop.query.units import unit_of
from nettop.settings import ViewSettings
from nettop.snapshots.schema import Kind, Table
from nettop.widgets.columns import Column, as_rates, as_totals, declared

_FROM_A = frozenset({Kind.TEXT, Kind.ENUM, Kind.ADDRESS, Kind.ENDPOINT, Kind.LABEL, Kind.KEY})
"""Kinds that a person reads from A to Z; the others from the most to the least."""


@dataclass(frozen=True, slots=True)
class TableState:
    """The query, the columns (in the form they are declared), and whether counters are shown as totals."""

    query: Query
    declared_names: tuple[str, ...]
    is_own_choice: bool = False
    """Columns were named on the command line: no others come in on a wide terminal."""

    @property
    def totals(self) -> bool:
        """True where counters are totals since each row began, not rates."""
        return not self.query.deltas

    @property
    def names(self) -> tuple[str, ...]:
        """The columns to show."""
        table, names = self.query.table, self.declared_names
        if self.totals == _are_totals(table, names):
            return names
        turned = as_totals if self.totals else as_rates
        return tuple(dict.fromkeys(turned(table, name) for name in names))

    def sorted_by(self, name: str) -> TableState:
        """Sorted by `name`; once more turns the order round."""
        table, now = self.query.table, self.query.sort
        sort = Sort(name, _falls_first(table, name))
        if now.field == name:
            sort = replace(now, descending=not now.descending)
        return replace(self, query=replace(self.query, sort=sort))

    def sorted_beside(self, columns: Sequence[Column], step: int, *, around: bool) -> TableState:
        """Sorted by the column `step` to the right of the sorted one; at the end it stays or goes `around`."""
        names = [column.sort for column in columns]
        if not names:
            return self
        if self.query.sort.field not in names:
            return self.sorted_by(names[0])
        at = names.index(self.query.sort.field) + step
        if not around and not 0 <= at < len(names):
            return self
        name = names[at % len(names)]
        return self if name == self.query.sort.field else self.sorted_by(name)

    def reversed(self) -> TableState:
        """The same order from its end."""
        return self.sorted_by(self.query.sort.field)

    def with_totals(self, *, on: bool) -> TableState:
        """Totals, or rates; the sort goes along."""
        table, sort = self.query.table, self.query.sort
        field = (as_totals if on else as_rates)(table, sort.field)
        return replace(self, query=replace(self.query, sort=replace(sort, field=field), deltas=not on))

    @property
    def has_forms(self) -> bool:
        """True where a screen shows either totals or rates: not where there are none, nor where both stand there."""
        table, names = self.query.table, self.declared_names
        both = any(as_rates(table, name) in names for name in names if _is_counter(table, name))
        return any(field.kind is Kind.COUNTER for field in table.fields) and not both


def initial_state(table: Table, settings: ViewSettings | None) -> TableState:
    """How a screen opens `table`: as declared, changed by what the command line asks of it."""
    query, names = screen_query(table), table.screen
    asked = None
    if settings is not None:
        query, asked = query_from_settings(query, settings), columns_from_settings(table, settings)
    names = asked or names
    made = TableState(query, names, is_own_choice=asked is not None)
    totals = _are_totals(table, names)
    if query.sort.field in names:
        return replace(made, query=replace(query, deltas=not totals))
    return made.with_totals(on=totals)


def _are_totals(table: Table, names: Sequence[str]) -> bool:
    """True where the columns, as they are declared, show some counter's total."""
    return any(_is_counter(table, name) for name in names)


def _is_counter(table: Table, name: str) -> bool:
    field = table.by_name.get(name)
    return field is not None and field.kind is Kind.COUNTER


def _falls_first(table: Table, name: str) -> bool:
    field = declared(table, name)
    if field.kind is Kind.GROUP:
        return bool(unit_of(table, name))
    return field.kind not in _FROM_A
