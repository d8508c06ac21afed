# SPDX-License-Identifier: Apache-2.0
"""One-line bars of items. When room is short the least important are dropped; some items can be clicked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from operator import attrgetter

from textual.geometry import Size
from textual.strip import Strip

from nettop.widgets.lines import Lines
from nettop.widgets.text import Line, TextSpan, width_of
from nettop.widgets.themes import Background, Role

ALWAYS_SHOWN = 1000
"""The importance of an item that is never dropped."""


@dataclass(frozen=True, slots=True)
class BarItem:
    """Spans that are shown or dropped together. An item `beside` the previous one has the smallest gap before it."""

    spans: Line
    importance: int = ALWAYS_SHOWN
    beside: bool = False

    @property
    def width(self) -> int:
        """Width in cells."""
        return width_of(self.spans)


def item(
    *texts: TextSpan | tuple[str, Role] | str,
    importance: int = ALWAYS_SHOWN,
    action: str = "",
    beside: bool = False,
) -> BarItem:
    """Return an item made of texts, or of texts with their roles. A click on it runs `action`."""
    spans = (TextSpan(text) if isinstance(text, str) else TextSpan(*text[:2]) for text in texts)
    return BarItem(tuple(span._replace(action=action) for span in spans), importance, beside)


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

    def __init__(
        self,
        background: Background = Background.SCREEN,
        gap: int = 3,
        id: str | None = None,  # noqa: A002 - Textual's name
    ) -> None:
        super().__init__(id=id)
        self._line_background = background
        self._gap = gap
        self._items: tuple[list[BarItem], list[BarItem]] = ([], [])

    def show(self, left: Sequence[BarItem], right: Sequence[BarItem] = ()) -> None:
        """Replace the items, leaving out empty ones; redraw only if they changed."""
        shown = ([part for part in left if part.spans], [part for part in right if part.spans])
        if shown != self._items:
            self._items = shown
            self.redraw()

    def strips(self, size: Size) -> list[Strip]:
        """Return the line."""
        return [
            self.strip(self.clickable(self._spans(size.width)), size.width, self._line_background)
        ] * size.height

    def _spans(self, width: int) -> Iterator[TextSpan]:
        left, right = drop_items(*self._items, width, self._gap)
        between = width - _width_of(left, right, self._gap) + (1 if right else 0)
        for blank, items in ((1, left), (between, right)):
            yield TextSpan(" " * max(0, blank))
            for shown, gap in zip(items, _gaps(items, self._gap), strict=True):
                yield from (TextSpan(" " * gap), *shown.spans)
