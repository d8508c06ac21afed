# SPDX-License-Identifier: Apache-2.0
"""A logarithmic axis of durations, from 100 ns to 10 s: its labels, and the marks along it."""

from __future__ import annotations

import math
from collections.abc import Sequence

from nettop.widgets.histogram import HIGH, LOW

DECADES = round(math.log10(HIGH / LOW))
LABELS = ("100 ns", "1 µs", "10 µs", "100 µs", "1 ms", "10 ms", "100 ms", "1 s", "10 s")
"""Where each decade begins, and where the last one ends."""
_TICK, _MARK = "▏", "↑"
_LONGEST = 1 + max(map(len, LABELS))
BEYOND = 1 + len(LABELS[-1])
"""Cells that the last label needs beyond the end of the axis."""


def cell_of(duration_ns: float, width: int) -> int:
    """The cell of an axis of `width` cells that a duration lies in; one beyond an end in the last cell there."""
    share = math.log10(max(duration_ns, LOW) / LOW) / DECADES
    return min(int(share * width), width - 1)


def axis_line(width: int) -> str:
    """The labels of an axis of `width` cells, each after a tick where its duration begins; they end `BEYOND` it.

    Where not each decade has room for one, every second or every fourth has.
    """
    step = next((step for step in (1, 2, 4) if width * step >= _LONGEST * DECADES), DECADES)
    cells = [" "] * (width + BEYOND)
    for decade in range(0, DECADES + 1, step):
        at, text = -(-width * decade // DECADES), _TICK + LABELS[decade]
        cells[at : at + len(text)] = text
    return "".join(cells[: width + BEYOND])


def mark_line(marks: Sequence[tuple[str, float]], width: int) -> str:
    """Names with an arrow each to their durations on an axis of `width` cells; the line ends `BEYOND` it.

    The first marks are the most important ones: those that would cover them are left out.
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
