# SPDX-License-Identifier: Apache-2.0
"""A heat map of durations over time: longest at the top, newest at the right, darker means more."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from nettop.snapshots.arrays import Array
from nettop.widgets.bar import Span
from nettop.widgets.cells import fit
from nettop.widgets.duration_axis import DECADES, LABELS
from nettop.widgets.page import Line
from nettop.widgets.themes import Role

PARTS = 8 * DECADES
"""Number of equal parts of the axis that amounts are divided into."""
_LINES_PER_DECADE = (8, 4, 2, 1)
_SHADES = " ░▒▓█"
_SHARES = (0.0, 1 / 64, 1 / 16, 1 / 4)
"""Share of the largest amount above which each shade begins, after the blank one."""
COLUMNS = 120
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
    each = next((each for each in _LINES_PER_DECADE if each * DECADES <= height), 0)
    if not each or width < MIN_WIDTH:
        return []
    labels = [LABELS[n // each] if n % each == 0 else "" for n in range(each * DECADES)]
    cells = min(width - _AXIS, COLUMNS)
    newest = columns[-cells:]
    lines: list[Line] = [
        (
            Span(fit(label, _AXIS - 2, left=False), Role.DIM),
            Span(" ▏", Role.FAINT),
            Span(line.rjust(cells), Role.RECEIVED),
        )
        for label, line in zip(labels[::-1], shades(newest, len(labels)), strict=True)
    ]
    above = caption(len(newest))
    has_caption = height > len(lines) and len(above) < width
    return [(Span(f" {above}", Role.DIM),), *lines] if has_caption else lines
