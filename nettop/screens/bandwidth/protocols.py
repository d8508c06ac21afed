# SPDX-License-Identifier: Apache-2.0
"""The tables of protocols and of services: each interface's traffic, split."""

from __future__ import annotations

import numpy as np

from nettop.query.view import View
from nettop.screens import headline
from nettop.screens.bandwidth.rates import rates_by_backing
from nettop.screens.lens import LensScreen
from nettop.widgets.bar import BarItem


class SplitScreen(LensScreen):
    """A row for each protocol or service of each interface."""

    def headline(self, view: View) -> list[BarItem]:
        """Return the host's rates and the number of rows; rows overlap, so they have no sum."""
        return [*rates_by_backing(view), headline.count("rows", int(np.sum(~view.gone[view.order])), 900)]


SCREEN = SplitScreen
