# SPDX-License-Identifier: Apache-2.0
"""The pane of a selected row: its histogram on an axis of durations, and a heat map of the last refreshes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from rich.segment import Segment
from textual.geometry import Size
from textual.strip import Strip

from nettop.query.units import human
from nettop.snapshots.arrays import Array
from nettop.snapshots.histograms import Buckets
from nettop.snapshots.hooks import NOT_AVAILABLE
from nettop.widgets.bar import Span, drop_items, item
from nettop.widgets.blocks import column_lines
from nettop.widgets.duration_axis import BEYOND, axis_line, mark_line
from nettop.widgets.heat_map import heat_map
from nettop.widgets.histogram import rebin
from nettop.widgets.lines import Lines
from nettop.widgets.page import Line, wrapped
from nettop.widgets.themes import Role, style

MIN_HEIGHT = 5
"""A title, two lines of columns, the marks, the axis."""
_MIN_ABOVE = 7
"""Height of a histogram above its heat map."""
_MIN_BESIDE = 76
_WIDEST = 128
"""Maximum width of an axis: in a wider one, some cells would have fewer buckets than others."""
_GAP = 2


@dataclass(frozen=True)
class Quantile:
    """A quantile of a row."""

    name: str
    duration_ns: float
    importance: int


@dataclass(frozen=True, eq=False)
class SelectedRow:
    """The data of the selected row that the pane shows.

    `counts` holds the row's histogram, `columns` those of the newest refreshes, shaped as for `heat_map`; `caption`
    returns the caption for a number of them. `empty_text` is shown if nothing was counted, `why_not` says why this
    kernel does not provide the histogram.
    """

    name: str
    meaning: str
    quantiles: Sequence[Quantile]
    counts: Array
    buckets: Buckets
    columns: Array
    caption: Callable[[int], str]
    empty_text: str
    why_not: str | None = None


class HistogramPane(Lines):
    """A title, the histogram, and the heat map if there is room below or beside it."""

    def __init__(self, id: str | None = None) -> None:  # noqa: A002 - Textual's name
        super().__init__(id=id)
        self._chosen: SelectedRow | None = None

    def show(self, chosen: SelectedRow) -> None:
        """Replace the row and redraw."""
        self._chosen = chosen
        self.redraw()

    def strips(self, size: Size) -> list[Strip]:
        """Return the title, then whatever fits."""
        chosen, width = self._chosen, size.width
        lines = [] if chosen is None else [title(chosen, width), *body(chosen, width, size.height - 1)]
        lines += [()] * (size.height - len(lines))
        return [self._strip(line, width) for line in lines[: size.height]]

    def _strip(self, line: Line, width: int) -> Strip:
        segments = [Segment(span.text, style(self.app.theme, span.role)) for span in line]
        blank = Segment(" " * width, style(self.app.theme, Role.TEXT))
        return Strip([*segments, blank]).crop(0, width)


# --- lines ------------------------------------------------------------------------------------------------------


def title(chosen: SelectedRow, width: int) -> Line:
    """Return the name of the row and its quantiles; the least important are dropped first."""
    items = [item((f" {chosen.name}", Role.BOLD))]
    if chosen.why_not is not None:
        items.append(item((NOT_AVAILABLE, Role.WARN)))
    elif not chosen.quantiles:
        items.append(item((chosen.empty_text, Role.DIM)))
    for quantile in chosen.quantiles:
        amount = (human(quantile.duration_ns, "ns"), Role.TEXT)
        items.append(item((f"{quantile.name} ", Role.DIM), amount, importance=quantile.importance))
    kept, _ = drop_items(items, (), width, _GAP)
    return tuple(span for each in kept for span in (*each.spans, Span(" " * _GAP)))


def body(chosen: SelectedRow, width: int, height: int) -> list[Line]:
    """Return the lines below the title."""
    if chosen.why_not is not None:
        why = wrapped(f"{NOT_AVAILABLE} here: {chosen.why_not}", width - 1, Role.WARN, 1)
        return [*wrapped(chosen.meaning, width - 1, Role.DIM, 1), *why]
    below = _heat_lines(chosen, width, height - _MIN_ABOVE)
    if below:
        return [*_histogram_lines(chosen, width, height - len(below)), *below]
    left = (width - _GAP) // 2
    beside = _heat_lines(chosen, width - left - _GAP, height) if width >= _MIN_BESIDE else []
    if not beside:
        return _histogram_lines(chosen, width, height)
    return _side_by_side(_histogram_lines(chosen, left, height), beside, left + _GAP)


def _heat_lines(chosen: SelectedRow, width: int, height: int) -> list[Line]:
    return heat_map(chosen.columns, chosen.caption, width, height)


def _histogram_lines(chosen: SelectedRow, width: int, height: int) -> list[Line]:
    """Return the meaning if there is room, the columns, the quantile marks, and the axis."""
    cells_wide = min(width - 1 - BEYOND, _WIDEST)
    meaning = [_line(chosen.meaning, Role.DIM)]
    if height < MIN_HEIGHT or cell_len(chosen.meaning) >= width:
        meaning = []
    amounts = rebin(chosen.counts, chosen.buckets, cells_wide).tolist()
    marks = sorted(chosen.quantiles, key=lambda each: -each.importance)
    columns = column_lines(amounts, max(amounts), height - len(meaning) - 2)
    return [
        *meaning,
        *(_line(text, Role.RECEIVED) for text in columns),
        _line(mark_line([(mark.name, mark.duration_ns) for mark in marks], cells_wide), Role.TEXT),
        _line(axis_line(cells_wide), Role.DIM),
    ]


def _line(text: str, role: Role) -> Line:
    return (Span(f" {text}", role),)


def _side_by_side(left: Sequence[Line], right: Sequence[Line], at: int) -> list[Line]:
    """Return the `left` lines with the `right` ones beside them, from cell `at` on."""
    lines = []
    for n in range(max(len(left), len(right))):
        first = left[n] if n < len(left) else ()
        used = sum(cell_len(span.text) for span in first)
        lines.append((*first, Span(" " * (at - used)), *(right[n] if n < len(right) else ())))
    return lines
