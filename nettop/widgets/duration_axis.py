# SPDX-License-Identifier: Apache-2.0
"""A logarithmic axis of durations from 100 ns to 10 s, with labels and marks."""

from __future__ import annotations

import math
from collections.abc import Sequence

from nettop.widgets.histogram import HIGH, LOW

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
