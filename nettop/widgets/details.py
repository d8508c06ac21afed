# SPDX-License-Identifier: Apache-2.0
"""The pane with the details of a row: the source's, and its values by section, optionally with their meanings."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace

import numpy as np
from textual.message import Message

from nettop.query.units import RATIO, UNKNOWN, human, human_spread, unit_of
from nettop.query.view import View
from nettop.snapshots.histograms import histogram_text
from nettop.snapshots.hooks import NOT_AVAILABLE
from nettop.snapshots.schema import RATE, Field, Kind, Table
from nettop.snapshots.snapshot import Frame, Rows, Snapshot
from nettop.widgets.cells import role_of
from nettop.widgets.page import Page
from nettop.widgets.text import Line, TextSpan, fit, width_of, wrapped
from nettop.widgets.themes import Role

TITLE_CELLS = 15
"""Width of field titles in cells."""
_VALUE = 30
_BESIDE_WIDTH = 100
"""Width from which a field's meaning is shown beside its value instead of below."""
_SIDE_BY_SIDE = frozenset({Kind.GROUP, Kind.ENDPOINT})
"""Kinds that show several fields side by side."""
_FIELD_CELLS = 40
"""Width in cells of each field where several share a line."""
Describe = Callable[[], "Future[dict[str, str]] | None"]
"""Function that asks the source for further details; None if it has none."""


class RowDetails(Page):
    """The details of one row. It asks the source once per row, and keeps the answer until another row is shown."""

    @dataclass
    class Described(Message):
        """The source's answer: the details of a row."""

        key: int
        answer: Future[dict[str, str]]

    _key: int | None = None
    _answer: Mapping[str, str] | str = ""

    def show_row(
        self,
        view: View,
        key: int,
        describe: Describe,
        *,
        explained: bool,
        more: Sequence[Line],
        first: Mapping[str, str],
    ) -> None:
        """Show `first` facts, which change with each reading, the row, then `more` lines."""
        if key != self._key:
            self._key, self._answer = key, {}
            answer = describe()
            if answer is not None:  # the source answers from another thread, by a message
                self._answer = "reading the details …"
                answer.add_done_callback(lambda done: self.post_message(self.Described(key, done)) and None)
        width = self.size.width - 2
        lines = detail_lines(view, key, self._answer, width, explained=explained)
        before = [*described_lines(first, width), ()] if first else []
        self.show([*before, *lines, *more])

    def forget(self) -> None:
        """Ask the source again when a row is shown next."""
        self._key = None

    def on_row_details_described(self, message: Described) -> None:
        """Keep the source's details if their row is still selected; the screen then draws them."""
        if message.key != self._key:
            message.stop()
            return
        error = message.answer.exception()
        remedy = getattr(error, "remedy", "")
        text = f"{error}: {remedy}" if remedy else str(error)
        self._answer = message.answer.result() if error is None else text


def detail_lines(
    view: View, key: int, described: Mapping[str, str] | str, width: int, *, explained: bool = False
) -> list[Line]:
    """Return the lines for the row with this key.

    `described` holds the source's details, or says why there are none yet. With `explained`, add each field's meaning
    and exact value.
    """
    alone = row_view(view, key)
    if alone is None:
        return [(TextSpan("closed, and gone from the table", Role.DIM),)]
    lines: list[Line] = []
    if isinstance(described, str):
        lines = [*wrapped(described, width, Role.DIM), ()]
    elif described:
        lines = [*described_lines(described, width), ()]
    for heading, fields in sections_of(alone.table):
        # A UDP socket, for example, has no round-trip time, nor a reason for its absence.
        known = [f for f in fields if f.name in alone.missing or _value(alone, f)[0] != UNKNOWN]
        facts = known if heading else fields
        if heading and facts:
            lines.append((TextSpan(heading, Role.BOLD),))
        if explained:
            lines += [line for field in facts for line in _field_lines(alone, field, width)]
        else:
            lines += _side_by_side(alone, facts, width)
    return lines


def described_lines(described: Mapping[str, str], width: int) -> list[Line]:
    """Return texts beside their titles, wrapped to `width`."""
    lines: list[Line] = []
    for title, text in described.items():
        first, *rest = wrapped(text, width, Role.TEXT, TITLE_CELLS + 1) or [(TextSpan(""),)]
        head = TextSpan(fit(title.upper(), TITLE_CELLS, left=True) + " ", Role.HEAD)
        lines += [(head, TextSpan(first[0].text[TITLE_CELLS + 1 :])), *rest]
    return lines


def sections_of(table: Table) -> list[tuple[str, list[Field]]]:
    """Return the headings of a row's details and their fields. No field is listed twice: parts of a group or endpoint
    are left out."""
    if table.details:
        return [(heading, [table.by_name[name] for name in names]) for heading, names in table.details]
    parts = {part for field in table.fields if field.kind in _SIDE_BY_SIDE for part in field.parts}
    fields = (field for field in table.fields if field.name not in parts)
    return [("", sorted(fields, key=lambda f: -f.importance))]


