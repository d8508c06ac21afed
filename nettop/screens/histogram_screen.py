# SPDX-License-Identifier: Apache-2.0
"""Tables whose chosen row is shown below them: its histogram, now and at the last refreshes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from textual.app import ComposeResult
from textual.containers import Vertical

from nettop.query.view import View
from nettop.screens.chosen_row import ChosenRow
from nettop.screens.histogram_pane import LEAST_HEIGHT, Chosen, ChosenPane, Quantile
from nettop.snapshots.arrays import Index
from nettop.snapshots.schema import Table
from nettop.snapshots.snapshot import Frame


class HistogramScreen(ChosenRow):
    """A table, and below it the chosen row, or the first one. `named_by` are the columns that name a row."""

    histogram: ClassVar[str]
    """The column with the histograms."""
    nothing: ClassVar[str]
    """What is said of a row that has counted nothing."""
    lines_first: ClassVar[int]
    """So many lines the table has before it leaves room for the pane."""
    remembered: ClassVar[Sequence[Table]]
    """Whose histograms are remembered: those of a table that → opens begin before it is opened."""
    named_by: Sequence[str] = ()

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.above = Vertical(id="table-and-graph")
        self.pane = ChosenPane(id="pane")
        self.history = self.context.histogram_history(self.lens, self.table)
        self._histories = [self.context.histogram_history(self.lens, table) for table in self.remembered]

    def meaning(self, view: View, at: int) -> str:
        """What the row at a position measures."""
        raise NotImplementedError

    def why_not(self, view: View, at: int) -> str | None:  # noqa: ARG002 - most tables have no such rows
        """Why this kernel does not measure that; None where it does."""
        return None

    def body(self) -> ComposeResult:
        """The table, the pane below it, the details."""
        with self.above:
            yield self.rows
            yield self.pane
        yield self.details

    def make_view(self, frame: Frame) -> None:
        """Apply the query to a frame, and remember its histograms."""
        super().make_view(frame)
        for history in self._histories:
            history.add(frame)

    def release_view(self) -> None:
        """Hidden: keep no rows in memory."""
        super().release_view()
        if self.view is None:
            for history in self._histories:
                history.forget_rows()

    # --- the chosen row -------------------------------------------------------------------------------------

    def draw_chosen(self) -> None:
        """The chosen row, or the first one of the table, in the room that the rows leave."""
        view, room = self.view, self.above.size.height
        if view is None:
            return
        height = min(len(view.order) + 2, max(self.lines_first, room * 3 // 5))
        self.pane.display = len(view.order) > 0 and room - height >= LEAST_HEIGHT
        self.rows.styles.height = height if self.pane.display else "1fr"
        if self.pane.display:
            self.pane.show(self._described(view, self.chosen(view)))

    def _described(self, view: View, row: Index) -> Chosen:
        """What the pane shows of a row, of which this is the position."""
        at = int(row[0])
        return Chosen(
            " ".join(str(view.values(name, row)[0]) for name in self.named_by),
            self.meaning(view, at),
            self._quantiles(view, at),
            view.histogram(self.histogram)[at],
            view.buckets(self.histogram),
            self.history.columns(int(view.raw(view.table.key)[at])),
            self._caption,
            self.nothing,
            self.why_not(view, at),
        )

    def _caption(self, refreshes: int) -> str:
        seconds = round(self.history.span_s(refreshes))
        return f"the last {seconds:,} s, a column for each refresh; fuller is more"

    def _quantiles(self, view: View, at: int) -> list[Quantile]:
        """Those that are known of a row."""
        fields = [view.table.by_name[name] for name in view.table.quantiles_of(self.histogram)]
        columns = [view.column(field.name) for field in fields]
        return [
            Quantile(field.title.lower(), float(column.numbers[at]), field.importance)
            for field, column in zip(fields, columns, strict=True)
            if column.known[at]
        ]
