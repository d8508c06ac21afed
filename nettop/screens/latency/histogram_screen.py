# SPDX-License-Identifier: Apache-2.0
"""Tables of the latency lens whose chosen row is shown below them: its histogram, now and at the last refreshes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from textual.app import ComposeResult
from textual.containers import Vertical

from nettop.query.view import View
from nettop.screens.chosen_row import ChosenRow
from nettop.screens.latency.headline import LatencyTable, why_not
from nettop.screens.latency.pane import LEAST_HEIGHT, Chosen, ChosenPane, Quantile
from nettop.snapshots.arrays import Index, as_list
from nettop.snapshots.latency import MEANINGS, PROTOCOL_TABLE, STAGE_TABLE, STAGES
from nettop.snapshots.snapshot import Frame
from nettop.widgets.cells import RowFlags, RowStyle

_LATENCY = "latency"
"""The column with the histograms."""
_ALL_LINES = 2 + len(STAGES)
"""Lines of the main table; other tables have at least as many before they leave room for the pane."""


def row_flags(view: View, at: Index) -> list[RowFlags]:
    """Quiet and missing: this kernel does not provide it."""
    numbers = as_list(view.raw("stage")[at])
    missing = [why_not(view.snapshot, number) is not None for number in numbers]
    return [
        RowFlags(gone, quiet=absent, missing=absent)
        for gone, absent in zip(as_list(view.gone[at]), missing, strict=True)
    ]


class HistogramScreen(ChosenRow, LatencyTable):
    """A table, and below it the chosen row, or the first one. `named_by` are the columns that name a row."""

    row_style = RowStyle(flags=row_flags)
    named_by: Sequence[str] = ()

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.above = Vertical(id="table-and-graph")
        self.pane = ChosenPane(id="pane")
        self.history = self.context.histogram_history(self.lens, self.table)
        # Those of the protocols begin before they are opened by →.
        self._histories = [
            self.context.histogram_history(self.lens, table) for table in (STAGE_TABLE, PROTOCOL_TABLE)
        ]

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
        height = min(len(view.order) + 2, max(_ALL_LINES, room * 3 // 5))
        self.pane.display = len(view.order) > 0 and room - height >= LEAST_HEIGHT
        self.rows.styles.height = height if self.pane.display else "1fr"
        if self.pane.display:
            self.pane.show(self._described(view, self.chosen(view)))

    def _described(self, view: View, row: Index) -> Chosen:
        """What the pane shows of a row, of which this is the position."""
        at = int(row[0])
        number = int(view.raw("stage")[at])
        return Chosen(
            " ".join(str(view.values(name, row)[0]) for name in self.named_by),
            MEANINGS[number],
            _quantiles(view, at),
            view.histogram(_LATENCY)[at],
            view.buckets(_LATENCY),
            self.history.columns(int(view.raw(view.table.key)[at])),
            self._caption,
            why_not(view.snapshot, number),
        )

    def _caption(self, refreshes: int) -> str:
        seconds = round(self.history.span_s(refreshes))
        return f"the last {seconds:,} s, a column for each refresh; fuller is more"


def _quantiles(view: View, at: int) -> list[Quantile]:
    """Those that are known of a row."""
    fields = [view.table.by_name[name] for name in view.table.quantiles_of(_LATENCY)]
    columns = [view.column(field.name) for field in fields]
    return [
        Quantile(field.title.lower(), float(column.numbers[at]), field.importance)
        for field, column in zip(fields, columns, strict=True)
        if column.known[at]
    ]
