# SPDX-License-Identifier: Apache-2.0
"""The table of flows, and how much belongs to flows that are not listed any more."""

from __future__ import annotations

import numpy as np

from nettop.query.view import View
from nettop.screens import headline
from nettop.screens.bandwidth.headline import rates_by_backing
from nettop.screens.lens import LensScreen
from nettop.snapshots.connections import UNATTRIBUTED
from nettop.snapshots.schema import RATE
from nettop.widgets.bar import BarItem, Span
from nettop.widgets.cells import RowStyle
from nettop.widgets.themes import Role


class FlowsScreen(LensScreen):
    """Every flow, on each interface that it passes."""

    about = "flows by addresses and ports, with the process that owns their socket"
    row_style = RowStyle(absent={"process": UNATTRIBUTED})

    def headline(self, view: View) -> list[BarItem]:
        """What the host receives and sends, how many flows there are, and what made room for others."""
        items = [*rates_by_backing(view), headline.count("flows", len(view.now), 900)]
        if view.has_rest:
            rest = np.flatnonzero(view.rest)
            items.append(headline.sum_of(view, "bytes" + RATE, Span("evicted ", Role.WARN), rest, 800))
        return items


SCREEN = FlowsScreen
