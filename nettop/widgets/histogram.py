# SPDX-License-Identifier: Apache-2.0
"""Histograms redistributed to cells of a logarithmic axis."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from nettop.snapshots.arrays import Array
from nettop.snapshots.histograms import Buckets

LOW, HIGH = 100.0, 1e10
"""The ends of the axis in base units; for nanoseconds 100 ns and 10 s."""


def rebin(counts: Array, buckets: Buckets, width: int, low: float = LOW, high: float = HIGH) -> Array:
    """Return the counts in `width` cells, equal parts of the axis from `low` to `high`.

    A bucket is counted in the cell of its middle, or in the outermost cell if it is beyond the axis, so that nothing is
    lost. `counts` has the shape (..., buckets), the result (..., width), float64.
    """
    sums: Array = counts.astype(np.float64) @ _cell_matrix(buckets, width, low, high)
    return sums


@lru_cache(maxsize=8)
def _cell_matrix(buckets: Buckets, width: int, low: float, high: float) -> Array:
    """Return a matrix of 1 where a bucket belongs to a cell, else 0. Shape (buckets, width)."""
    places = np.log(np.clip(buckets.middles, low, high) / low) / np.log(high / low) * width
    belongs: Array = np.minimum(places.astype(np.intp), width - 1)[:, None] == np.arange(width)
    return belongs.astype(np.float64)
