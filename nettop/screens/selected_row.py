# SPDX-License-Identifier: Apache-2.0
"""Tables with more about the selected row below them: its histogram, current and over the last refreshes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import zip_longest
from typing import Any, ClassVar, NamedTuple

from textual.app import ComposeResult
from textual.containers import Vertical
from textual.geometry import Size
from textual.widget import Widget

from nettop.query.units import human
from nettop.query.view import View
from nettop.screens.history import HistogramHistory
from nettop.screens.lens import LensScreen
from nettop.snapshots.arrays import Array, Index
from nettop.snapshots.histograms import Buckets
from nettop.snapshots.hooks import NOT_AVAILABLE
from nettop.snapshots.schema import Table
from nettop.widgets.bar import drop_items, item
from nettop.widgets.blocks import column_lines
from nettop.widgets.durations import BEYOND, axis_line, heat_map, mark_line, rebin
from nettop.widgets.lines import Drawing
from nettop.widgets.text import Line, TextSpan, width_of, wrapped
from nettop.widgets.themes import Role


class SelectedRowScreen(LensScreen):
    """A screen that shows more about the selected row, or the first one, in the room below the table."""

    below: Widget
    shows_choice = True

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.above = Vertical(id="table-and-graph")

    def body(self) -> ComposeResult:
        """Yield the table, more about the selected row, and the details."""
        with self.above:
            yield self.rows
            yield self.below
        yield self.details

    def draw_body(self) -> None:
        """Draw the body and the selected row."""
        super().draw_body()
        self._draw_below()

    def redraw(self) -> None:
        """Redraw the selected row too: another one may be selected, or the details may take room."""
        super().redraw()
        self.call_after_refresh(self._draw_below)

    def _draw_below(self) -> None:
        if self.view is not None:
            self.draw_chosen(self.view)

    def draw_chosen(self, view: View) -> None:
        """Draw the selected row if there is room."""
        raise NotImplementedError

    def share_room(self, height: int, *, is_enough: bool) -> bool:
        """Give the table `height` lines, and the selected row the rest if that `is_enough`; return whether it is."""
        shown = is_enough and len(self.rows.order) > 0
        self.below.display = shown
        self.rows.styles.height = height if shown else "1fr"
        return shown

    def chosen_or_first(self, view: View) -> Index:
        """Return the position of the row as an index, empty if the table is."""
        at = self.rows.at or 0
        return view.order[at : at + 1]


MIN_HEIGHT = 5
"""A title, two lines of columns, the marks, the axis."""
_MIN_ABOVE = 7
"""Height of a histogram above its heat map."""
_MIN_BESIDE = 76
_WIDEST = 128
"""Maximum width of an axis: in a wider one, some cells would have fewer buckets than others."""
_GAP = 2


class Quantile(NamedTuple):
    """A quantile of a row."""

    name: str
    duration_ns: float
    importance: int


class SelectedRow(NamedTuple):
    """The data of a row that the pane shows.

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


