# SPDX-License-Identifier: Apache-2.0
"""The buckets of histograms, which programs in the kernel and every frontend share. Loads numpy only to count."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nettop.snapshots.snapshot import Array


@dataclass(frozen=True)
class Buckets:
    """Log-linear buckets of whole numbers: every power of two is divided into `1 << divided_by_bits` equal ones.

    The first bucket has what is below `1 << first_bit`, the last what is at least `1 << last_bit`. In between the
    middle of a bucket is within 1 / (2 << divided_by_bits) of every number in it, as a share of that number.
    """

    first_bit: int
    last_bit: int
    divided_by_bits: int

    @property
    def count(self) -> int:
        """How many buckets there are."""
        return 2 + (self.last_bit - self.first_bit << self.divided_by_bits)

    @property
    def dtype(self) -> str:
        """The dtype of a histogram's column: a count for each bucket."""
        return f"({self.count},)u8"

    @cached_property
    def edges(self) -> tuple[int, ...]:
        """The least number of each bucket, the first one's 0."""
        parts = 1 << self.divided_by_bits
        inner = (
            (parts + part << bit) >> self.divided_by_bits
            for bit in range(self.first_bit, self.last_bit)
            for part in range(parts)
        )
        return (0, *inner, 1 << self.last_bit)

    @cached_property
    def middles(self) -> Array:
        """The whole number that stands for each bucket: its middle, or the one below; of the last, which has none, the
        least. Shape (count,), float64."""
        import numpy as np

        edges = np.array(self.edges, np.float64)
        return np.append((edges[:-1] + edges[1:]) // 2, edges[-1])

    def places(self, numbers: Array) -> Array:
        """The bucket of each number. Shape of `numbers`."""
        import numpy as np

        places: Array = np.searchsorted(np.array(self.edges, np.float64), numbers, side="right") - 1
        return places

    def quantiles(self, counts: Array, quantile: float) -> Array:
        """The number below or at which a share (0 to 1) of what is counted lies: the middle of the bucket that has it.

        As numpy's method "inverted_cdf" chooses it. `counts` has the shape (rows, count), the result (rows,), float64,
        NaN where nothing is counted.
        """
        import numpy as np

        reached = np.cumsum(counts, axis=1, dtype=np.float64)
        totals = reached[:, -1]
        wanted = np.maximum(quantile * totals, np.nextafter(0, 1))
        places = (reached < wanted[:, None]).sum(axis=1)
        return np.where(totals > 0, self.middles[np.minimum(places, self.count - 1)], np.nan)


def histogram_text(counted: Iterable[tuple[int, int | None, int]]) -> str:
    """A histogram as words, LOW-HIGH:COUNT for each bucket that has any; the last bucket has no HIGH."""
    return " ".join(f"{low}-{'' if high is None else high}:{count}" for low, high, count in counted)
