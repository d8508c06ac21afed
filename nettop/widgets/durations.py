# SPDX-License-Identifier: Apache-2.0
"""Durations from 100 ns to 10 s on a logarithmic axis: histograms in its cells, labels, marks, and a map over time."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np

from nettop.snapshots.arrays import Array
from nettop.snapshots.histograms import Buckets
from nettop.widgets.text import Line, TextSpan, fit
from nettop.widgets.themes import Role

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


DECADES = round(math.log10(HIGH / LOW))
LABELS = ("100 ns", "1 µs", "10 µs", "100 µs", "1 ms", "10 ms", "100 ms", "1 s", "10 s")
"""The start of each decade, and the end of the last."""
_TICK, _MARK = "▏", "↑"
_LONGEST = 1 + max(map(len, LABELS))
BEYOND = 1 + len(LABELS[-1])
"""Cells the last label needs beyond the end of the axis."""


def cell_of(duration_ns: float, width: int) -> int:
    """Return the cell of a duration on an axis of `width` cells, clamped to its ends."""
    share = math.log10(max(duration_ns, LOW) / LOW) / DECADES
    return min(int(share * width), width - 1)


def axis_line(width: int) -> str:
    """Return the labels of an axis of `width` cells, each after a tick at its duration; the line is `BEYOND` longer.

    Label every second or fourth decade where there is no room for all.
    """
    step = next((step for step in (1, 2, 4) if width * step >= _LONGEST * DECADES), DECADES)
    cells = [" "] * (width + BEYOND)
    for decade in range(0, DECADES + 1, step):
        at, text = -(-width * decade // DECADES), _TICK + LABELS[decade]
        cells[at : at + len(text)] = text
    return "".join(cells[: width + BEYOND])


def mark_line(marks: Sequence[tuple[str, float]], width: int) -> str:
    """Return names with arrows to their durations on an axis of `width` cells; the line is `BEYOND` longer.

    Marks are ordered by importance: leave out those that would cover an earlier one.
    """
    cells = [" "] * (width + BEYOND)
    for name, duration_ns in marks:
        at = cell_of(duration_ns, width)
        for first, text in ((at - len(name), name + _MARK), (at, _MARK + name)):
            end = first + len(text)
            if first >= 0 and end <= len(cells) and not "".join(cells[first:end]).strip():
                cells[first:end] = text
                break
    return "".join(cells)


PARTS = 8 * DECADES
"""Number of equal parts of the axis that amounts are divided into."""
_LINES_PER_DECADE = (8, 4, 2, 1)
_SHADES = " ░▒▓█"
_SHARES = (0.0, 1 / 64, 1 / 16, 1 / 4)
"""Share of the largest amount above which each shade begins, after the blank one."""
MAP_COLUMNS = 120
"""Most columns shown: two minutes at an interval of one second."""
_AXIS = 9
"""Cells for ` 100 ns ▏`."""
MIN_WIDTH = 24


def shades(columns: Array, lines: int) -> list[str]:
    """Return the columns as lines from the top, with a cell for each column.

    `columns` has the shape (columns, PARTS); `lines` divides PARTS. Each shade means a quarter of the next darker one;
    any amount above 0 is visible.
    """
    amounts = columns.reshape(len(columns), lines, PARTS // lines).sum(axis=2)
    largest = amounts.max(initial=0.0)
    levels = np.searchsorted(_SHARES, amounts / largest if largest else amounts)
    return ["".join(_SHADES[level] for level in line) for line in levels.T[::-1].tolist()]


def heat_map(columns: Array, caption: Callable[[int], str], width: int, height: int) -> list[Line]:
    """Return lines of at most `width` cells: a caption, and a map with labels at its decades.

    The map shows the newest `columns`, shaped as for `shades`; `caption` returns the caption for their number. Where
    room is short, drop the caption, then the whole map.
    """
    each = next((line for line in _LINES_PER_DECADE if line * DECADES <= height), 0)
    if not each or width < MIN_WIDTH:
        return []
    labels = [LABELS[n // each] if n % each == 0 else "" for n in range(each * DECADES)]
    cells = min(width - _AXIS, MAP_COLUMNS)
    newest = columns[-cells:]
    lines: list[Line] = [
        (
            TextSpan(fit(label, _AXIS - 2, left=False), Role.DIM),
            TextSpan(" ▏", Role.FAINT),
            TextSpan(line.rjust(cells), Role.RECEIVED),
        )
        for label, line in zip(labels[::-1], shades(newest, len(labels)), strict=True)
    ]
    above = caption(len(newest))
    has_caption = height > len(lines) and len(above) < width
    return [(TextSpan(f" {above}", Role.DIM),), *lines] if has_caption else lines