class HistogramScreen(SelectedRowScreen):
    """A table, and below it the selected row, or the first one. `named_by` lists the columns that name a row."""

    histogram: ClassVar[str]
    """The column with the histograms."""
    empty_text: ClassVar[str]
    """Text for a row whose histogram is empty."""
    min_table_lines: ClassVar[int]
    """Lines the table may always use before it leaves room for the pane."""
    recorded_tables: ClassVar[Sequence[Table]]
    """Tables whose histograms are recorded, including one that → opens, before it is opened."""
    named_by: Sequence[str] = ()

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.below = self.pane = Drawing(id="pane")
        kept = self.lens_state.histograms
        self.history, *recorded = (
            kept.setdefault(table.name, HistogramHistory(table))
            for table in (self.table, *self.recorded_tables)
        )
        self.histories += recorded

    def meaning(self, view: View, at: int) -> str:
        """Return the meaning of the row at a position."""
        raise NotImplementedError

    def why_not(self, view: View, at: int) -> str | None:  # noqa: ARG002 - most tables have no such rows
        """Return why this kernel does not measure the row, or None if it does."""
        return None

    # --- the chosen row -------------------------------------------------------------------------------------

    def draw_chosen(self, view: View) -> None:
        """Draw the selected row, or the first one, in the room below the table."""
        room = self.above.size.height
        height = min(len(view.order) + 2, max(self.min_table_lines, room * 3 // 5))
        if self.share_room(height, is_enough=room - height >= MIN_HEIGHT):
            self.pane.show(partial(pane_lines, self._described(view, self.chosen_or_first(view))))

    def _described(self, view: View, row: Index) -> SelectedRow:
        """Return the data for the pane of the row at this position."""
        at = int(row[0])
        return SelectedRow(
            " ".join(str(view.values(name, row)[0]) for name in self.named_by),
            self.meaning(view, at),
            self._quantiles(view, at),
            view.histogram(self.histogram)[at],
            view.buckets(self.histogram),
            self.history.columns(int(view.raw(view.table.key)[at])),
            self._caption,
            self.empty_text,
            self.why_not(view, at),
        )

    def _caption(self, refreshes: int) -> str:
        seconds = round(self.history.span_s(refreshes))
        return f"last {seconds:,} s, one column per refresh; denser is more"

    def _quantiles(self, view: View, at: int) -> list[Quantile]:
        """Return the known quantiles of a row."""
        fields = [view.table.by_name[name] for name in view.table.quantiles_of(self.histogram)]
        columns = [view.column(field.name) for field in fields]
        return [
            Quantile(field.title.lower(), float(column.numbers[at]), field.importance)
            for field, column in zip(fields, columns, strict=True)
            if column.known[at]
        ]


# --- the pane ---------------------------------------------------------------------------------------------------


def pane_lines(chosen: SelectedRow, size: Size) -> list[Line]:
    """Return the title of a row, then whatever fits."""
    return [title(chosen, size.width), *body(chosen, size.width, size.height - 1)]


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
    return tuple(span for part in kept for span in (*part.spans, TextSpan(" " * _GAP)))


def body(chosen: SelectedRow, width: int, height: int) -> list[Line]:
    """Return the lines below the title."""
    if chosen.why_not is not None:
        why = wrapped(f"{NOT_AVAILABLE} here: {chosen.why_not}", width - 1, Role.WARN, 1)
        return [*wrapped(chosen.meaning, width - 1, Role.DIM, 1), *why]
    below = heat_map(chosen.columns, chosen.caption, width, height - _MIN_ABOVE)
    if below:
        return [*_histogram_lines(chosen, width, height - len(below)), *below]
    left = (width - _GAP) // 2
    room = width - left - _GAP if width >= _MIN_BESIDE else 0
    beside = heat_map(chosen.columns, chosen.caption, room, height)
    if not beside:
        return _histogram_lines(chosen, width, height)
    return _side_by_side(_histogram_lines(chosen, left, height), beside, left + _GAP)


def _histogram_lines(chosen: SelectedRow, width: int, height: int) -> list[Line]:
    """Return the meaning if there is room, the columns, the quantile marks, and the axis."""
    cells_wide = min(width - 1 - BEYOND, _WIDEST)
    meaning = [_line(chosen.meaning, Role.DIM)] if height >= MIN_HEIGHT else []
    meaning = [line for line in meaning if width_of(line) <= width]
    amounts = rebin(chosen.counts, chosen.buckets, cells_wide).tolist()
    marks = sorted(chosen.quantiles, key=lambda quantile: -quantile.importance)
    columns = column_lines(amounts, max(amounts), height - len(meaning) - 2)
    return [
        *meaning,
        *(_line(text, Role.RECEIVED) for text in columns),
        _line(mark_line([(mark.name, mark.duration_ns) for mark in marks], cells_wide), Role.TEXT),
        _line(axis_line(cells_wide), Role.DIM),
    ]


def _line(text: str, role: Role) -> Line:
    return (TextSpan(f" {text}", role),)


def _side_by_side(left: Sequence[Line], right: Sequence[Line], at: int) -> list[Line]:
    """Return the `left` lines with the `right` ones beside them, from cell `at` on."""
    pairs = zip_longest(left, right, fillvalue=())
    return [(*first, TextSpan(" " * (at - width_of(first))), *second) for first, second in pairs]
