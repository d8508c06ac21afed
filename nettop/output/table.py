# SPDX-License-Identifier: Apache-2.0
"""The table for people, `awk` and `sort`: aligned columns in base units, with a header at each refresh.

A header names the unit, if its column has one that the name does not have: `rtt_us`, `bytes_sent`, `p99[ns]`.
Each row has exactly one word per column: `–` for an unknown value, `n/a` for an unavailable one, `""` for empty text;
spaces within text become `_` (csv and jsonl keep the text unchanged).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from nettop.formats.rows import format_values, in_pieces
from nettop.query.query import Query, columns_from_settings, query_from_settings, text_query
from nettop.query.units import RATIO, TIMES, UNKNOWN, unit_of
from nettop.query.view import View
from nettop.settings import Format, Settings
from nettop.snapshots import find_table
from nettop.snapshots.arrays import Index
from nettop.snapshots.findings import FINDINGS
from nettop.snapshots.hooks import NOT_AVAILABLE
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
    chosen = columns_from_settings(table, settings.view)
    columns = chosen or (table.text if settings.text.format is Format.TABLE else whole_columns(table))
    query = query_from_settings(text_query(table), settings.view)
    others = (query.sort.field, *query.filter.names)
    compares = query.deltas or table.append or table.name == FINDINGS.name
    two = compares or any(name.endswith(RATE) and name in table.names for name in (*columns, *others))
    named = (*(chosen or ()), *others)
    # Per-interval values include closed connections, so that they add up to everything counted.
    return Plan(lens, replace(query, closed=query.closed or two), columns, named, two)


def field_of(table: Table, name: str) -> Field:
    """Return the field that declares a column; for a rate, the counter's field."""
    return table.by_name.get(name) or table.by_name[name.removesuffix(RATE)]


def whole_columns(table: Table) -> tuple[str, ...]:
    """Return every column except groups, which only repeat other columns."""
    return tuple(field.name for field in table.fields if field.kind is not Kind.GROUP)


_GAP = "  "
_BETWEEN = "\0"
"""A character that no cell has."""
_BOLD, _PLAIN = "\x1b[1m", "\x1b[0m"
AMOUNTS = frozenset({Kind.COUNTER, Kind.GAUGE, Kind.RATIO, Kind.SUM, Kind.QUANTILE})
"""Kinds of columns that are right-aligned: numbers that measure something, not those that identify something."""

_WORDS = frozenset({Kind.TEXT, Kind.GROUP, Kind.ENUM, Kind.HISTOGRAM})
"""Kinds of columns that may contain spaces: untrusted names, labels of two words, histograms."""


@dataclass(frozen=True, slots=True)
class Terminal:
    """The output terminal: its current width in cells, and whether it can show bold headers."""

    width: Callable[[], int]
    bold: bool


