# SPDX-License-Identifier: Apache-2.0
"""The table of processes: what each has sent and received, over open and closed connections."""

from __future__ import annotations

import numpy as np

from nettop.query.view import View
from nettop.screens import headline
from nettop.screens.connections.headline import without_root
from nettop.screens.connections.sockets import RETRANSMITS_WARN_ABOVE
from nettop.screens.lens import LensScreen
from nettop.widgets.bar import BarItem, Span
from nettop.widgets.cells import RowStyle
from nettop.widgets.columns import as_rates
from nettop.widgets.themes import Role


class ProcessesScreen(LensScreen):
    """Processes and their totals, over the lifetime of their connections."""

    about = "what each process sent and received, over open and closed connections"
    row_style = RowStyle(
        absent={"owner": "(unattributed)", "process": "(unattributed)"},
        warn_above={"retransmit_ratio": RETRANSMITS_WARN_ABOVE},
    )

    def headline(self, view: View) -> list[BarItem]:
        """What all of them sent and received, how many they are, and their connections."""
        at = np.flatnonzero(~view.gone)
        processes = headline.count("processes", int(view.known("pid")[at].sum()), 900)
        sent, received = (
            name if self.state.totals else as_rates(view.table, name)
            for name in ("bytes_sent", "bytes_received")
        )
        return [
            headline.sum_of(view, sent, Span("↑ ", Role.TOTAL_SENT), at),
            headline.sum_of(view, received, Span("↓ ", Role.TOTAL_RECEIVED), at),
            headline.not_available("processes", 900) if "pid" in view.missing else processes,
            *without_root(view),
            headline.count_of(view, "connections", "conns", at, 800),
            headline.count_of(view, "closed", "closed", at, 700),
            headline.count_of(view, "failed", "failed", at, 600),
        ]


SCREEN = ProcessesScreen
