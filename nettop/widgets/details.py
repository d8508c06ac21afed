# SPDX-License-Identifier: Apache-2.0
"""Everything about one row, as lines: each field with its value, what it means and how it is worked out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from rich.cells import cell_len

from nettop.query.units import RATIO, UNKNOWN, human, human_spread, unit_of
from nettop.query.view import View
from nettop.snapshots.histograms import histogram_text
from nettop.snapshots.hooks import NOT_AVAILABLE
from nettop.snapshots.schema import RATE, Field, Kind
from nettop.snapshots.snapshot import Frame, Rows, Snapshot
from nettop.widgets.bar import Span
from nettop.widgets.cells import fit, role_of
from nettop.widgets.page import Line, wrapped
from nettop.widgets.themes import Role

_TITLE = 15
_VALUE = 30
_ONE_LINE = 100
"""From this width on the meaning of a field stands beside its value, not below."""


def detail_lines(view: View, key: int, described: Mapping[str, str] | str, width: int) -> list[Line]:
    """The lines for the row with this key. `described` are the source's details, or why there are none yet."""
    alone = row_view(view, key)
    if alone is None:
        return [(Span("closed, and gone from the table", Role.DIM),)]
    lines: list[Line] = []
    if isinstance(described, str):
        lines = [*wrapped(described, width, Role.DIM), ()]
    elif described:
        for title, text in described.items():
            first, *rest = wrapped(text, width, Role.TEXT, _TITLE + 1) or [(Span(""),)]
            head = Span(fit(title.upper(), _TITLE, left=True) + " ", Role.HEAD)
            lines += [(head, Span(first[0].text[_TITLE + 1 :])), *rest]
        lines.append(())
    for field in sorted(alone.table.fields, key=lambda f: -f.importance):
        lines += _field_lines(alone, field, width)
    return lines


def row_view(view: View, key: int) -> View | None:
    """A view of the one row with this key, in totals; of its last state where it has just gone."""
    now, before = _only(view.now, key), None if view.before is None else _only(view.before, key)
    frame, newest = view.frame, now or before
    if newest is None:
        return None
    if view.table.append:
        alone = Frame(frame.now, batches={view.table.name: (newest,)})
    elif now is None and frame.before is not None:
        alone = Frame(_with(frame.before, newest))
    else:
        earlier = None if frame.before is None or before is None else _with(frame.before, before)
        alone = Frame(_with(frame.now, newest), earlier)
    return View(alone, replace(view.query, deltas=False, closed=False, gone=False))


def _only(rows: Rows, key: int) -> Rows | None:
    """The row with this key, if it is among the rows; those are sorted by it."""
    keys = rows.array[rows.table.key]
    at = int(np.searchsorted(keys, key))
    return replace(rows, array=rows.array[at : at + 1]) if at < len(keys) and int(keys[at]) == key else None


def _with(snapshot: Snapshot, rows: Rows) -> Snapshot:
    """The snapshot with no other rows than these."""
    return replace(snapshot, tables={rows.table.name: rows})


# --- lines --------------------------------------------------------------------------------------------------


def _field_lines(view: View, field: Field, width: int) -> list[Line]:
    value, raw = _value(view, field)
    tone = Role.FAINT if value in (NOT_AVAILABLE, UNKNOWN) else role_of(field)
    head = [Span(fit(field.title, _TITLE, left=True) + " ", Role.HEAD)]
    head.append(Span(value, Role.TEXT if tone is Role.DIM else tone))
    if raw:
        head.append(Span(f"  {raw}", Role.DIM))
    formula = f"  = {field.formula}" if field.formula else ""
    why = f"  ({NOT_AVAILABLE}: {view.missing[field.name]})" if field.name in view.missing else ""
    meaning = f"{field.name}: {field.help}{formula}{why}"
    below = _buckets(view, field, width)
    used = sum(cell_len(piece.text) for piece in head)
    if width < _ONE_LINE:
        return [tuple(head), *wrapped(meaning, width, Role.FAINT, 2), *below]
    if used < _TITLE + _VALUE:
        head.append(Span(" " * (_TITLE + _VALUE - used), Role.TEXT))
    column = max(used, _TITLE + _VALUE) + 2
    beside, *more = wrapped(meaning, width - column, Role.FAINT) or [()]
    return [
        (*head, Span("  ", Role.TEXT), *beside),
        *((Span(" " * column, Role.TEXT), *line) for line in more),
        *below,
    ]


def _buckets(view: View, field: Field, width: int) -> list[Line]:
    """What each bucket of a histogram counted, as words."""
    if field.kind is not Kind.HISTOGRAM:
        return []
    counted = view.values(field.name, np.array([0], np.intp))[0]
    return wrapped(histogram_text(counted or ()), width, Role.DIM, 2)


def _value(view: View, field: Field) -> tuple[str, str]:
    """The value for a person, and what stands behind it where that says more."""
    at, unit = np.array([0], np.intp), unit_of(view.table, field.name)
    if field.name in view.missing:
        return NOT_AVAILABLE, ""
    if field.kind is Kind.GROUP:
        values = [view.values(part, at)[0] for part in field.parts]
        if unit and len(values) == 2:
            return human_spread(values[0], values[1], unit), ""
        return " ".join(str(value) for value in values if value is not None) or UNKNOWN, ""
    if field.kind is Kind.HISTOGRAM:
        counted = view.column(field.name)
        return f"{counted.numbers[0]:,} counted" if counted.known[0] else UNKNOWN, ""
    value = view.values(field.name, at)[0]
    if value is None or isinstance(value, str) or field.kind in (Kind.LABEL, Kind.KEY):
        return UNKNOWN if value is None else str(value), ""
    text, more = human(value, unit), []
    rate = view.values(field.name + RATE, at)[0] if field.has_rate else None
    if rate is not None:
        more.append(human(rate, unit_of(view.table, field.name + RATE)))
    if unit != RATIO and text.replace(",", "") != str(value):
        more.append(f"{value:,} {unit}" if isinstance(value, int) else f"{value:,.1f} {unit}")
    return text, "  ".join(more)
