# SPDX-License-Identifier: Apache-2.0
"""The table of buckets: the histograms as numbers."""

from __future__ import annotations

from nettop.screens.latency.latency_table import LatencyTable


class BucketsScreen(LatencyTable):
    """A row for each bucket that has counted anything."""

    about = "the histograms as numbers: the count of each bucket"


SCREEN = BucketsScreen
