# SPDX-License-Identifier: Apache-2.0
"""Widgets drawn line by line. Unchanged lines are not redrawn."""

from __future__ import annotations

from textual.geometry import Region, Size
from textual.strip import Strip
from textual.widget import Widget


class Lines(Widget):
    """A widget drawn line by line. Subclasses implement `strips`, and call `redraw` when it may have changed."""

    ALLOW_SELECT = False

    def __init__(self, id: str | None = None) -> None:  # noqa: A002 - Textual's name
        super().__init__(id=id)
        self._made: list[Strip] = []
        self._made_for: tuple[object, ...] = ()

    def strips(self, size: Size) -> list[Strip]:
        """Return all lines in their current state."""
        raise NotImplementedError

    def redraw(self) -> None:
        """Redraw the changed lines. Without a size, leave all of them to the next refresh."""
        size, before = self.size, self._made
        if not size or self._made_for != self._surroundings(size):
            self._made_for = ()
            self.refresh()
            return
        # Reusing the strip object keeps Textual's cache for it.
        self._made = [was if was == now else now for was, now in zip(before, self.strips(size), strict=True)]
        changed = [y for y, (was, now) in enumerate(zip(before, self._made, strict=True)) if was is not now]
        if changed:
            self.refresh(*(Region(0, y, size.width, 1) for y in changed))

    def render_lines(self, crop: Region) -> list[Strip]:
        """Return the lines. Skip Textual's handling of borders, padding and tints: there are none."""
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
        """Return a single line."""
        return self._made[y]

    def _surroundings(self, size: Size) -> tuple[object, ...]:
        """Return the state, besides the content, that affects every line."""
        return size, self.app.theme, self.has_focus
