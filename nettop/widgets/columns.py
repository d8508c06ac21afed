# SPDX-License-Identifier: Apache-2.0
"""The choice of a table's columns, and of their widths, in a given width. It depends only on the declared fields."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from nettop.query.units import RATIO, unit_of
from nettop.snapshots.schema import BAR_TITLE, RATE, Field, Kind, Table

GAP = 1
MARGINS = 2
"""One cell before the first column for the row's mark, one after the last for the scroll bar."""

_SHORT_FORM_BONUS = 8
"""A column is shortened when its importance minus this is the lowest."""

_DROPPED_LAST = 85
_MAX_DROPPED_LAST = 5
"""Columns at least this important are dropped last: when only this many are left, they shrink below their usual
minimum first."""

_NEEDED = 84
"""The least importance of a needed column: the reason why the user looks at the rows, or what tells them apart."""

_MIN_EXTRA = 3
"""Fields less important than this, such as a row's number, are shown only if chosen."""

_RATE = 9
"""`1.93 Gb/s`, `99.9 Mb/s`"""

_BAR, _BAR_MIN = 10, 8
_BAR_IMPORTANCE = _REPEATED = 80
"""A bar, and a total beside its rate, repeat a number that is shown: what stands alone stays longer."""

_CLOCK, _CLOCK_MIN, _CLOCK_BRIEF = 15, 12, 8
"""`12:26:40.123456`, also wide enough for `11-18 12:26:40`; `12:26:40.123`; `12:26:40`"""

_LEFT = frozenset({Kind.TEXT, Kind.ENUM, Kind.ADDRESS, Kind.ENDPOINT, Kind.TIME, Kind.HISTOGRAM})
"""Kinds that are aligned left: texts, and kinds that fill their column."""

_LONGEST_ENDPOINT = 47
"""An IPv6 address in brackets and a port."""

_NAME_MIN, _SENTENCE_MIN = 14, 24
"""Minimum widths at which a name and a sentence are still recognizable."""
_SENTENCE = 36
"""Texts declared at least this wide are sentences."""


@dataclass(frozen=True, slots=True)
class Column:
    """A column as drawn. `name` is the view's column, `sort` the one a click sorts by."""

    name: str
    field: Field
    title: str
    unit: str
    sort: str
    width: int = 0
    brief: bool = False
    """True in the short form; numbers are then shown without decimals."""
    bar: bool = False
    """True if the column is drawn as a bar, not as a number."""

    @property
    def left(self) -> bool:
        """True if the column is aligned left: bars, texts, and the port in place of an endpoint."""
        is_port = self.name != self.sort and self.field.kind is Kind.LABEL
        return self.bar or is_port or self.field.kind in _LEFT or _is_elastic(self)


class _Size(NamedTuple):
    minimum: int
    fair: int
    wanted: int
    maximum: int


def plan(
    table: Table,
    names: Sequence[str],
    width: int,
    *,
    extra: bool = True,
    bars: bool = True,
    needed: Sequence[str] = (),
) -> tuple[Column, ...]:
    """Return the columns that fit in `width` cells: those in `names`, dropping the least important first.

    The `needed` columns, such as those that the filter compares, are added, and dropped late. With `bars`, add a bar of
    the watched field's rate, or of the table's `bar`; with `extra`, fill the remaining room with further fields of the
    table.
    """
    columns = _with_needed(table, _without_repeated_totals([_column(table, name) for name in names]), needed)
    if bars and table.watched:
        bar = replace(_column(table, table.watched + RATE), title=BAR_TITLE, bar=True)
        columns.insert(_after(table, names, table.watched_parts), bar)
    elif bars and table.bar in names:
        column = _column(table, table.bar)
        bar = replace(column, field=replace(column.field, importance=_BAR_IMPORTANCE), title="", bar=True)
        columns.insert(_after(table, names, (table.bar,)), bar)
    columns = _shed(columns, width - MARGINS)
    widths = _grow(columns, width - MARGINS)
    if extra and all(w >= _size(column).wanted for column, w in zip(columns, widths, strict=True)):
        room = width - MARGINS - _width_of(widths)
        columns += _extras(table, columns, room, rates=_are_rates(columns))
        widths = _grow(columns, width - MARGINS, to_maximum=True)
    return tuple(_drawn(table, column, size) for column, size in zip(columns, widths, strict=True))