def row_view(view: View, key: int) -> View | None:
    """Return a view of only the row with this key, in totals; its last state if it has just gone."""
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
    """Return the row with this key, or None. The rows are sorted by key."""
    keys = rows.array[rows.table.key]
    at = int(np.searchsorted(keys, key))
    return replace(rows, array=rows.array[at : at + 1]) if at < len(keys) and int(keys[at]) == key else None


def _with(snapshot: Snapshot, rows: Rows) -> Snapshot:
    """Return the snapshot with only these rows."""
    return replace(snapshot, tables={rows.table.name: rows})


# --- lines --------------------------------------------------------------------------------------------------


def _side_by_side(view: View, fields: Sequence[Field], width: int) -> list[Line]:
    """Return title, value and rate of each field, as many to a line as fit; a sentence is wrapped, and below a
    histogram are its buckets."""
    lines: list[Line] = []
    last = width
    for field in fields:
        value, rate, _ = _value(view, field)
        fact = (*_head(field, value), TextSpan(f"  {rate}" if rate else "", Role.DIM))
        used = width_of(fact)
        if used > width and " " in value:
            lines += described_lines({field.title: value}, width)
            last = width
            continue
        column = -(-(last + 1) // _FIELD_CELLS) * _FIELD_CELLS
        if column + used <= width:
            lines[-1] = (*lines[-1], TextSpan(" " * (column - last)), *fact)
            last = column + used
        else:
            lines.append(fact)
            last = used
        if below := _buckets(view, field, width):
            lines += below
            last = width
    return lines


def _field_lines(view: View, field: Field, width: int) -> list[Line]:
    value, rate, exact = _value(view, field)
    head = list(_head(field, value))
    head += [TextSpan(f"  {more}", Role.DIM) for more in (rate, exact) if more]
    parts = [view.table.by_name[part] for part in field.parts] if field.kind in _SIDE_BY_SIDE else []
    formulas = ", ".join(part.formula for part in (field, *parts) if part.formula)
    formula = f"  = {formulas}" if formulas else ""
    why = f"  ({NOT_AVAILABLE}: {view.missing[field.name]})" if field.name in view.missing else ""
    meaning = f"{field.name}: {field.help}{formula}{why}"
    below = _buckets(view, field, width)
    used = width_of(head)
    if width < _BESIDE_WIDTH:
        return [tuple(head), *wrapped(meaning, width, Role.FAINT, 2), *below]
    column = max(used, TITLE_CELLS + _VALUE) + 2
    beside, *more = wrapped(meaning, width - column, Role.FAINT) or [()]
    lines = [(*head, TextSpan(" " * (column - used)), *beside)]
    return [*lines, *((TextSpan(" " * column), *line) for line in more), *below]


def _head(field: Field, value: str) -> Line:
    """Return the spans of the title and the value."""
    tone = Role.FAINT if value in (NOT_AVAILABLE, UNKNOWN) else role_of(field)
    title = TextSpan(fit(field.title, TITLE_CELLS, left=True) + " ", Role.HEAD)
    return (title, TextSpan(value, Role.TEXT if tone is Role.DIM else tone))


def _buckets(view: View, field: Field, width: int) -> list[Line]:
    """Return the counts of a histogram's buckets as text."""
    if field.kind is not Kind.HISTOGRAM:
        return []
    counted = view.values(field.name, np.array([0], np.intp))[0]
    return wrapped(histogram_text(counted or ()), width, Role.DIM, 2)


def _value(view: View, field: Field) -> tuple[str, str, str]:
    """Return the human-readable value, its rate, and the exact value where it adds information."""
    at, unit = np.array([0], np.intp), unit_of(view.table, field.name)
    if field.name in view.missing:
        return NOT_AVAILABLE, "", ""
    if field.kind is Kind.GROUP:
        values = [view.values(part, at)[0] for part in field.parts]
        if unit and len(values) == 2:
            return human_spread(values[0], values[1], unit), "", ""
        return " ".join(str(value) for value in values if value is not None) or UNKNOWN, "", ""
    if field.kind is Kind.HISTOGRAM:
        counted = view.column(field.name)
        return f"{counted.numbers[0]:,} counted" if counted.known[0] else UNKNOWN, "", ""
    value = view.values(field.name, at)[0]
    if value is None or isinstance(value, str) or field.kind in (Kind.LABEL, Kind.KEY):
        return UNKNOWN if value is None else str(value), "", ""
    text, exact = human(value, unit), ""
    rate = view.values(field.name + RATE, at)[0] if field.has_rate else None
    if unit != RATIO and text.replace(",", "") != str(value):
        exact = f"{value:,} {unit}" if isinstance(value, int) else f"{value:,.1f} {unit}"
    return text, "" if rate is None else human(rate, unit_of(view.table, field.name + RATE)), exact
