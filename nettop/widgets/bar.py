# SPDX-License-Identifier: Apache-2.0
"""One-line bars of items. When room is short the least important are dropped; some items can be clicked."""

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
from nettop.widgets.themes import Background, Role, style

ALWAYS_SHOWN = 1000
"""The importance of an item that is never dropped."""


class Span(NamedTuple):
    """A text and its role."""

    text: str
    role: Role = Role.TEXT


@dataclass(frozen=True, slots=True)
class BarItem:
    """Spans that are shown or dropped together.

    `action` is run on a click; an item `beside` the previous one has the smallest gap before it.
    """

    spans: tuple[Span, ...]
    importance: int = ALWAYS_SHOWN
    action: str = ""
    beside: bool = False

    @property
    def width(self) -> int:
        """Width in cells."""
        return sum(cell_len(span.text) for span in self.spans)


def item(
    *texts: tuple[str, Role] | str, importance: int = ALWAYS_SHOWN, action: str = "", beside: bool = False
) -> BarItem:
    """Return an item made of texts, or of texts with their roles."""
    spans = (Span(text) if isinstance(text, str) else Span(*text) for text in texts)
    return BarItem(tuple(spans), importance, action, beside)


def fits(left: Sequence[BarItem], right: Sequence[BarItem], width: int, gap: int) -> bool:
    """Return whether all items fit in a line of `width` cells."""
    return _width_of(left, right, gap) <= width


def drop_items(
    left: Sequence[BarItem], right: Sequence[BarItem], width: int, gap: int
) -> tuple[Sequence[BarItem], Sequence[BarItem]]:
    """Return the items that fit in `width` cells: drop the least important first, the right-most of equals."""
    while (items := [*left, *right]) and not fits(left, right, width, gap):
        weakest = min(reversed(items), key=attrgetter("importance"))
        if weakest.importance >= ALWAYS_SHOWN:
            break
        left, right = ([kept for kept in end if kept is not weakest] for end in (left, right))
    return left, right


def _gaps(items: Sequence[BarItem], gap: int) -> list[int]:
    """Return the number of blank cells before each item."""
    return [0 if n == 0 else min(1, gap) if shown.beside else gap for n, shown in enumerate(items)]


def _width_of(left: Sequence[BarItem], right: Sequence[BarItem], gap: int) -> int:
    """Return the width of the items in cells, with a cell before the left ones and two before the right ones."""
    gaps = sum(_gaps(left, gap)) + sum(_gaps(right, gap))
    return 1 + sum(shown.width for shown in (*left, *right)) + gaps + (2 if right else 0)


class Bar(Lines):
    """A line of items at its left and right ends. Never wraps."""

    DEFAULT_CSS = "Bar { height: 1; }"

    @dataclass
    class Pressed(Message):
        """A click on an item with an action."""

        action: str

    def __init__(self, ground: Background = Background.SCREEN, gap: int = 3, id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id)
        self._ground = ground
        self._gap = gap
        self._left: tuple[BarItem, ...] = ()
        self._right: tuple[BarItem, ...] = ()
        self._actions: list[tuple[int, int, str]] = []

    def show(self, left: Sequence[BarItem], right: Sequence[BarItem] = ()) -> None:
        """Replace the items, leaving out empty ones; redraw only if they changed."""
        shown = (tuple(each for each in left if each.spans), tuple(each for each in right if each.spans))
        if shown != (self._left, self._right):
            self._left, self._right = shown
            self.redraw()

    @property
    def text(self) -> str:
        """The text currently shown."""
        return self._strip(self.size.width).text

    def strips(self, size: Size) -> list[Strip]:
        """Return the line."""
        return [self._strip(size.width)] * size.height

    def _strip(self, width: int) -> Strip:
        blank = style(self.app.theme, Role.TEXT, self._ground)
        segments: list[Segment] = []
        self._actions = []
        used = 0
        for text, role, action in self._flow(*drop_items(self._left, self._right, width, self._gap)):
            segments.append(Segment(text, style(self.app.theme, role, self._ground)))
            if action:
                self._actions.append((used, used + cell_len(text), action))
            used += cell_len(text)
        segments.append(Segment(" " * max(0, width - used), blank))
        return Strip(segments, max(width, used)).crop(0, width)

    def _flow(self, left: Sequence[BarItem], right: Sequence[BarItem]) -> Iterator[tuple[str, Role, str]]:
        between = self.size.width - _width_of(left, right, self._gap) + (1 if right else 0)
        for blank, items in ((1, left), (between, right)):
            yield " " * max(0, blank), Role.TEXT, ""
            for shown, gap in zip(items, _gaps(items, self._gap), strict=True):
                yield " " * gap, Role.TEXT, ""
                yield from ((span.text, span.role, shown.action) for span in shown.spans)

    def on_click(self, event: events.Click) -> None:
        """Run the action of the clicked item."""
        for start, end, action in self._actions:
            if start <= event.x < end:
                self.post_message(self.Pressed(action))
