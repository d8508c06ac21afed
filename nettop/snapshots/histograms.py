# SPDX-License-Identifier: Apache-2.0
"""Histogram buckets, shared by the BPF programs and every frontend. Imports numpy only to count."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nettop.snapshots.arrays import Array


@dataclass(frozen=True)
class Buckets:
    """Log-linear buckets of integers: every power of two is split into `1 << divided_by_bits` equal buckets.

    The first bucket holds values below `1 << first_bit`, the last those from `1 << last_bit` on. In between, the
    relative error of a bucket's middle is at most 1 / (2 << divided_by_bits).
    """

    first_bit: int
    last_bit: int
    divided_by_bits: int

    @property
    def count(self) -> int:
        """The number of buckets."""
        return 2 + (self.last_bit - self.first_bit << self.divided_by_bits)

    @property
    def dtype(self) -> str:
        """The dtype of a histogram column: one count per bucket."""
        return f"({self.count},)u8"

    def defines(self, prefix: str = "") -> dict[str, int]:
        """Return the constants from which a BPF program computes a bucket."""
        return {
            f"{prefix}FIRST_BIT": self.first_bit,
            f"{prefix}LAST_BIT": self.last_bit,
            f"{prefix}DIVIDED_BY_BITS": self.divided_by_bits,
            f"{prefix}BUCKETS": self.count,
        }

    @cached_property
    def edges(self) -> tuple[int, ...]:
        """The lower bound of each bucket, beginning with 0."""
        parts = 1 << self.divided_by_bits
        inner = (
            (parts + part << bit) >> self.divided_by_bits
            for bit in range(self.first_bit, self.last_bit)
            for part in range(parts)
        )
        return (0, *inner, 1 << self.last_bit)

    @cached_property
    def middles(self) -> Array:
        """The value that represents each bucket: its middle, rounded down; for the last, which is open, its lower
        bound. Shape (count,), float64."""
        import numpy as np

        edges = np.array(self.edges, np.float64)
        return np.append((edges[:-1] + edges[1:]) // 2, edges[-1])

    def places(self, numbers: Array) -> Array:
        """Return the bucket index of each number. Shape of `numbers`."""
        import numpy as np

        places: Array = np.searchsorted(np.array(self.edges, np.float64), numbers, side="right") - 1
        return places

    def quantiles(self, counts: Array, quantile: float) -> Array:
        """Return the quantile (0 to 1) of each histogram, as the middle of the bucket that contains it.

        Follow numpy's method "inverted_cdf". `counts` has the shape (rows, count), the result (rows,), float64, NaN
        for empty histograms.
        """
        import numpy as np

        reached = np.cumsum(counts, axis=1, dtype=np.float64)
        totals = reached[:, -1]
        wanted = np.maximum(quantile * totals, np.nextafter(0, 1))
        places = (reached < wanted[:, None]).sum(axis=1)
        return np.where(totals > 0, self.middles[np.minimum(places, self.count - 1)], np.nan)


def histogram_text(counted: Iterable[tuple[int, int | None, int]]) -> str:
    """Format a histogram as words, LOW-HIGH:COUNT for each nonempty bucket; the last bucket has no HIGH."""
    return " ".join(f"{low}-{'' if high is None else high}:{count}" for low, high, count in counted)
