# SPDX-License-Identifier: Apache-2.0
"""The main table: where packets wait, and the selected stage's histogram, current and over time."""

from __future__ import annotations

import numpy as np

from nettop.query.filter import quote
from nettop.query.view import View
from nettop.screens.latency.histograms import LatencyHistograms
from nettop.snapshots.latency import PROTOCOL_TABLE


class StagesScreen(LatencyHistograms):
    """Stages where packets wait; → opens a stage's protocols."""

    about = "where packets wait and for how long, the selected stage as a histogram; → opens its protocols"
    named_by = ("stage",)
    member_table = PROTOCOL_TABLE

    def member_filter(self, view: View, key: int) -> str:
        """Return the filter for the protocols of this stage."""
        at = np.flatnonzero(view.raw(view.table.key) == key)
        return f"stage={quote(view.values('stage', at)[0])}"


SCREEN = StagesScreen