def declared(table: Table, name: str) -> Field:
    """Return the field that declares a column; for a rate, the field it is the rate of."""
    field = table.by_name.get(name)
    return table.by_name[name.removesuffix(RATE)] if field is None else field


def as_totals(table: Table, name: str) -> str:
    """Return the name of the cumulative column behind a rate; any other name unchanged."""
    return name if name in table.by_name else name.removesuffix(RATE)


def as_rates(table: Table, name: str) -> str:
    """Return the name of the rate of a counter or a sum of counters; any other name unchanged."""
    field = table.by_name.get(name)
    return name + RATE if field is not None and field.has_rate else name


def _without_repeated_totals(columns: list[Column]) -> list[Column]:
    """Have a total that stands beside its rate leave before what is said only once."""
    rates = {column.name.removesuffix(RATE) for column in columns if column.name.endswith(RATE)}
    return [
        replace(column, field=replace(column.field, importance=min(column.field.importance, _REPEATED)))
        if column.name in rates
        else column
        for column in columns
    ]


def _with_needed(table: Table, columns: list[Column], needed: Sequence[str]) -> list[Column]:
    """Add the needed columns, in rates or totals like the others; all of them are dropped late."""
    shown, rates = _shown(table, columns), _are_rates(columns)
    wanted = dict.fromkeys(as_totals(table, name) for name in needed)
    added = [as_rates(table, name) if rates else name for name in wanted if name not in shown]
    return [
        replace(column, field=replace(column.field, importance=max(column.field.importance, _NEEDED)))
        if as_totals(table, column.name) in wanted
        else column
        for column in (*columns, *(_column(table, name) for name in added))
    ]


def _shown(table: Table, columns: Sequence[Column]) -> set[str]:
    """Return the names of the fields that these columns show, alone or as a part."""
    shown = {as_totals(table, column.name) for column in columns}
    for column in columns:
        if column.field.kind in (Kind.GROUP, Kind.ENDPOINT):
            shown.update(column.field.parts)
    return shown


def _are_rates(columns: Sequence[Column]) -> bool:
    """Return whether counters are shown as rates."""
    return any(column.name.endswith(RATE) for column in columns)


def _after(table: Table, names: Sequence[str], parts: Sequence[str]) -> int:
    """Return the position after the last of these parts or their rates, or the end if none is there."""
    return 1 + max(
        (at for at, name in enumerate(names) if as_totals(table, name) in parts), default=len(names)
    )


def _column(table: Table, name: str) -> Column:
    return Column(name, declared(table, name), table.title_of(name), unit_of(table, name), name)


# --- shedding -----------------------------------------------------------------------------------------------


def _shed(columns: list[Column], space: int) -> list[Column]:
    """Return the columns that fit in `space` at their minimum widths; keep at least one. Of equally important ones, the
    last leaves first: a table's own columns stay longer than those added for a filter."""
    while len(columns) > 1 and _width_of([_min_width(column, columns) for column in columns]) > space:
        weakest = min(reversed(range(len(columns))), key=lambda at: _next_step(columns[at]))
        if _can_shorten(columns[weakest]):
            columns[weakest] = replace(columns[weakest], brief=True)
        else:
            del columns[weakest]
    return columns


def _can_shorten(column: Column) -> bool:
    """Return whether a shorter form is left: the port of an endpoint, the first of a group of numbers, a share without
    decimals."""
    has_short_form = column.field.kind in (Kind.ENDPOINT, Kind.GROUP) or _is_share(column)
    return (
        has_short_form
        and not _is_elastic(column)
        and not column.brief
        and column.field.importance < _DROPPED_LAST
    )


def _next_step(column: Column) -> int:
    """Return the importance of this column's next loss: its long form, or the column itself."""
    short_form = 2 * _SHORT_FORM_BONUS if column.field.kind is Kind.GROUP else _SHORT_FORM_BONUS
    return column.field.importance - (short_form if _can_shorten(column) else 0)


def _min_width(column: Column, columns: Sequence[Column]) -> int:
    """Return the minimum width of a column, smaller if only the most important ones are left."""
    last = len(columns) <= _MAX_DROPPED_LAST and all(
        other.field.importance >= _DROPPED_LAST for other in columns
    )
    if not last or column.field.kind is Kind.COUNTER:
        return _usual_min_width(column)
    return min(_size(column).minimum, 10)


