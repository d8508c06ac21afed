# SPDX-License-Identifier: Apache-2.0
"""Texts and roles of table cells. Widths are in terminal cells, not characters."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from rich.cells import cell_len

from nettop.query.times import rfc3339
from nettop.query.units import TOO_NARROW, UNKNOWN, human, human_spread, unit_of
from nettop.query.view import View
from nettop.snapshots.arrays import Index, Mask, as_list
from nettop.snapshots.hooks import NOT_AVAILABLE
from nettop.snapshots.schema import RATE, Field, Kind
from nettop.widgets.blocks import bar_parts, sparkline
from nettop.widgets.columns import GAP, Column, declared
from nettop.widgets.durations import rebin
from nettop.widgets.text import elide_end, elide_middle, fit
from nettop.widgets.themes import Role

WARNING = "▲"
_UNLIMITED = 10_000
"""A width large enough for any text."""
_NUMBERS = frozenset({Kind.RATIO, Kind.COUNTER, Kind.SUM, Kind.GAUGE, Kind.QUANTILE})

SUMMED = frozenset({Kind.COUNTER, Kind.RATIO, Kind.SUM, Kind.QUANTILE})
_BOLD = {Role.SENT: Role.TOTAL_SENT, Role.RECEIVED: Role.TOTAL_RECEIVED}

Cell = tuple[str, Role]


class RowFlags(NamedTuple):
    """Marks of a row: gone, idle in the last interval, less important, failed, or with values not available here."""

    gone: bool = False
    idle: bool = False
    quiet: bool = False
    failed: bool = False
    missing: bool = False


def flags_of(view: View, at: Index, **masks: Mask) -> list[RowFlags]:
    """Return the flags of the rows at `at`: gone ones by the view, others by a mask each."""
    rows = zip(*map(as_list, (view.gone[at], *masks.values())), strict=True)
    return [RowFlags(**dict(zip(("gone", *masks), marks, strict=True))) for marks in rows]


def is_zero(view: View, column: str, at: Index) -> Mask:
    """Return a mask of the rows where this column is zero."""
    values = view.column_at(column, at)
    zero: Mask = values.known & (values.numbers == 0)
    return zero


def idle_where_zero(column: str, view: View, at: Index) -> list[RowFlags]:
    """Return the flags of rows, idle where this column is zero."""
    return flags_of(view, at, idle=is_zero(view, column, at))


class Note(NamedTuple):
    """A column that tells what a row is, unless it is `usual`.

    Where it is not shown, its values stand in the `replaced` columns, in their `short` form where these are narrow.
    """

    column: str
    usual: str
    replaced: frozenset[str]
    short: Mapping[str, str]

    def texts(self, view: View, at: Index, width: int) -> list[str | None]:
        """Return the values of the rows at `at`, shortened to `width`; None for the usual one."""
        values = [None if value == self.usual else value for value in view.values(self.column, at)]
        return [self.short.get(value, value) if value and len(value) > width else value for value in values]


class Apart(NamedTuple):
    """A column that tells rows apart which have the same values in the `same` columns."""

    column: str
    same: tuple[str, ...]

    def is_needed(self, view: View, at: Index) -> bool:
        """Return whether any of the rows at `at` differ in nothing else."""
        if self.column in view.missing:
            return False
        alike = list(zip(*(view.values(name, at) for name in self.same), strict=True))
        return len(set(alike)) < len(set(zip(alike, view.values(self.column, at), strict=True)))


@dataclass(frozen=True)
class RowStyle:
    """Style of a table's rows.

    Mappings are by column: `absent` is the text of an unknown value, `warn_above` the threshold of a warning, `failing`
    the sign put before the text in the row of a failure. `stale` columns are faint while a row is idle; those in
    `keep_ends` are elided at their start. `flags` returns the flags of rows, `note` tells unusual ones, `apart` those
    that look the same. `empty` says that there are no rows, `lacking` what is not available.
    """

    absent: Mapping[str, str] = field(default_factory=dict)
    warn_above: Mapping[str, float] = field(default_factory=dict)
    failing: Mapping[str, str] = field(default_factory=dict)
    stale: frozenset[str] = frozenset()
    keep_ends: frozenset[str] = frozenset()
    flags: Callable[[View, Index], list[RowFlags]] | None = None
    note: Note | None = None
    apart: Apart | None = None
    empty: str = "no rows"
    lacking: str = f"{NOT_AVAILABLE} here"

    def empty_text(self, view: View) -> str:
        """Return why a table has no rows: it is not available, or it is empty."""
        missing = view.snapshot.missing_hook(view.table)
        return self.empty if missing is None else f"{self.lacking}: {missing.advice}"


# --- a column's cells ---------------------------------------------------------------------------------------


def column_cells(
    view: View, column: Column, at: Index, flags: Sequence[RowFlags], row_style: RowStyle
) -> list[Cell]:
    """Return the cells of a column for the rows at `at`, each as wide as the column."""
    if column.name in view.missing:
        return [(fit(NOT_AVAILABLE, column.width, left=column.left), Role.FAINT)] * len(at)
    texts = _texts(view, column, at)
    if column.name in row_style.keep_ends:
        texts = [text and elide_end(text[::-1], column.width)[::-1] for text in texts]
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


def noted_cells(
    cells: Sequence[Cell], column: Column, notes: Sequence[str | None], flags: Sequence[RowFlags]
) -> list[Cell]:
    """Return a column's cells with the note in its place in each open row that has one."""
    noted = []
    for cell, note, row in zip(cells, notes, flags, strict=True):
        is_usual = note is None or row.gone
        noted.append(cell if is_usual else (_fitted(note, column), _subdued(Role.DIM, row)))
    return noted


