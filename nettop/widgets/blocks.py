# SPDX-License-Identifier: Apache-2.0
"""Amounts drawn in block characters: horizontal bars, rows of columns, and a graph of rates over time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from textual.geometry import Size

from nettop.query.units import human
from nettop.widgets.text import Line, TextSpan, fit
from nettop.widgets.themes import Role

_EIGHTHS = ("", *"▏▎▍▌▋▊▉")
_LEVELS = "▁▂▃▄▅▆▇█"
_AXIS = 11
"""Cells for the label at the upper end of a graph's scale: ` 1.93 Gb/s `."""


def bar_parts(first: float, second: float, largest: float, width: int) -> tuple[str, str]:
    """Return a bar of two amounts as two texts, scaled so that `largest` fills the width.

    The bar's length is exact to an eighth of a cell, the boundary between the amounts to a cell. Any amount above 0
    is visible.
    """
    whole = first + second
    eighths = max(1, round(whole / largest * width * 8)) if whole else 0
    bar = "█" * (eighths // 8) + _EIGHTHS[eighths % 8]
    cut = round(len(bar) * first / whole) if whole else 0
    return bar[:cut], bar[cut:].ljust(width - cut)


def sparkline(amounts: Sequence[float | None], largest: float) -> str:
    """Return a cell for each amount, scaled so that `largest` fills a cell; unknown amounts are blank."""
    steps = len(_LEVELS) / largest if largest else 0.0
    return "".join(
        " " if amount is None else _LEVELS[min(int(amount * steps), len(_LEVELS) - 1)] for amount in amounts
    )


def column_lines(amounts: Sequence[float | None], largest: float, height: int) -> list[str]:
    """Return the lines, from the top, of a column for each amount, scaled so that `largest` fills `height` lines.

    Columns are exact to an eighth of a line. Any amount above 0 is visible; unknown ones are blank.
    """
    steps = height * 8 / largest if largest else 0.0
    filled = [0 if not amount else max(1, round(amount * steps)) for amount in amounts]
    lines = range(height - 1, -1, -1)
    return [
        "".join(" " if n <= 8 * line else _LEVELS[min(n - 8 * line, 8) - 1] for n in filled) for line in lines
    ]


class Curve(NamedTuple):
    """A part of a graph. `amounts` returns the newest amounts for a number of cells."""

    title: str
    role: Role
    unit: str
    amounts: Callable[[int], Sequence[float | None]]


def graph_lines(title: str, curves: Sequence[Curve], size: Size) -> list[Line]:
    """Return a title, then the curves in equal parts, each with its own scale, the newest amounts at the right."""
    lines: list[Line] = [(TextSpan(f" {fit(title, size.width - 1, left=True)}", Role.DIM),)]
    height, cells = (size.height - 1) // max(1, len(curves)), size.width - _AXIS - 1
    for curve in curves if height and cells > 0 else ():
        amounts = curve.amounts(cells)
        largest = max((amount for amount in amounts if amount is not None), default=0.0)
        labels = [human(largest, curve.unit) if largest else "", *[""] * (height - 1)]
        labels[-1 if height > 1 else 0] = curve.title if height > 1 else f"{curve.title} {labels[0]}"
        for label, columns in zip(labels, column_lines(amounts, largest, height), strict=True):
            role = curve.role if label == curve.title else Role.DIM
            head = TextSpan(f"{fit(label, _AXIS - 1, left=False)} ", role)
            lines.append((head, TextSpan("▏", Role.FAINT), TextSpan(columns, curve.role)))
    return lines
