# SPDX-License-Identifier: Apache-2.0
"""Amounts as block characters: bars, and columns beside each other."""

from __future__ import annotations

from collections.abc import Sequence

_EIGHTHS = ("", *"▏▎▍▌▋▊▉")
_LEVELS = "▁▂▃▄▅▆▇█"


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
