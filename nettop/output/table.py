# SPDX-License-Identifier: Apache-2.0
"""The table for people, `awk` and `sort`: aligned columns of raw base units, with a header for each refresh.

A row always has as many words as there are columns: an unknown value is `–`, what is not available `n/a`, an
empty text `""`, and a space within a text is shown as `_` (csv and jsonl give the text as it is).
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from nettop.formats.rows import spelled
from nettop.output.plan import field_of
from nettop.query.units import RATIO, UNKNOWN, unit_of
from nettop.query.view import View
from nettop.snapshots.hooks import NOT_AVAILABLE
from nettop.snapshots.schema import Kind, Table

_GAP = "  "
_BOLD, _PLAIN = "\x1b[1m", "\x1b[0m"
AMOUNTS = frozenset({Kind.COUNTER, Kind.GAUGE, Kind.RATIO, Kind.SUM, Kind.QUANTILE})
"""Numbers that measure something stand at the right of their column; numbers that name something do not."""

_WORDS = frozenset({Kind.TEXT, Kind.GROUP, Kind.ENUM, Kind.HISTOGRAM})
"""What may hold spaces: what others chose, labels of two words, and several buckets."""


@dataclass(frozen=True, slots=True)
class Terminal:
    """The terminal that is written to: its width in cells, now, and whether headers may be bold."""

    width: Callable[[], int]
    bold: bool


class AlignedTable:
    """Formats views as blocks of aligned columns, which never get narrower from one block to the next.

    Without a `terminal` (in a pipe) lines are as long as they are, and plain.
    """

    def __init__(self, table: Table, columns: tuple[str, ...], terminal: Terminal | None = None) -> None:
        self._columns = columns
        self._terminal = terminal
        self._right = [field_of(table, name).kind in AMOUNTS for name in columns]
        # Shares of one need more places than rates.
        is_share = (unit_of(table, name) == RATIO for name in columns)
        self._decimals = [".6f" if share else ".1f" for share in is_share]
        self._words = [field_of(table, name).kind in _WORDS for name in columns]
        self._widths = [len(name) for name in columns]
        self._between = ""

    def __call__(self, view: View) -> str:
        """The header and a line for each row that the view shows; an empty line before all but the first."""
        at = view.order
        cells = [
            [NOT_AVAILABLE] * len(at)
            if name in view.missing
            else _cells(view.values(name, at), decimals, word if words else str)
            for name, decimals, words in zip(self._columns, self._decimals, self._words, strict=True)
        ]
        self._widths = list(map(max, self._widths, map(_widest, cells)))
        lines = self._rows([[name] for name in self._columns]) + self._rows(cells)
        if self._terminal is not None:
            width = self._terminal.width()
            lines = [cut(line, width) for line in lines]
            if self._terminal.bold:
                lines[0] = _BOLD + lines[0] + _PLAIN
        between, self._between = self._between, "\n"
        return between + "\n".join(lines) + "\n"

    def _rows(self, cells: Sequence[list[Any]]) -> list[str]:
        """A line for each row of these columns: one `%` pads all its cells, but for the wide ones."""
        pads = []
        padded = []
        for place, (column, width) in enumerate(zip(cells, self._widths, strict=True)):
            # Nothing follows the last column: no spaces at a line's end.
            ends = place == len(cells) - 1 and not self._right[place]
            plain = ends or _are_whole(column) or "".join(column).isascii()
            pads.append("%s" if ends or not plain else f"%{width}s" if self._right[place] else f"%-{width}s")
            padded.append(column if plain else [self._padded(place, cell) for cell in column])
        return list(map(_GAP.join(pads).__mod__, zip(*padded, strict=True)))

    def _padded(self, place: int, cell: str) -> str:
        spaces = " " * (self._widths[place] - cell_width(cell))
        return spaces + cell if self._right[place] else cell + spaces


def cut(line: str, width: int) -> str:
    """As much of `line` as fits `width` cells of a terminal."""
    if line.isascii():
        return line[:width]
    used = 0
    for place, char in enumerate(line):
        used += _char_width(char)
        if used > width:
            return line[:place]
    return line


def _cells(values: list[Any], decimals: str, spell: Callable[[str], str]) -> list[Any]:
    """The values as text; whole numbers that are all known stay numbers, which `%` turns into text anyway."""
    if _are_whole(values):
        return values
    if isinstance(next((value for value in values if value is not None), None), float):
        return [UNKNOWN if value is None else format(value, decimals) for value in values]
    return list(map(str, spelled(values, spell, UNKNOWN)))


def word(text: str) -> str:
    """The text without anything that parts words; an empty text is `""`."""
    if text.split() == [text]:
        return text
    return "".join("_" if char.isspace() else char for char in text) or '""'


def _are_whole(column: list[Any]) -> bool:
    """Whether a column is known whole numbers and nothing else: a column has one type, and None."""
    return bool(column) and type(column[0]) is int and None not in column


def _widest(column: list[Any]) -> int:
    if _are_whole(column):
        return max(len(str(min(column))), len(str(max(column))))
    width = len if "".join(column).isascii() else cell_width
    return max(map(width, column), default=0)


def cell_width(text: str) -> int:
    """How many cells of a terminal the text takes: a wide character takes two, a combining mark none."""
    return len(text) if text.isascii() else sum(map(_char_width, text))


def _char_width(char: str) -> int:
    if unicodedata.category(char) in ("Mn", "Me"):
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1
