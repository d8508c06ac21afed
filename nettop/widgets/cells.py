# SPDX-License-Identifier: Apache-2.0
"""Texts and roles of table cells. Widths are in terminal cells, not characters."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
from rich.cells import cell_len, set_cell_size

from nettop.query.times import rfc3339
from nettop.query.units import UNKNOWN, human, human_spread, unit_of
from nettop.query.view import View
from nettop.snapshots.arrays import Index, as_list
from nettop.snapshots.hooks import NOT_AVAILABLE
from nettop.snapshots.schema import RATE, Field, Kind
from nettop.widgets.blocks import bar_parts, sparkline
from nettop.widgets.columns import Column, declared
from nettop.widgets.histogram import rebin as histogram_cells
from nettop.widgets.themes import Role

WARNING = "▲"
_UNLIMITED = 10_000
"""A width large enough for any text."""
_NUMBERS = frozenset({Kind.RATIO, Kind.COUNTER, Kind.SUM, Kind.GAUGE, Kind.QUANTILE})

Cell = tuple[str, Role]


def why_empty(view: View) -> str:
    """Return why a table has no rows: it is not available, or it is empty."""
    lacking = view.snapshot.missing_hook(view.table)
    return "no rows" if lacking is None else f"{NOT_AVAILABLE} here: {lacking.advice}"


class RowFlags(NamedTuple):
    """Marks of a row: gone, idle in the last interval, less important, failed, or with values not available here."""

    gone: bool = False
    idle: bool = False
    quiet: bool = False
    failed: bool = False
    missing: bool = False


def idle_where_zero(column: str, view: View, at: Index) -> list[RowFlags]:
    """Return the flags of rows, idle where this column is zero."""
    values = view.column(column)
    idle = values.known[at] & (values.numbers[at] == 0)
    return [RowFlags(*flags) for flags in zip(as_list(view.gone[at]), as_list(idle), strict=True)]


@dataclass(frozen=True)
class RowStyle:
    """Style of a table's rows.

    Mappings are by column: `absent` is the text of an unknown value, `warn_above` the threshold of a warning,
    `failing` the sign put before the text in the row of a failure. `stale` columns are faint while a row is idle;
    those in `keep_ends` are elided at their start. `flags` returns the flags of rows, `empty_text` why there are no
    rows.
    """

    absent: Mapping[str, str] = field(default_factory=dict)
    warn_above: Mapping[str, float] = field(default_factory=dict)
    failing: Mapping[str, str] = field(default_factory=dict)
    stale: frozenset[str] = frozenset()
    keep_ends: frozenset[str] = frozenset()
    flags: Callable[[View, Index], list[RowFlags]] | None = None
    empty_text: Callable[[View], str] = why_empty


# --- a column's cells ---------------------------------------------------------------------------------------


def column_cells(
    view: View, column: Column, at: Index, flags: Sequence[RowFlags], row_style: RowStyle
) -> list[Cell]:
    """Return the cells of a column for the rows at `at`, each as wide as the column."""
    if column.name in view.missing:
        return [(fit(NOT_AVAILABLE, column.width, left=column.left), Role.FAINT)] * len(at)
    texts = _texts(view, column, at)
    if column.name in row_style.keep_ends:
        texts = [text and elide_start(text, column.width) for text in texts]
    # Zeros and values above a threshold are drawn differently.
    numbers = view.values(column.name, at) if column.field.kind in _NUMBERS else [None] * len(at)
    limit = row_style.warn_above.get(column.name)
    stale = column.name in row_style.stale
    absent = row_style.absent.get(column.name)
    sign = row_style.failing.get(column.name)
    tone = role_of(column.field)
    cells = []
    for text, number, row in zip(texts, numbers, flags, strict=True):
        if sign is not None and row.failed and text is not None:
            cells.append((_fitted(sign + text, column), Role.WARN))
        elif limit is not None and number is not None and number > limit and not row.gone:
            amount = human(number, column.unit, column.width - (2 if column.brief else 1))
            gap = " " if len(amount) + 2 <= column.width else ""
            cells.append((f"{WARNING}{gap}{amount}".rjust(column.width), Role.BAD))
        elif text is None and row.missing:
            cells.append((fit(NOT_AVAILABLE, column.width, left=column.left), Role.FAINT))
        elif text is None and absent is not None:
            cells.append((fit(absent, column.width, left=column.left), _subdued(Role.NOBODY, row)))
        else:
            role = Role.FAINT if text is None or (stale and row.idle) or number == 0 else tone
            cells.append((_fitted(text, column), _subdued(role, row)))
    return cells


def whole_texts(view: View, columns: Sequence[Column], at: Index, row_style: RowStyle) -> list[list[str]]:
    """Return the unelided texts of columns for the rows at `at`. Bars are left out."""
    texts = []
    for column in columns:
        name, field = column.sort, declared(view.table, column.sort)
        if column.bar:
            continue
        width = column.width if field.kind is Kind.HISTOGRAM else _UNLIMITED
        whole = replace(
            column, name=name, field=field, unit=unit_of(view.table, name), width=width, brief=False
        )
        unknown = NOT_AVAILABLE if name in view.missing else row_style.absent.get(name, UNKNOWN)
        cells = [None] * len(at) if name in view.missing else _texts(view, whole, at)
        texts.append([unknown if text is None else text for text in cells])
    return texts


def bar_cells(view: View, column: Column, at: Index, flags: Sequence[RowFlags]) -> list[tuple[Cell, ...]]:
    """Return the bars of a number for the rows at `at`, each in two pieces. The view's largest value fills a bar.

    For the rate of a sum, the pieces are the rates of its parts.
    """
    if column.field.kind is Kind.SUM:
        fields = [view.table.by_name[part] for part in column.field.parts]
        first, second = (_numbers(view, field.name + RATE, at) for field in fields)
    else:
        fields = [column.field, column.field]
        first, second = _numbers(view, column.name, at), [0.0] * len(at)
    largest = view.largest(column.name)
    cells = []
    for size, other, row in zip(first, second, flags, strict=True):
        pieces = bar_parts(size, other, largest, column.width)
        roles = [Role.FAINT if row.gone else role_of(field) for field in fields]
        cells.append(tuple(zip(pieces, roles, strict=True)))
    return cells


def _numbers(view: View, name: str, at: Index) -> list[float]:
    """Return a column's numbers at these rows, 0 where unknown."""
    column = view.column(name)
    return as_list(np.where(column.known[at], column.numbers[at], 0.0))


