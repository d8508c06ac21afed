# SPDX-License-Identifier: Apache-2.0
"""Histograms as cells on a logarithmic axis."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from nettop.snapshots.histograms import Buckets
from nettop.snapshots.snapshot import Array

LOW, HIGH = 100.0, 1e10
"""The ends of the axis in base units: of nanoseconds, 100 ns and 10 s."""


def cells(counts: Array, buckets: Buckets, width: int, low: float = LOW, high: float = HIGH) -> Array:
    """What is counted in each of `width` cells, which are equal parts of the axis from `low` to `high`.

    A bucket belongs to the cell of its middle, and what is beyond the axis to the outermost cell, so that nothing is
    lost. Shapes (..., buckets) and (..., width), float64.
    """
    sums: Array = counts.astype(np.float64) @ _belongs(buckets, width, low, high)
    return sums


@lru_cache(maxsize=8)
def _belongs(buckets: Buckets, width: int, low: float, high: float) -> Array:
    """Which bucket belongs to which cell, as 1 and 0. Shape (buckets, width)."""
    places = np.log(np.clip(buckets.middles, low, high) / low) / np.log(high / low) * width
    belongs: Array = np.minimum(places.astype(np.intp), width - 1)[:, None] == np.arange(width)
    return belongs.astype(np.float64)