def whole_texts(view: View, columns: Sequence[Column], at: Index, row_style: RowStyle) -> list[list[str]]:
    """Return the unelided texts of columns for the rows at `at`. Bars are left out."""
    texts = []
    for column in (shown for shown in columns if not shown.bar):
        name, field = column.sort, declared(view.table, column.sort)
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
    column = view.column_at(name, at)
    return as_list(np.where(column.known, column.numbers, 0.0))


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
    if kind in (Kind.LABEL, Kind.KEY):
        return [None if value is None else str(value) for value in values]
    return [v if v is None or isinstance(v, str) else _amount(v, column) for v in values]


def _amount(number: float, column: Column) -> str:
    """Format a number; in the short form without decimals, if that leaves anything of it."""
    text = human(number, column.unit, column.width - 2) if column.brief else TOO_NARROW
    return human(number, column.unit, column.width) if text == TOO_NARROW else text


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
    counted = rebin(view.histogram(column.name)[at], view.buckets(column.name), column.width)
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


# --- totals -------------------------------------------------------------------------------------------------


def total_cells(view: View, columns: Sequence[Column]) -> list[Cell]:
    """Return the cells of the totals: the number of rows in the first, sums and overall ratios in the others."""
    at, count = view.shown, int((~view.gone[view.shown]).sum())
    # A full table has evicted rows: its size is only a lower bound.
    number = f"≥{count:,}" if view.is_full and count == view.size else f"{count:,}"
    labels, width = (f"─ total {number}", f"─ {number}", number), columns[0].width
    label = next((label for label in labels if len(label) <= width), number)
    return [(fit(label, width, left=True), Role.TEXT), *_sums(view, columns[1:], partial(view.total, at=at))]


def fold_cells(view: View, columns: Sequence[Column], at: Index, name: str) -> list[Cell]:
    """Return the cells of closed rows with the same name in one line: their number up to the first sum, then sums."""
    first = next((n for n, column in enumerate(columns) if n and column.field.kind in SUMMED), len(columns))
    width = sum(column.width + GAP for column in columns[:first]) - GAP
    ending = f": {len(at):,} closed"
    label = elide_end(name, max(1, width - len(ending))) + ending
    sums = _sums(view, columns[first:], partial(view.total, at=at, with_closed=True))
    return [(text, Role.FAINT) for text in (fit(label, width, left=True), *(text for text, _ in sums))]


def _sums(view: View, columns: Sequence[Column], total: Callable[[str], float | None]) -> list[Cell]:
    """Return a cell for each column, blank if it has no total."""
    cells: list[Cell] = []
    for column in columns:
        if column.field.kind not in SUMMED or not view.table.adds_up:
            cells.append((" " * column.width, Role.DIM))
        elif column.name in view.missing:
            cells.append((fit(NOT_AVAILABLE, column.width, left=column.left), Role.FAINT))
        else:
            amount = human(total(column.name), column.unit, column.width)
            role = _BOLD.get(role_of(column.field), Role.TEXT)
            cells.append((fit(amount, column.width, left=column.left), role))
    return cells
