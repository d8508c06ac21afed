# SPDX-License-Identifier: Apache-2.0
"""Tables with the histogram of the selected row below them, current and over the last refreshes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from textual.app import ComposeResult
from textual.containers import Vertical

from nettop.query.view import View
from nettop.screens.chosen_row import SelectedRowScreen
from nettop.screens.histogram_pane import MIN_HEIGHT, HistogramPane, Quantile, SelectedRow
from nettop.snapshots.arrays import Index
from nettop.snapshots.schema import Table
from nettop.snapshots.snapshot import Frame


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
        self.above = Vertical(id="table-and-graph")
        self.pane = HistogramPane(id="pane")
        self.history = self.context.histogram_history(self.lens, self.table)
        self._histories = [self.context.histogram_history(self.lens, table) for table in self.recorded_tables]

    def meaning(self, view: View, at: int) -> str:
        """Return the meaning of the row at a position."""
        raise NotImplementedError

    def why_not(self, view: View, at: int) -> str | None:  # noqa: ARG002 - most tables have no such rows
        """Return why this kernel does not measure the row, or None if it does."""
        return None

    def body(self) -> ComposeResult:
        """Yield the table, the pane below it, and the details."""
        with self.above:
            yield self.rows
            yield self.pane
        yield self.details

    def make_view(self, frame: Frame) -> None:
        """Apply the query to a frame, and record its histograms."""
        super().make_view(frame)
        for history in self._histories:
            history.add(frame)

    def release_view(self) -> None:
        """Release the rows of a hidden screen."""
        super().release_view()
        if self.view is None:
            for history in self._histories:
                history.forget_rows()

    # --- the chosen row -------------------------------------------------------------------------------------

    def draw_chosen(self) -> None:
        """Draw the selected row, or the first one, in the room below the table."""
        view, room = self.view, self.above.size.height
        if view is None:
            return
        height = min(len(view.order) + 2, max(self.min_table_lines, room * 3 // 5))
        self.pane.display = len(view.order) > 0 and room - height >= MIN_HEIGHT
        self.rows.styles.height = height if self.pane.display else "1fr"
        if self.pane.display:
            self.pane.show(self._described(view, self.chosen(view)))

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
