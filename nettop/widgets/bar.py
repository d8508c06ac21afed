# SPDX-License-Identifier: Apache-2.0
"""One-line bars: parts that leave by importance when room is short, some of which can be clicked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from operator import attrgetter
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


def fits(left: Sequence[Part], right: Sequence[Part], width: int, gap: int) -> bool:
    """Whether a line of `width` cells has room for all these parts."""
    return 1 + _taken(left, gap) + _ending(right, gap) <= width


def shed(
    left: Sequence[Part], right: Sequence[Part], width: int, gap: int
) -> tuple[Sequence[Part], Sequence[Part]]:
    """The parts that fit in `width` cells: the least important leave first, of equals the right-most."""
    while (parts := [*left, *right]) and not fits(left, right, width, gap):
        weakest = min(reversed(parts), key=attrgetter("importance"))
        if weakest.importance >= KEPT:
            break
        left, right = ([one for one in end if one is not weakest] for end in (left, right))
    return left, right


def _gaps(parts: Sequence[Part], gap: int) -> list[int]:
    """The cells before each part."""
    return [0 if n == 0 else min(1, gap) if one.beside else gap for n, one in enumerate(parts)]


def _taken(parts: Sequence[Part], gap: int) -> int:
    return sum(p.width for p in parts) + sum(_gaps(parts, gap))


def _ending(right: Sequence[Part], gap: int) -> int:
    """The cells that the right end takes, and two before it."""
    return 2 + _taken(right, gap) if right else 0


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
        used = 0
        for text, role, action in self._flow(*shed(self._left, self._right, width, self._gap)):
            segments.append(Segment(text, style(self.app.theme, role, self._ground)))
            if action:
                self._spans.append((used, used + cell_len(text), action))
            used += cell_len(text)
        segments.append(Segment(" " * max(0, width - used), blank))
        return Strip(segments, max(width, used)).crop(0, width)

    def _flow(self, left: Sequence[Part], right: Sequence[Part]) -> Iterator[tuple[str, Role, str]]:
        used = 1
        yield " ", Role.TEXT, ""
        for one, gap in zip(left, _gaps(left, self._gap), strict=True):
            used += gap + one.width
            yield " " * gap, Role.TEXT, ""
            yield from ((piece.text, piece.role, one.action) for piece in one.pieces)
        between = self.size.width - used - _ending(right, self._gap) + (1 if right else 0)
        yield " " * max(0, between), Role.TEXT, ""
        for one, gap in zip(right, _gaps(right, self._gap), strict=True):
            yield " " * gap, Role.TEXT, ""
            yield from ((piece.text, piece.role, one.action) for piece in one.pieces)

    def on_click(self, event: events.Click) -> None:
        """Do what the part under the pointer does."""
        for start, end, action in self._spans:
            if start <= event.x < end:
                self.post_message(self.Pressed(action))
