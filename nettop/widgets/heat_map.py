# SPDX-License-Identifier: Apache-2.0
"""Durations over time as shades: the longest at the top, the newest at the right, the darkest are the most."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from nettop.snapshots.snapshot import Array
from nettop.widgets.bar import Span
from nettop.widgets.cells import fit
from nettop.widgets.duration_axis import DECADES, LABELS
from nettop.widgets.page import Line
from nettop.widgets.themes import Role

PARTS = 8 * DECADES
"""Into how many equal parts of the axis amounts are divided."""
_LINES_PER_DECADE = (8, 4, 2, 1)
_SHADES = " ░▒▓█"
_SHARES = (0.0, 1 / 64, 1 / 16, 1 / 4)
"""Above which share of the largest amount each shade begins, after the blank one."""
COLUMNS = 120
"""At most so many are shown: with an interval of a second those of two minutes."""
_AXIS = 9
"""Cells for ` 100 ns ▏`."""
LEAST_WIDTH = 24


def shades(columns: Array, lines: int) -> list[str]:
    """The columns as lines, from the top, a cell for each column.

    `columns` has the shape (columns, PARTS); `lines` divides PARTS. Each lighter shade is a quarter of the next, and
    something is seen of the smallest amount.
    """
    amounts = columns.reshape(len(columns), lines, PARTS // lines).sum(axis=2)
    most = amounts.max(initial=0.0)
    levels = np.searchsorted(_SHARES, amounts / most if most else amounts)
    return ["".join(_SHADES[level] for level in line) for line in levels.T[::-1].tolist()]


def heat_map(columns: Array, caption: Callable[[int], str], width: int, height: int) -> list[Line]:
    """Lines of at most `width` cells: a caption for so many columns as are shown, and a map with labels at its decades.

    The newest `columns` are shown, as `shades` takes them. Without room the caption leaves, then the whole map.
    """
    each = next((each for each in _LINES_PER_DECADE if each * DECADES <= height), 0)
    if not each or width < LEAST_WIDTH:
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
