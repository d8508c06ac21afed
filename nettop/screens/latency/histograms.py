# SPDX-License-Identifier: Apache-2.0
"""Tables of the latency lens with the selected row's histogram below them."""

from __future__ import annotations

from nettop.query.view import View
from nettop.screens.histogram_screen import HistogramScreen
from nettop.screens.latency.latency_table import LatencyTable, why_not
from nettop.snapshots.arrays import Index, as_list
from nettop.snapshots.latency import MEANINGS, PROTOCOL_TABLE, STAGE_TABLE, STAGES
from nettop.widgets.cells import RowFlags, RowStyle


def row_flags(view: View, at: Index) -> list[RowFlags]:
    """Return the flags of rows: quiet and missing if this kernel does not provide their stage."""
    numbers = as_list(view.raw("stage")[at])
    missing = [why_not(view.snapshot, number) is not None for number in numbers]
    return [
        RowFlags(gone, quiet=absent, missing=absent)
        for gone, absent in zip(as_list(view.gone[at]), missing, strict=True)
    ]


class LatencyHistograms(HistogramScreen, LatencyTable):
    """A table of stages, and below it the selected one."""

    row_style = RowStyle(flags=row_flags)
    histogram = "latency"
    empty_text = "no packets"
    min_table_lines = 2 + len(STAGES)
    recorded_tables = (STAGE_TABLE, PROTOCOL_TABLE)

    def meaning(self, view: View, at: int) -> str:
        """Return the meaning of the row's stage."""
        return MEANINGS[int(view.raw("stage")[at])]

    def why_not(self, view: View, at: int) -> str | None:
        """Return why this kernel does not provide the row's stage, or None if it does."""
        return why_not(view.snapshot, int(view.raw("stage")[at]))
