# SPDX-License-Identifier: Apache-2.0
"""Texts with their roles, wrapped, padded or elided. Widths are in terminal cells, not characters."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from rich.cells import cell_len, set_cell_size

from nettop.widgets.themes import Background, Role, Shade


class TextSpan(NamedTuple):
    """A text, its role, its background if it is not its line's, and the action of a click on it.

    With a `letter`, it has the colours of a flame graph's frame of that category, in this `shade`.
    """

    text: str
    role: Role = Role.TEXT
    background: Background | None = None
    action: str = ""
    letter: str = ""
    shade: Shade = Shade.PLAIN


Line = tuple[TextSpan, ...]


def width_of(line: Iterable[TextSpan]) -> int:
    """Return the width of a line in cells."""
    return sum(cell_len(span.text) for span in line)


def wrapped(text: str, width: int, role: Role, indent: int = 0) -> list[Line]:
    """Wrap the text between words into lines of at most `width` cells."""
    lines: list[str] = []
    line = ""
    for word in text.split():
        if line and cell_len(line) + 1 + cell_len(word) > width - indent:
            lines.append(line)
            line = ""
        line = f"{line} {word}" if line else word
    return [(TextSpan(" " * indent + full, role),) for full in (*lines, line) if full]


def fit(text: str, width: int, *, left: bool) -> str:
    """Return the text in exactly `width` cells: aligned left or right, elided at its end if too long."""
    if text.isascii() and len(text) <= width:
        return text.ljust(width) if left else text.rjust(width)
    text = elide_end(text, width)
    pad = " " * (width - cell_len(text))
    return text + pad if left else pad + text


def elide_end(text: str, width: int) -> str:
    """Cut the end of the text to at most `width` cells, marked with `…`."""
    if cell_len(text) <= width:
        return text
    return set_cell_size(text, width - 1).rstrip() + "…" if width > 0 else ""


def elide_middle(text: str, width: int) -> str:
    """Cut the middle of an ASCII text to at most `width` cells, marked with `…`: addresses differ at both ends."""
    if len(text) <= width:
        return text
    if width < 3:
        return "…"[:width]
    tail = (width - 1) // 2
    return f"{text[: width - 1 - tail]}…{text[-tail:]}"
