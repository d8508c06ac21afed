# SPDX-License-Identifier: Apache-2.0
"""One-line bars of items, which leave by importance when room is short. Some can be clicked."""

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
"""The importance of an item that never leaves."""


class Span(NamedTuple):
    """Some text in one role."""

    text: str
    role: Role = Role.TEXT


@dataclass(frozen=True, slots=True)
class BarItem:
    """Spans that are shown or left out together.

    `action` is what a click does; an item `beside` another has the smallest gap before it.
    """

    spans: tuple[Span, ...]
    importance: int = KEPT
    action: str = ""
    beside: bool = False

    @property
    def width(self) -> int:
        """Cells."""
        return sum(cell_len(span.text) for span in self.spans)


def item(
    *texts: tuple[str, Role] | str, importance: int = KEPT, action: str = "", beside: bool = False
) -> BarItem:
    """An item from texts, or texts with their roles."""
    spans = (Span(text) if isinstance(text, str) else Span(*text) for text in texts)
    return BarItem(tuple(spans), importance, action, beside)


def fits(left: Sequence[BarItem], right: Sequence[BarItem], width: int, gap: int) -> bool:
    """Whether a line of `width` cells has room for all these items."""
    return _taken(left, right, gap) <= width


def shed(
    left: Sequence[BarItem], right: Sequence[BarItem], width: int, gap: int
) -> tuple[Sequence[BarItem], Sequence[BarItem]]:
    """The items that fit in `width` cells: the least important leave first, of equals the right-most."""
    while (items := [*left, *right]) and not fits(left, right, width, gap):
        weakest = min(reversed(items), key=attrgetter("importance"))
        if weakest.importance >= KEPT:
            break
        left, right = ([kept for kept in end if kept is not weakest] for end in (left, right))
    return left, right


def _gaps(items: Sequence[BarItem], gap: int) -> list[int]:
    """The cells before each item."""
    return [0 if n == 0 else min(1, gap) if shown.beside else gap for n, shown in enumerate(items)]


def _taken(left: Sequence[BarItem], right: Sequence[BarItem], gap: int) -> int:
    """The cells of these items: one before those at the left, two before those at the right end."""
    gaps = sum(_gaps(left, gap)) + sum(_gaps(right, gap))
    return 1 + sum(shown.width for shown in (*left, *right)) + gaps + (2 if right else 0)


class Bar(Lines):
    """A line of items, some at its left and some at its right end. Never wraps."""

    DEFAULT_CSS = "Bar { height: 1; }"

    @dataclass
    class Pressed(Message):
        """An item with an action was clicked."""

        action: str

    def __init__(self, ground: Ground = Ground.SCREEN, gap: int = 3, id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id)
        self._ground = ground
        self._gap = gap
        self._left: tuple[BarItem, ...] = ()
        self._right: tuple[BarItem, ...] = ()
        self._actions: list[tuple[int, int, str]] = []

    def show(self, left: Sequence[BarItem], right: Sequence[BarItem] = ()) -> None:
        """Show these items from now on, without those that have no text; nothing is drawn when they are the same."""
        shown = (tuple(each for each in left if each.spans), tuple(each for each in right if each.spans))
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
        self._actions = []
        used = 0
        for text, role, action in self._flow(*shed(self._left, self._right, width, self._gap)):
            segments.append(Segment(text, style(self.app.theme, role, self._ground)))
            if action:
                self._actions.append((used, used + cell_len(text), action))
            used += cell_len(text)
        segments.append(Segment(" " * max(0, width - used), blank))
        return Strip(segments, max(width, used)).crop(0, width)

    def _flow(self, left: Sequence[BarItem], right: Sequence[BarItem]) -> Iterator[tuple[str, Role, str]]:
        between = self.size.width - _taken(left, right, self._gap) + (1 if right else 0)
        for blank, items in ((1, left), (between, right)):
            yield " " * max(0, blank), Role.TEXT, ""
            for shown, gap in zip(items, _gaps(items, self._gap), strict=True):
                yield " " * gap, Role.TEXT, ""
                yield from ((span.text, span.role, shown.action) for span in shown.spans)

    def on_click(self, event: events.Click) -> None:
        """Do what the item under the pointer does."""
        for start, end, action in self._actions:
            if start <= event.x < end:
                self.post_message(self.Pressed(action))
