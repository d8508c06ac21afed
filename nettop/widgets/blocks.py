# SPDX-License-Identifier: Apache-2.0
"""Amounts drawn in block characters: horizontal bars and rows of columns."""

from __future__ import annotations

from collections.abc import Sequence

_EIGHTHS = ("", *"▏▎▍▌▋▊▉")
_LEVELS = "▁▂▃▄▅▆▇█"


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
