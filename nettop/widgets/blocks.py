# SPDX-License-Identifier: Apache-2.0
"""Amounts as block characters: bars in the rows of a table, and a line of columns over time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nettop.query.view import View
from nettop.snapshots.arrays import Index, as_list
from nettop.snapshots.schema import RATE
from nettop.widgets.cells import Cell, RowFlags, role_of
from nettop.widgets.columns import Column
from nettop.widgets.themes import Role

_EIGHTHS = ("", *"▏▎▍▌▋▊▉")
_LEVELS = "▁▂▃▄▅▆▇█"


def bar_cells(view: View, column: Column, at: Index, flags: Sequence[RowFlags]) -> list[tuple[Cell, ...]]:
    """The bars of a sum's rate for the rows at `at`, each in two pieces: its parts. The view's largest is full."""
    fields = [view.table.by_name[part] for part in column.field.parts]
    rates = [view.column(field.name + RATE) for field in fields]
    first, second = (as_list(np.where(rate.known[at], rate.numbers[at], 0.0)) for rate in rates)
    most = view.largest(column.name)
    cells = []
    for size, other, row in zip(first, second, flags, strict=True):
        pieces = bar_pieces(size, other, most, column.width)
        roles = [Role.FAINT if row.gone else role_of(field) for field in fields]
        cells.append(tuple(zip(pieces, roles, strict=True)))
    return cells


def bar_pieces(first: float, second: float, most: float, width: int) -> tuple[str, str]:
    """A bar of two amounts, of which `most` fills the width, as the cells of the one and of the other.

    Its length is exact to an eighth of a cell, and something is seen of the smallest amount; where the first one ends
    is exact to a cell.
    """
    whole = first + second
    eighths = max(1, round(whole / most * width * 8)) if whole else 0
    bar = "█" * (eighths // 8) + _EIGHTHS[eighths % 8]
    cut = round(len(bar) * first / whole) if whole else 0
    return bar[:cut], bar[cut:].ljust(width - cut)


def sparkline(amounts: Sequence[float | None], most: float) -> str:
    """A cell for each amount, of which `most` fills one; a blank where it is unknown."""
    steps = len(_LEVELS) / most if most else 0.0
    return "".join(
        " " if amount is None else _LEVELS[min(int(amount * steps), len(_LEVELS) - 1)] for amount in amounts
    )


def column_pieces(amounts: Sequence[float | None], most: float, height: int) -> list[str]:
    """A column for each amount, of which `most` fills `height` lines, exact to an eighth of a line: the lines from the
    top. Something is seen of the smallest amount; unknown ones are blank."""
    steps = height * 8 / most if most else 0.0
    filled = [0 if not amount else max(1, round(amount * steps)) for amount in amounts]
    lines = range(height - 1, -1, -1)
    return [
        "".join(" " if n <= 8 * line else _LEVELS[min(n - 8 * line, 8) - 1] for n in filled) for line in lines
    ]
