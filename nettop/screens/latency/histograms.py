# SPDX-License-Identifier: Apache-2.0
"""Tables of the latency lens whose chosen row is shown below them."""

from __future__ import annotations

from nettop.query.view import View
from nettop.screens.histogram_screen import HistogramScreen
from nettop.screens.latency.headline import LatencyTable, why_not
from nettop.snapshots.arrays import Index, as_list
from nettop.snapshots.latency import MEANINGS, PROTOCOL_TABLE, STAGE_TABLE, STAGES
from nettop.widgets.cells import RowFlags, RowStyle


def row_flags(view: View, at: Index) -> list[RowFlags]:
    """Quiet and missing: this kernel does not provide it."""
    numbers = as_list(view.raw("stage")[at])
    missing = [why_not(view.snapshot, number) is not None for number in numbers]
    return [
        RowFlags(gone, quiet=absent, missing=absent)
        for gone, absent in zip(as_list(view.gone[at]), missing, strict=True)
    ]


class LatencyHistograms(HistogramScreen, LatencyTable):
    """A table of stages, and below it the chosen one."""

    row_style = RowStyle(flags=row_flags)
    histogram = "latency"
    nothing = "no packets"
    lines_first = 2 + len(STAGES)
    remembered = (STAGE_TABLE, PROTOCOL_TABLE)

    def meaning(self, view: View, at: int) -> str:
        """What the row's stage measures."""
        return MEANINGS[int(view.raw("stage")[at])]

    def why_not(self, view: View, at: int) -> str | None:
        """Why this kernel does not provide it."""
        return why_not(view.snapshot, int(view.raw("stage")[at]))
