# SPDX-License-Identifier: Apache-2.0
"""The table of pairs of hosts between which packets wait longest."""

from __future__ import annotations

from nettop.query.view import View
from nettop.screens import headline
from nettop.screens.latency.latency_table import LatencyTable
from nettop.snapshots.latency import PAIRS_EVICTED
from nettop.widgets.bar import BarItem


class PairsScreen(LatencyTable):
    """A row for each pair of hosts, protocol and place; the longest delays first."""

    about = "pairs of hosts by how long their packets wait, longest first"

    def headline(self, view: View) -> list[BarItem]:
        """Return the common headline, and the number of evicted pairs."""
        evicted = view.snapshot.counts.get(PAIRS_EVICTED, 0)
        more = [headline.count("evicted", evicted, 960, warn=True)] if evicted else []
        return [*super().headline(view), *more]


SCREEN = PairsScreen