def _subdued(role: Role, row: RowFlags) -> Role:
    if row.gone:
        return Role.FAINT
    if row.quiet:
        return Role.DIM if role in (Role.TEXT, Role.NOBODY) else Role.FAINT
    return role


def role_of(field: Field) -> Role:
    """Return the field's tone, or TEXT or DIM by its importance."""
    if field.tone:
        return Role(field.tone)
    return Role.TEXT if field.importance >= 60 else Role.DIM


def _texts(view: View, column: Column, at: Index) -> list[str | None]:
    kind = column.field.kind
    if kind is Kind.GROUP:
        return _group_texts(view, column, at)
    if kind is Kind.HISTOGRAM:
        return _histogram_texts(view, column, at)
    values = view.values(column.name, at)
    if kind is Kind.ENDPOINT:
        return [fit_endpoint(value, column.width) for value in values]
    if kind is Kind.TIME:
        now = rfc3339(view.snapshot.wall_ns)
        return [None if value is None else when(value, column.width, now) for value in values]
    if column.name != column.sort and kind is Kind.LABEL:
        return [None if value is None else f":{value}" for value in values]
    return [value_text(value, column) for value in values]


def value_text(value: Any, column: Column) -> str | None:
    """Format a value for display in the column's width; None stays None."""
    if value is None or isinstance(value, str):
        return value
    if column.field.kind in (Kind.LABEL, Kind.KEY):
        return str(value)
    return human(value, column.unit, column.width - 2 if column.brief else column.width)


def when(moment: str, width: int, now: str) -> str:
    """Format a time (`moment` and `now` are RFC 3339) as the time of day, after the date if not today's."""
    day, clock = moment[:10], moment[11:-1]
    if day == now[:10]:
        forms = [clock, clock[:12], clock[:8]]
    elif day[:4] == now[:4]:
        forms = [f"{day[5:]} {clock[:8]}", f"{day[5:]} {clock[:5]}", day[5:]]
    else:
        forms = [f"{day} {clock[:8]}", day]
    return next((form for form in forms if len(form) <= width), forms[-1])


