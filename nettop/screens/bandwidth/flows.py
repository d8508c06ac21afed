# SPDX-License-Identifier: Apache-2.0
"""The table of flows, and the traffic of evicted flows."""

from __future__ import annotations

import numpy as np

from nettop.query.view import View
from nettop.screens import headline
from nettop.screens.bandwidth.rates import rates_by_backing
from nettop.screens.lens import LensScreen
from nettop.snapshots.connections import UNATTRIBUTED
from nettop.snapshots.schema import RATE
from nettop.widgets.bar import BarItem, Span
from nettop.widgets.cells import RowStyle
from nettop.widgets.themes import Role


class FlowsScreen(LensScreen):
    """Every flow on each interface it passes."""

    about = "flows by addresses and ports, with the process that owns their socket"
    row_style = RowStyle(absent={"process": UNATTRIBUTED})

    def headline(self, view: View) -> list[BarItem]:
        """Return the host's rates, the number of flows, and the rate of evicted flows."""
        items = [*rates_by_backing(view), headline.count("flows", len(view.now), 900)]
        if view.has_rest:
            rest = np.flatnonzero(view.rest)
            items.append(headline.sum_of(view, "bytes" + RATE, Span("evicted ", Role.WARN), rest, 800))
        return items


SCREEN = FlowsScreen
