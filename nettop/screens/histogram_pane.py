# SPDX-License-Identifier: Apache-2.0
"""The pane of a chosen row: its histogram on an axis of durations, and what it was at the last refreshes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from rich.segment import Segment
from textual.geometry import Size
from textual.strip import Strip

from nettop.query.units import human
from nettop.snapshots.histograms import Buckets
from nettop.snapshots.hooks import NOT_AVAILABLE
from nettop.snapshots.snapshot import Array
from nettop.widgets.bar import Span, item, shed
from nettop.widgets.blocks import column_pieces
from nettop.widgets.duration_axis import BEYOND, axis_line, mark_line
from nettop.widgets.heat_map import heat_map
from nettop.widgets.histogram import cells
from nettop.widgets.lines import Lines
from nettop.widgets.page import Line, wrapped
from nettop.widgets.themes import Role, style

LEAST_HEIGHT = 5
"""A title, two lines of columns, the marks, the axis."""
_LEAST_ABOVE = 7
"""Lines of a histogram that stands above its heat map."""
_LEAST_BESIDE = 76
_WIDEST = 128
"""Cells of an axis: where it had more, some would have fewer buckets than others."""
_GAP = 2


@dataclass(frozen=True)
class Quantile:
    """A quantile of a row: its name, its duration, and how important it is."""

    name: str
    duration_ns: float
    importance: int


@dataclass(frozen=True, eq=False)
class Chosen:
    """What the pane shows of a row.

    `counts` are of the row's histogram, `columns` those at the newest refreshes, as `heat_map` takes them, with the
    caption that it has for so many of them. `nothing` is what is said where nothing was counted, `why_not` why this
    kernel provides nothing of it.
    """

    name: str
    meaning: str
    quantiles: Sequence[Quantile]
    counts: Array
    buckets: Buckets
    columns: Array
    caption: Callable[[int], str]
    nothing: str
    why_not: str | None = None


class ChosenPane(Lines):
    """A title, then the histogram, and the heat map where there is room: below it, else beside it."""

    def __init__(self, id: str | None = None) -> None:  # noqa: A002 - Textual's word
        super().__init__(id=id)
        self._chosen: Chosen | None = None

    def show(self, chosen: Chosen) -> None:
        """Draw this from now on."""
        self._chosen = chosen
        self.redraw()

    def strips(self, size: Size) -> list[Strip]:
        """The title, then what there is room for."""
        chosen, width = self._chosen, size.width
        lines = [] if chosen is None else [title(chosen, width), *body(chosen, width, size.height - 1)]
        lines += [()] * (size.height - len(lines))
        return [self._strip(line, width) for line in lines[: size.height]]

    def _strip(self, line: Line, width: int) -> Strip:
        segments = [Segment(span.text, style(self.app.theme, span.role)) for span in line]
        blank = Segment(" " * width, style(self.app.theme, Role.TEXT))
        return Strip([*segments, blank]).crop(0, width)


# --- lines ------------------------------------------------------------------------------------------------------


def title(chosen: Chosen, width: int) -> Line:
    """The name of the row and its quantiles, of which the least important leave first."""
    items = [item((f" {chosen.name}", Role.BOLD))]
    if chosen.why_not is not None:
        items.append(item((NOT_AVAILABLE, Role.WARN)))
    elif not chosen.quantiles:
        items.append(item((chosen.nothing, Role.DIM)))
    for quantile in chosen.quantiles:
        amount = (human(quantile.duration_ns, "ns"), Role.TEXT)
        items.append(item((f"{quantile.name} ", Role.DIM), amount, importance=quantile.importance))
    kept, _ = shed(items, (), width, _GAP)
    return tuple(span for each in kept for span in (*each.spans, Span(" " * _GAP)))


def body(chosen: Chosen, width: int, height: int) -> list[Line]:
    """What stands below the title."""
    if chosen.why_not is not None:
        why = wrapped(f"{NOT_AVAILABLE} here: {chosen.why_not}", width - 1, Role.WARN, 1)
        return [*wrapped(chosen.meaning, width - 1, Role.DIM, 1), *why]
    below = _heat(chosen, width, height - _LEAST_ABOVE)
    if below:
        return [*_histogram(chosen, width, height - len(below)), *below]
    left = (width - _GAP) // 2
    beside = _heat(chosen, width - left - _GAP, height) if width >= _LEAST_BESIDE else []
    if not beside:
        return _histogram(chosen, width, height)
    return _side_by_side(_histogram(chosen, left, height), beside, left + _GAP)


def _heat(chosen: Chosen, width: int, height: int) -> list[Line]:
    return heat_map(chosen.columns, chosen.caption, width, height)


def _histogram(chosen: Chosen, width: int, height: int) -> list[Line]:
    """The meaning where there is room, the columns, the marks of the quantiles, the axis."""
    cells_wide = min(width - 1 - BEYOND, _WIDEST)
    meaning = [_line(chosen.meaning, Role.DIM)]
    if height < LEAST_HEIGHT or cell_len(chosen.meaning) >= width:
        meaning = []
    amounts = cells(chosen.counts, chosen.buckets, cells_wide).tolist()
    marks = sorted(chosen.quantiles, key=lambda each: -each.importance)
    columns = column_pieces(amounts, max(amounts), height - len(meaning) - 2)
    return [
        *meaning,
        *(_line(text, Role.RECEIVED) for text in columns),
        _line(mark_line([(mark.name, mark.duration_ns) for mark in marks], cells_wide), Role.TEXT),
        _line(axis_line(cells_wide), Role.DIM),
    ]


def _line(text: str, role: Role) -> Line:
    return (Span(f" {text}", role),)


def _side_by_side(left: Sequence[Line], right: Sequence[Line], at: int) -> list[Line]:
    """The lines at the left, and those at the right from cell `at` on."""
    lines = []
    for n in range(max(len(left), len(right))):
        first = left[n] if n < len(left) else ()
        used = sum(cell_len(span.text) for span in first)
        lines.append((*first, Span(" " * (at - used)), *(right[n] if n < len(right) else ())))
    return lines