def _group_texts(view: View, column: Column, at: Index) -> list[str | None]:
    parts = [view.values(part, at) for part in column.field.parts]
    rows = zip(*parts, strict=True)
    if column.unit and len(parts) == 2:
        return [None if row[0] is None else human_spread(row[0], row[1], column.unit) for row in rows]
    kinds = [declared(view.table, part).kind for part in column.field.parts]
    return [_joined(row, kinds, column.width) for row in rows]


def _histogram_texts(view: View, column: Column, at: Index) -> list[str | None]:
    """Return a sparkline for each histogram: the largest cell of a row is full, empty ones are blank."""
    counted = histogram_cells(view.histogram(column.name)[at], view.buckets(column.name), column.width)
    return [
        sparkline([amount or None for amount in row], max(row)) if is_known else None
        for row, is_known in zip(as_list(counted), view.column(column.name).known[at], strict=True)
    ]


def _joined(row: Sequence[Any], kinds: Sequence[Kind], width: int) -> str | None:
    """Return the first text, elided so that the labels after it stay whole, then further texts while they fit."""
    if all(value is None for value in row):
        return None
    first = "" if row[0] is None else str(row[0])
    rest = list(zip(row[1:], kinds[1:], strict=True))
    labels = "".join(f" {value}" for value, kind in rest if value is not None and kind is not Kind.TEXT)
    text = elide_end(first, max(1, width - len(labels))) + labels
    for value, kind in rest:
        if value is not None and kind is Kind.TEXT and (mark := at_mark(value)):
            spare = width - cell_len(text) - 1
            text += f" {elide_end(mark, spare)}" if spare >= min(6, cell_len(mark)) else ""
    return text


def at_mark(container: str) -> str:
    """Return `@id` for a container (`runtime:id`), "" for a systemd unit, which mostly repeats the process."""
    runtime, colon, short = container.partition(":")
    return f"@{short}" if colon and runtime and short else ""


def _fitted(text: str | None, column: Column) -> str:
    return fit(UNKNOWN if text is None else text, column.width, left=column.left)


# --- fitting ------------------------------------------------------------------------------------------------


def fit(text: str, width: int, *, left: bool) -> str:
    """Return the text in exactly `width` cells: aligned left or right, elided at its end if too long."""
    if text.isascii() and len(text) <= width:
        return text.ljust(width) if left else text.rjust(width)
    cells = cell_len(text)
    if cells > width:
        text = elide_end(text, width)
        cells = cell_len(text)
    pad = " " * (width - cells)
    return text + pad if left else pad + text


def elide_end(text: str, width: int) -> str:
    """Cut the end of the text to at most `width` cells, marked with `…`."""
    if cell_len(text) <= width:
        return text
    return set_cell_size(text, width - 1).rstrip() + "…" if width > 0 else ""


def elide_start(text: str, width: int) -> str:
    """Cut the start of the text to at most `width` cells, marked with `…`."""
    return elide_end(text[::-1], width)[::-1]


def elide_middle(text: str, width: int) -> str:
    """Cut the middle of an ASCII text to at most `width` cells, marked with `…`: addresses differ at both ends."""
    if len(text) <= width:
        return text
    if width < 3:
        return "…"[:width]
    tail = (width - 1) // 2
    return f"{text[: width - 1 - tail]}…{text[-tail:]}"


def fit_endpoint(endpoint: str | None, width: int) -> str | None:
    """Return the endpoint in at most `width` cells; elide the address in its middle, never the port.

    Return `*` for a listener's wildcard address.
    """
    if endpoint is None or endpoint in ("0.0.0.0:*", "[::]:*"):
        return None if endpoint is None else "*"
    if not endpoint.isascii():
        return elide_end(endpoint, width)
    if len(endpoint) <= width:
        return endpoint
    address, _, port = endpoint.rpartition(":")
    return f"{elide_middle(address, max(1, width - len(port) - 1))}:{port}"