def _usual_min_width(column: Column) -> int:
    size = _size(column)
    return size.fair if column.field.kind is Kind.TIME else size.minimum


def _width_of(widths: Sequence[int]) -> int:
    return sum(widths) + GAP * max(0, len(widths) - 1)


# --- growing ------------------------------------------------------------------------------------------------


def _grow(columns: Sequence[Column], space: int, *, to_maximum: bool = False) -> list[int]:
    """Return a width for each column: give spare cells one by one to the columns that can use them."""
    sizes = [_size(column) for column in columns]
    widths = [_usual_min_width(column) for column in columns]
    if _width_of(widths) > space:
        widths = [_min_width(column, columns) for column in columns]
    spare = space - _width_of(widths)
    for limit in ("minimum", "fair", "wanted", "maximum")[: 4 if to_maximum else 3]:
        while spare > 0:
            growing = [at for at, size in enumerate(sizes) if widths[at] < getattr(size, limit)]
            if not growing:
                break
            for at in sorted(growing, key=lambda at: -columns[at].field.importance)[:spare]:
                widths[at] += 1
            spare -= min(spare, len(growing))
    if len(columns) == 1:
        widths[0] = min(widths[0], max(1, space))
    return widths


def _extras(table: Table, columns: Sequence[Column], space: int, *, rates: bool) -> list[Column]:
    """Return further fields that fit in `space`, the most important first."""
    shown = _shown(table, columns)
    extras: list[Column] = []
    rest = (f for f in table.fields if f.name not in shown and f.kind not in (Kind.GROUP, Kind.HISTOGRAM))
    for field in sorted((f for f in rest if f.importance >= _MIN_EXTRA), key=lambda f: -f.importance):
        column = _column(table, as_rates(table, field.name) if rates else field.name)
        space -= _size(column).wanted + GAP
        if space < 0:
            break
        extras.append(column)
    return extras


# --- sizes --------------------------------------------------------------------------------------------------


def _size(column: Column) -> _Size:
    field = column.field
    if field.kind is Kind.TIME:
        return _Size(_CLOCK_BRIEF, _CLOCK_MIN, _CLOCK, _CLOCK)
    if column.bar:
        return _Size(_BAR_MIN, _BAR_MIN, _BAR, _BAR)
    width = max(_RATE if column.unit == "bytes/s" else field.width, len(column.title))
    if field.kind is Kind.ENDPOINT:
        # Every IPv4 endpoint fits in 21 cells. The important endpoint keeps them; the other may shrink.
        minimum = 21 if field.importance >= _DROPPED_LAST else 14
        return _Size(6, 6, 6, 6) if column.brief else _Size(minimum, 21, width, _LONGEST_ENDPOINT)
    if _is_share(column) and column.brief:
        width = max(5, len(column.title))
        return _Size(width, width, width, width)
    if _is_elastic(column):
        minimum = _SENTENCE_MIN if width >= _SENTENCE else min(width, _NAME_MIN)
        return _Size(minimum, max(minimum, min(width, 18)), width, max(width, 40))
    if field.kind is Kind.ENUM:
        return _Size(min(width, 14), width, width, width)
    if field.kind is Kind.HISTOGRAM:
        return _Size(max(len(column.title), min(width, 16)), width, width, max(width, 40))
    if field.kind is Kind.GROUP and column.brief:
        width = 7
    return _Size(width, width, width, width)


def _is_share(column: Column) -> bool:
    return column.field.kind is Kind.RATIO and column.unit == RATIO


def _is_elastic(column: Column) -> bool:
    return column.field.kind is Kind.TEXT or (column.field.kind is Kind.GROUP and not column.unit)


def _drawn(table: Table, column: Column, width: int) -> Column:
    """Return the column in its final width; a short form shows a part of an endpoint or a group."""
    field = column.field
    if not column.brief or field.kind not in (Kind.ENDPOINT, Kind.GROUP):
        return replace(column, width=width)
    part = table.by_name[field.parts[1 if field.kind is Kind.ENDPOINT else 0]]
    return Column(part.name, part, part.title, unit_of(table, part.name), column.name, width)
