# SPDX-License-Identifier: Apache-2.0
"""The table of pairs: between which hosts packets wait longest."""

from __future__ import annotations

from nettop.query.view import View
from nettop.screens import headline
from nettop.screens.latency.headline import LatencyTable
from nettop.snapshots.latency import PAIRS_EVICTED
from nettop.widgets.bar import BarItem


class PairsScreen(LatencyTable):
    """A row for each pair of hosts, protocol and place; the longest delays first."""

    about = "pairs of hosts by how long their packets wait, the longest first"

    def headline(self, view: View) -> list[BarItem]:
        """What made room for others too."""
        evicted = view.snapshot.counts.get(PAIRS_EVICTED, 0)
        more = [headline.count("evicted", evicted, 960, warn=True)] if evicted else []
        return [*super().headline(view), *more]


SCREEN = PairsScreen
