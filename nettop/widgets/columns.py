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

_MIN_EXTRA = 3
"""Fields less important than this, such as a row's number, are shown only if chosen."""

_RATE = 9
"""`1.93 Gb/s`, `99.9 Mb/s`"""

_BAR, _BAR_MIN = 10, 8

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
    width: int
    left: bool
    brief: bool = False
    """True if numbers are shown without decimals."""
    sort: str = ""
    bar: bool = False
    """True if the column is drawn as a bar, not as a number."""


class _Size(NamedTuple):
    minimum: int
    fair: int
    wanted: int
    maximum: int


@dataclass(slots=True)
class _Slot:
    """A column while widths are computed; `brief` if in its short form."""

    name: str
    field: Field
    title: str
    unit: str
    brief: bool = False
    bar: bool = False


def plan(
    table: Table, names: Sequence[str], width: int, *, extra: bool = True, bars: bool = True
) -> tuple[Column, ...]:
    """Return the columns that fit in `width` cells: those in `names`, dropping the least important first.

    With `bars`, add a bar of the watched field's rate, or of the table's `bar`; with `extra`, fill the remaining room
    with further fields of the table.
    """
    slots = [_slot(table, name) for name in names]
    if bars and table.watched:
        bar = replace(_slot(table, table.watched + RATE), title=BAR_TITLE, bar=True)
        slots.insert(_after(table, names, table.watched_parts), bar)
    elif bars and table.bar in names:
        slots.insert(_after(table, names, (table.bar,)), replace(_slot(table, table.bar), title="", bar=True))
    slots = _shed(slots, width - MARGINS)
    widths = _grow(slots, width - MARGINS)
    if extra and all(w >= _size(s).wanted for s, w in zip(slots, widths, strict=True)):
        rates = any(name.endswith(RATE) for name in names)
        shown = [slot.name for slot in slots]
        slots += _extras(table, shown, width - MARGINS - _width_of(widths), rates=rates)
        widths = _grow(slots, width - MARGINS, to_maximum=True)
    return tuple(_column(table, slot, size) for slot, size in zip(slots, widths, strict=True))


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


def _after(table: Table, names: Sequence[str], parts: Sequence[str]) -> int:
    """Return the position after the last of these parts or their rates, or the end if none is there."""
    return 1 + max(
        (at for at, name in enumerate(names) if as_totals(table, name) in parts), default=len(names)
    )


def _slot(table: Table, name: str) -> _Slot:
    return _Slot(name, declared(table, name), table.title_of(name), unit_of(table, name))


# --- shedding -----------------------------------------------------------------------------------------------


def _shed(slots: list[_Slot], space: int) -> list[_Slot]:
    """Return the slots that fit in `space` at their minimum widths; keep at least one."""
    while len(slots) > 1 and _width_of([_min_width(slot, slots) for slot in slots]) > space:
        weakest = min(slots, key=_next_step)
        if _can_shorten(weakest):
            weakest.brief = True
        else:
            slots.remove(weakest)
    return slots


def _can_shorten(slot: _Slot) -> bool:
    """Return whether a shorter form is left: the port of an endpoint, the first of a group of numbers, a share without
    decimals."""
    has_short_form = slot.field.kind in (Kind.ENDPOINT, Kind.GROUP) or _is_share(slot)
    return (
        has_short_form and not _is_elastic(slot) and not slot.brief and slot.field.importance < _DROPPED_LAST
    )


def _next_step(slot: _Slot) -> int:
    """Return the importance of this column's next loss: its long form, or the column itself."""
    short_form = 2 * _SHORT_FORM_BONUS if slot.field.kind is Kind.GROUP else _SHORT_FORM_BONUS
    return slot.field.importance - (short_form if _can_shorten(slot) else 0)


def _min_width(slot: _Slot, slots: Sequence[_Slot]) -> int:
    """Return the minimum width of a column, smaller if only the most important ones are left."""
    last = len(slots) <= _MAX_DROPPED_LAST and all(other.field.importance >= _DROPPED_LAST for other in slots)
    if not last or slot.field.kind is Kind.COUNTER:
        return _usual_min_width(slot)
    return min(_size(slot).minimum, 10)


def _usual_min_width(slot: _Slot) -> int:
    size = _size(slot)
    return size.fair if slot.field.kind is Kind.TIME else size.minimum