class AlignedTable:
    """A formatter of views as blocks of aligned columns, which never shrink from one block to the next.

    Without a `terminal` (in a pipe) lines are not cut or styled.
    """

    def __init__(self, table: Table, columns: tuple[str, ...], terminal: Terminal | None = None) -> None:
        self._columns = columns
        self._terminal = terminal
        self._right = [field_of(table, name).kind in AMOUNTS for name in columns]
        # Ratios need more decimals than rates.
        is_share = (unit_of(table, name) == RATIO for name in columns)
        self._decimals = [".6f" if share else ".1f" for share in is_share]
        self._words = [field_of(table, name).kind in _WORDS for name in columns]
        self._headers = [header(table, name) for name in columns]
        self._widths = list(map(len, self._headers))
        self._between = ""

    def __call__(self, view: View) -> str:
        """Format the header and a line for each row of the view, after an empty line for all but the first view."""
        return "".join(self.pieces(view))

    def pieces(self, view: View) -> Iterator[str]:
        """Yield these lines in pieces, once all rows have shown how wide the columns are."""
        rows = []
        for at in in_pieces(view.order):
            cells = self._cells(view, at)
            self._widths = list(map(max, self._widths, map(_widest, cells)))
            rows.append([_BETWEEN.join(map(str, column)) for column in cells])  # a tenth of the memory
        (top,) = self._rows([[header] for header in self._headers])
        bold, plain = (_BOLD, _PLAIN) if self._terminal is not None and self._terminal.bold else ("", "")
        yield f"{self._between}{bold}{top}{plain}\n"
        self._between = "\n"
        for joined in rows:
            yield "\n".join(self._rows([column.split(_BETWEEN) for column in joined])) + "\n"

    def _cells(self, view: View, at: Index) -> list[list[Any]]:
        """Return the cells of each column for the rows at `at`."""
        return [
            [NOT_AVAILABLE] * len(at)
            if name in view.missing
            else _cells(view.values(name, at), decimals, word if words else str)
            for name, decimals, words in zip(self._columns, self._decimals, self._words, strict=True)
        ]

    def _rows(self, cells: Sequence[list[Any]]) -> list[str]:
        """Format a line for each row of these columns. One `%` per row pads all columns without wide characters."""
        pads = []
        padded = []
        for place, (column, width) in enumerate(zip(cells, self._widths, strict=True)):
            # Avoid trailing spaces after the last column.
            ends = place == len(cells) - 1 and not self._right[place]
            plain = ends or _all_integers(column) or _is_narrow(column)
            pads.append("%s" if ends or not plain else f"%{width}s" if self._right[place] else f"%-{width}s")
            padded.append(column if plain else [self._padded(place, cell) for cell in column])
        lines = map(_GAP.join(pads).__mod__, zip(*padded, strict=True))
        if self._terminal is None:
            return list(lines)
        width = self._terminal.width()
        return [cut(line, width) for line in lines]

    def _padded(self, place: int, cell: str) -> str:
        spaces = " " * (self._widths[place] - cell_width(cell))
        return spaces + cell if self._right[place] else cell + spaces


def header(table: Table, name: str) -> str:
    """Return a column's name, followed by its unit unless the name has it. Counts and time stamps have none."""
    unit = unit_of(table, name)
    base, words = unit.removesuffix("/s"), name.split("_")
    is_counted = base not in TIMES and base not in ("bytes", RATIO)
    is_named = base in words and ("per" in words or base == unit)
    is_moment = field_of(table, name).kind is Kind.TIME
    return name if is_counted or is_named or is_moment else f"{name}[{unit}]"


def cut(line: str, width: int) -> str:
    """Cut `line` to `width` cells of a terminal."""
    if line.isascii():
        return line[:width]
    from rich.cells import chop_cells  # takes a while, and most tables are plain

    return next(iter(chop_cells(line, width)), "")


def _cells(values: list[Any], decimals: str, format_text: Callable[[str], str]) -> list[Any]:
    """Format the values as text. A column of known integers is returned unchanged, as `%` formats it."""
    if _all_integers(values):
        return values
    if isinstance(next((value for value in values if value is not None), None), float):
        return [UNKNOWN if value is None else format(value, decimals) for value in values]
    return list(map(str, format_values(values, format_text, UNKNOWN)))


def word(text: str) -> str:
    """Replace whitespace, so that the text is one word; empty text becomes `""`."""
    if text.split() == [text]:
        return text
    return "".join("_" if char.isspace() else char for char in text) or '""'


def _all_integers(column: list[Any]) -> bool:
    """Return whether a column has integers only. Its first value decides, as all values but None have the same type."""
    return bool(column) and type(column[0]) is int and None not in column


def _is_narrow(column: list[str]) -> bool:
    """Return whether every character takes one terminal cell, as in ASCII texts and unknown values."""
    return "".join(column).replace(UNKNOWN, "").isascii()


def _widest(column: list[Any]) -> int:
    if _all_integers(column):
        return max(len(str(min(column))), len(str(max(column))))
    width = len if _is_narrow(column) else cell_width
    return max(map(width, column), default=0)


def cell_width(text: str) -> int:
    """Return the width of the text in terminal cells: wide characters take two, combining marks none."""
    if text.isascii():
        return len(text)
    from rich.cells import cell_len

    return cell_len(text)
