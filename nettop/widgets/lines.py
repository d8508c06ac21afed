# SPDX-License-Identifier: Apache-2.0
"""Widgets of lines: a line that has not changed is not drawn again."""

from __future__ import annotations

from textual.geometry import Region, Size
from textual.strip import Strip
from textual.widget import Widget


class Lines(Widget):
    """A widget drawn line by line. Subclasses give `strips`, and call `redraw` when they may have changed."""

    ALLOW_SELECT = False

    def __init__(self, id: str | None = None) -> None:  # noqa: A002 - Textual's word
        super().__init__(id=id)
        self._made: list[Strip] = []
        self._made_for: tuple[object, ...] = ()

    def strips(self, size: Size) -> list[Strip]:
        """All lines as they look now."""
        raise NotImplementedError

    def redraw(self) -> None:
        """Draw the lines that have changed; all of them, later, while the widget has no size."""
        size, before = self.size, self._made
        if not size or self._made_for != self._surroundings(size):
            self._made_for = ()
            self.refresh()
            return
        # An unchanged strip object keeps what Textual has cached for it.
        self._made = [was if was == now else now for was, now in zip(before, self.strips(size), strict=True)]
        changed = [y for y, (was, now) in enumerate(zip(before, self._made, strict=True)) if was is not now]
        if changed:
            self.refresh(*(Region(0, y, size.width, 1) for y in changed))

    def render_lines(self, crop: Region) -> list[Strip]:
        """The lines for Textual, without the borders, padding and tints that it would handle: there are none."""
        size = self.size
        surroundings = self._surroundings(size)
        if surroundings != self._made_for:
            self._made, self._made_for = self.strips(size), surroundings
        strips, (_, ground) = self._made[crop.y : crop.bottom], self.background_colors
        for line_filter in self.get_line_filters():
            strips = [strip.apply_filter(line_filter, ground) for strip in strips]
        first, last = crop.column_span
        return strips if (first, last) == (0, size.width) else [strip.crop(first, last) for strip in strips]

    def render_line(self, y: int) -> Strip:
        """A single line."""
        return self._made[y]

    def _surroundings(self, size: Size) -> tuple[object, ...]:
        """Everything besides its content that changes all lines of a widget."""
        return size, self.app.theme, self.has_focus
