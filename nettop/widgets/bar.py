# SPDX-License-Identifier: Apache-2.0
"""One-line bars: parts that leave by importance when room is short, some of which can be clicked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from rich.cells import cell_len
from rich.segment import Segment
from textual import events
from textual.geometry import Size
from textual.message import Message
from textual.strip import Strip

from nettop.widgets.lines import Lines
from nettop.widgets.themes import Ground, Role, style

KEPT = 1000
"""The importance of a part that never leaves."""


class Piece(NamedTuple):
    """Some text in one role."""

    text: str
    role: Role = Role.TEXT


@dataclass(frozen=True, slots=True)
class Part:
    """Pieces that come and go together.

    `action` is what a click on them does; one that is `beside` stands close to the one before it.
    """

    pieces: tuple[Piece, ...]
    importance: int = KEPT
    action: str = ""
    beside: bool = False

    @property
    def width(self) -> int:
        """Cells."""
        return sum(cell_len(piece.text) for piece in self.pieces)


def part(
    *pieces: Piece | tuple[str, Role] | str, importance: int = KEPT, action: str = "", beside: bool = False
) -> Part:
    """A part from texts, or texts with their roles."""
    made = (Piece(p) if isinstance(p, str) else Piece(*p) for p in pieces)
    return Part(tuple(made), importance, action, beside)


def shed(parts: Sequence[Part], width: int, gap: int) -> list[Part]:
    """The parts that fit in `width` cells: the least important leave first, of equals the right-most."""
    left = list(parts)
    while left and _taken(left, gap) > width:
        weakest = min(range(len(left)), key=lambda at: (left[at].importance, -at))
        if left[weakest].importance >= KEPT:
            break
        del left[weakest]
    return left


def _gaps(parts: Sequence[Part], gap: int) -> list[int]:
    """The cells before each part."""
    return [0 if n == 0 else min(1, gap) if one.beside else gap for n, one in enumerate(parts)]


def _taken(parts: Sequence[Part], gap: int) -> int:
    return sum(p.width for p in parts) + sum(_gaps(parts, gap))


class Bar(Lines):
    """A line of parts, some at its left and some at its right end. Never wraps."""

    DEFAULT_CSS = "Bar { height: 1; }"

    @dataclass
    class Pressed(Message):
        """A part with an action was clicked."""

        action: str

    def __init__(self, ground: Ground = Ground.SCREEN, gap: int = 3, id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id)
        self._ground = ground
        self._gap = gap
        self._left: tuple[Part, ...] = ()
        self._right: tuple[Part, ...] = ()
        self._spans: list[tuple[int, int, str]] = []

    def show(self, left: Sequence[Part], right: Sequence[Part] = ()) -> None:
        """Show these parts from now on; nothing is drawn when they are the same."""
        shown = (tuple(left), tuple(right))
        if shown != (self._left, self._right):
            self._left, self._right = shown
            self.redraw()

    @property
    def text(self) -> str:
        """What the line shows now."""
        return self._strip(self.size.width).text

    def strips(self, size: Size) -> list[Strip]:
        """The line."""
        return [self._strip(size.width)] * size.height

    def _strip(self, width: int) -> Strip:
        blank = style(self.app.theme, Role.TEXT, self._ground)
        segments: list[Segment] = []
        self._spans = []
        right = shed(self._right, width - self._kept_width() - 2, self._gap)
        ending = _taken(right, self._gap) + (2 if right else 0)
        used = 0
        for text, role, action in self._flow(shed(self._left, width - 1 - ending, self._gap), right, ending):
            segments.append(Segment(text, style(self.app.theme, role, self._ground)))
            if action:
                self._spans.append((used, used + cell_len(text), action))
            used += cell_len(text)
        segments.append(Segment(" " * max(0, width - used), blank))
        return Strip(segments, max(width, used)).crop(0, width)

    def _kept_width(self) -> int:
        kept = [p for p in self._left if p.importance >= KEPT]
        return _taken(kept, self._gap) + 1

    def _flow(
        self, left: Sequence[Part], right: Sequence[Part], ending: int
    ) -> Iterator[tuple[str, Role, str]]:
        used = 1
        yield " ", Role.TEXT, ""
        for one, gap in zip(left, _gaps(left, self._gap), strict=True):
            used += gap + one.width
            yield " " * gap, Role.TEXT, ""
            yield from ((piece.text, piece.role, one.action) for piece in one.pieces)
        yield " " * max(0, self.size.width - used - ending + (1 if right else 0)), Role.TEXT, ""
        for one, gap in zip(right, _gaps(right, self._gap), strict=True):
            yield " " * gap, Role.TEXT, ""
            yield from ((piece.text, piece.role, one.action) for piece in one.pieces)

    def on_click(self, event: events.Click) -> None:
        """Do what the part under the pointer does."""
        for start, end, action in self._spans:
            if start <= event.x < end:
                self.post_message(self.Pressed(action))
