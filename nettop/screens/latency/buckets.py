# SPDX-License-Identifier: Apache-2.0
"""The table of buckets: the histograms as numbers."""

from __future__ import annotations

from nettop.screens.latency.headline import LatencyTable


class BucketsScreen(LatencyTable):
    """A row for each bucket that has counted anything."""

    about = "the histograms as numbers: how many durations there are in each bucket"


SCREEN = BucketsScreen
