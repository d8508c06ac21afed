# SPDX-License-Identifier: Apache-2.0
"""Output of only those terminal cells that change.

Textual writes every changed line whole; over a slow connection, a table with a few new numbers would take seconds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

from rich.cells import get_character_cell_size
from rich.color import Color, ColorSystem
from rich.console import Console
from rich.style import Style
from textual._compositor import ChopsUpdate, CompositorUpdate, LayoutUpdate
from textual.strip import Strip

_INVISIBLE_ON_BLANKS = frozenset({"1", "2", "3"})
"""Bold, dim and italic."""
_SKIP_LENGTH = len("\x1b[3C")

Fragment = tuple[int, int, Strip]
"""A line, a column, and the strip that begins there."""


class Pen(NamedTuple):
    """The attributes and colours of a cell, as parameters of the sequence that sets them (SGR)."""

    attributes: str = ""
    colour: str = "39"
    background: str = "49"

    def of_blank(self) -> Pen:
        """Return the pen with which a blank looks the same, whatever its colour."""
        is_invisible = _INVISIBLE_ON_BLANKS.issuperset(filter(None, self.attributes.split(";")))
        return Pen(background=self.background) if is_invisible else self

    def sequence_from(self, last: Pen) -> str:
        """Return the sequence that changes the pen from `last` to this one."""
        if self == last:
            return ""
        if self.attributes != last.attributes:
            last = Pen()
            changes = ["0", *filter(None, [self.attributes])]
        else:
            changes = []
        changes += [now for now, was in zip(self[1:], last[1:], strict=True) if now != was]
        return f"\x1b[{';'.join(changes)}m"


PLAIN = Pen()
Cell = tuple[str, Pen]


@lru_cache(1 << 10)
def pen_of(style: Style | None, colours: ColorSystem) -> Pen:
    """Return the pen of a style in a terminal with these colours."""
    if style is None:
        return PLAIN

    def parameters(colour: Color | None, default: str, *, foreground: bool) -> str:
        return default if colour is None else ";".join(colour.downgrade(colours).get_ansi_codes(foreground))

    return Pen(
        Strip.render_ansi(style.without_color, colours),
        parameters(style.color, PLAIN.colour, foreground=True),
        parameters(style.bgcolor, PLAIN.background, foreground=False),
    )


class EscapeSequences:
    """The output of one update: cursor moves, changes of the pen, and texts."""

    def __init__(self) -> None:
        self._parts: list[str] = []
        self._pen = PLAIN

    def move(self, y: int, x: int) -> None:
        """Move the cursor."""
        self._parts.append(f"\x1b[{y + 1};{x + 1}H")

    def skip(self, cells: Sequence[Cell]) -> None:
        """Move the cursor right, past cells that keep their content; write them again if that is no longer."""
        texts, pens = zip(*cells, strict=True)
        if len(cells) <= _SKIP_LENGTH and all(map(self._shows, texts, pens)):
            self._parts += texts
        else:
            self._parts.append(f"\x1b[{len(cells)}C")

    def write(self, text: str, pen: Pen) -> None:
        """Write a text, after changing the pen if the text would look different."""
        if not self._shows(text, pen):
            self._parts.append(pen.sequence_from(self._pen))
            self._pen = pen
        self._parts.append(text)

    def _shows(self, text: str, pen: Pen) -> bool:
        """Return whether a text looks the same with the current pen. A blank shows little of it."""
        return pen == (self._pen.of_blank() if text == " " else self._pen)

    def text(self) -> str:
        """Return the output, which leaves the pen as it was."""
        return "".join(self._parts) + ("" if self._pen == PLAIN else "\x1b[0m")


class TerminalCells:
    """The cells that the terminal shows, as far as they are known.

    A full update writes all cells, so that it also repairs a terminal on which something else has written. Texts with
    characters that are not one cell wide are always written whole: terminals disagree about such widths.
    """

    def __init__(self) -> None:
        self._lines: list[list[Cell | None]] = []

    def sequences(self, update: LayoutUpdate | ChopsUpdate, colours: ColorSystem) -> str:
        """Return the output that brings the terminal up to date."""
        lines = update.strips if isinstance(update, LayoutUpdate) else update.chops
        if isinstance(update, LayoutUpdate) or len(lines) != len(self._lines):
            self._lines = [[] for _ in lines]
        output = EscapeSequences()
        for y, x, strip in _fragments(update):
            self._write(output, y, x, strip, colours)
        return output.text()

    def _write(self, output: EscapeSequences, y: int, x: int, strip: Strip, colours: ColorSystem) -> None:
        """Write the cells of a strip that have changed."""
        line, cells = self._lines[y], _cells(strip, colours)
        line += [None] * (x + strip.cell_length - len(line))
        if cells is None:
            output.move(y, x)
            for text, style, _ in strip:
                output.write(text, pen_of(style, colours))
            line[x : x + strip.cell_length] = [None] * strip.cell_length
            return
        end: int | None = None
        for at, (cell, before) in enumerate(zip(cells, line[x : x + len(cells)], strict=True), x):
            if cell != before:
                if end is None:
                    output.move(y, at)
                elif at > end:
                    output.skip(cells[end - x : at - x])
                output.write(*cell)
                end = at + 1
        line[x : x + len(cells)] = cells


class ChangedCells(CompositorUpdate):
    """An update of which only the changed cells are written."""

    def __init__(self, terminal: TerminalCells, update: LayoutUpdate | ChopsUpdate) -> None:
        self._terminal = terminal
        self._update = update

    def render_segments(self, console: Console) -> str:
        """Return the output for the terminal."""
        colours = console._color_system or ColorSystem.TRUECOLOR  # as Textual's own updates
        return self._terminal.sequences(self._update, colours)


def _fragments(update: LayoutUpdate | ChopsUpdate) -> Iterator[Fragment]:
    """Return the strips of an update, each in its place."""
    if isinstance(update, LayoutUpdate):
        for y, strips in enumerate(update.strips, update.region.y):
            x = update.region.x
            for strip in strips:
                yield y, x, strip
                x += strip.cell_length
        return
    for y, first, last in update.spans:
        for end, (x, part) in zip(update.chop_ends[y], update.chops[y].items(), strict=True):
            if part is not None and x < last and end > first:
                yield y, x, part.crop(0, min(end, last) - x)


def _cells(strip: Strip, colours: ColorSystem) -> list[Cell] | None:
    """Return the cells of a strip; None if a character is not one cell wide."""
    cells: list[Cell] = []
    for text, style, _ in strip:
        if not text.isascii() and any(get_character_cell_size(character) != 1 for character in text):
            return None
        pen = pen_of(style, colours)
        blank = pen.of_blank()
        cells += [(character, blank if character == " " else pen) for character in text]
    return cells