def _width_of(widths: Sequence[int]) -> int:
    return sum(widths) + GAP * max(0, len(widths) - 1)


# --- growing ------------------------------------------------------------------------------------------------


def _grow(slots: Sequence[_Slot], space: int, *, to_maximum: bool = False) -> list[int]:
    """Return a width for each slot: give spare cells one by one to the columns that can use them."""
    sizes = [_size(slot) for slot in slots]
    widths = [_usual_min_width(slot) for slot in slots]
    if _width_of(widths) > space:
        widths = [_min_width(slot, slots) for slot in slots]
    spare = space - _width_of(widths)
    for limit in ("minimum", "fair", "wanted", "maximum")[: 4 if to_maximum else 3]:
        while spare > 0:
            growing = [at for at, size in enumerate(sizes) if widths[at] < getattr(size, limit)]
            if not growing:
                break
            for at in sorted(growing, key=lambda at: -slots[at].field.importance)[:spare]:
                widths[at] += 1
            spare -= min(spare, len(growing))
    if len(slots) == 1:
        widths[0] = min(widths[0], max(1, space))
    return widths


def _extras(table: Table, names: Sequence[str], space: int, *, rates: bool) -> list[_Slot]:
    """Return further fields that fit in `space`, the most important first."""
    shown = {as_totals(table, name) for name in names}
    for name in names:
        field = declared(table, name)
        if field.kind in (Kind.GROUP, Kind.ENDPOINT):
            shown.update(field.parts)
    extras: list[_Slot] = []
    rest = (f for f in table.fields if f.name not in shown and f.kind not in (Kind.GROUP, Kind.HISTOGRAM))
    for field in sorted((f for f in rest if f.importance >= _MIN_EXTRA), key=lambda f: -f.importance):
        name = as_rates(table, field.name) if rates else field.name
        slot = _slot(table, name)
        space -= _size(slot).wanted + GAP
        if space < 0:
            break
        extras.append(slot)
    return extras


# --- sizes --------------------------------------------------------------------------------------------------


def _size(slot: _Slot) -> _Size:
    field = slot.field
    if field.kind is Kind.TIME:
        return _Size(_CLOCK_BRIEF, _CLOCK_MIN, _CLOCK, _CLOCK)
    if slot.bar:
        return _Size(_BAR_MIN, _BAR_MIN, _BAR, _BAR)
    width = max(_RATE if slot.unit == "bytes/s" else field.width, len(slot.title))
    if field.kind is Kind.ENDPOINT:
        # Every IPv4 endpoint fits in 21 cells. The important endpoint keeps them; the other may shrink.
        minimum = 21 if field.importance >= _DROPPED_LAST else 14
        return _Size(6, 6, 6, 6) if slot.brief else _Size(minimum, 21, width, _LONGEST_ENDPOINT)
    if _is_share(slot) and slot.brief:
        return _Size(5, 5, 5, 5)
    if _is_elastic(slot):
        minimum = _SENTENCE_MIN if width >= _SENTENCE else min(width, _NAME_MIN)
        return _Size(minimum, max(minimum, min(width, 18)), width, max(width, 40))
    if field.kind is Kind.ENUM:
        return _Size(min(width, 14), width, width, width)
    if field.kind is Kind.HISTOGRAM:
        return _Size(max(len(slot.title), min(width, 16)), width, width, max(width, 40))
    if field.kind is Kind.GROUP and slot.brief:
        width = 7
    return _Size(width, width, width, width)


def _is_share(slot: _Slot) -> bool:
    return slot.field.kind is Kind.RATIO and slot.unit == RATIO


def _is_elastic(slot: _Slot) -> bool:
    return slot.field.kind is Kind.TEXT or (slot.field.kind is Kind.GROUP and not slot.unit)


def _column(table: Table, slot: _Slot, width: int) -> Column:
    field, name = slot.field, slot.name
    if slot.brief and field.kind in (Kind.ENDPOINT, Kind.GROUP):
        part = table.by_name[field.parts[1 if field.kind is Kind.ENDPOINT else 0]]
        left = field.kind is Kind.ENDPOINT
        return Column(part.name, part, part.title, unit_of(table, part.name), width, left, sort=name)
    left = field.kind in _LEFT or _is_elastic(slot) or slot.bar
    return Column(name, field, slot.title, slot.unit, width, left, slot.brief, sort=name, bar=slot.bar)
