# SPDX-License-Identifier: Apache-2.0
"""Widgets drawn line by line. Unchanged lines are not redrawn."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from rich.cells import cell_len
from rich.segment import Segment
from textual import events
from textual.geometry import Region, Size
from textual.message import Message
from textual.strip import Strip
from textual.widget import Widget

from nettop.widgets.text import Line, TextSpan
from nettop.widgets.themes import Background, Role, frame_style, style

THUMB = "▐"
"""The scroll bar's thumb, drawn over the last cell of some lines."""
_SCROLL_STEP = 3


class Lines(Widget):
    """A widget drawn line by line. Subclasses implement `strips`, and call `redraw` when it may have changed."""

    @dataclass
    class Pressed(Message):
        """A click on a span with an action."""

        action: str

    ALLOW_SELECT = False
    _made: Sequence[Strip] = ()
    _made_for: tuple[object, ...] = ()
    _clickable: Mapping[int, Line] = MappingProxyType({})

    def strips(self, size: Size) -> list[Strip]:
        """Return all lines in their current state."""
        raise NotImplementedError

    @property
    def text(self) -> str:
        """The lines that are shown, without styles."""
        return "\n".join(strip.text for strip in self.strips(self.size))

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

    def strip(
        self, line: Iterable[TextSpan], width: int, background: Background = Background.SCREEN
    ) -> Strip:
        """Return a line in exactly `width` cells, on this background."""
        theme, segments = self.app.theme, []
        for text, role, own_background, _, letter, shade in line:
            in_frame = frame_style(theme, letter, shade, role) if letter else None
            segments.append(Segment(text, in_frame or style(theme, role, own_background or background)))
        used = sum(segment.cell_length for segment in segments)
        if used < width:
            segments.append(Segment(" " * (width - used), style(theme, Role.TEXT, background)))
        return Strip(segments, max(used, width)).crop(0, width)

    def clickable(self, line: Iterable[TextSpan], y: int = 0) -> Line:
        """Return a line after recording its actions for clicks."""
        self._clickable = {**self._clickable, y: (spans := tuple(line))}
        return spans

    def on_click(self, event: events.Click) -> None:
        """Report the action of the clicked span."""
        end = 0
        for span in self._clickable.get(event.y, ()):
            end += cell_len(span.text)
            if event.x < end:
                if span.action:
                    self.post_message(self.Pressed(span.action))
                return

    def render_lines(self, crop: Region) -> list[Strip]:
        """Return the lines. Skip Textual's handling of borders, padding and tints: there are none."""
        size = self.size
        surroundings = self._surroundings(size)
        if surroundings != self._made_for:
            self._made, self._made_for = self.strips(size), surroundings
        strips, (_, background) = self._made[crop.y : crop.bottom], self.background_colors
        for line_filter in self.get_line_filters():
            strips = [strip.apply_filter(line_filter, background) for strip in strips]
        first, last = crop.column_span
        return [strip if (first, last) == (0, size.width) else strip.crop(first, last) for strip in strips]

    def render_line(self, y: int) -> Strip:
        """Return a single line."""
        return self._made[y]

    def _surroundings(self, size: Size) -> tuple[object, ...]:
        """Return the state, besides the content, that affects every line."""
        return size, self.app.theme, self.has_focus


class Drawing(Lines):
    """The lines that a function returns for the widget's size."""

    _draw: Callable[[Size], Sequence[Line]] = staticmethod(lambda _: ())

    def show(self, draw: Callable[[Size], Sequence[Line]]) -> None:
        """Replace the function, and redraw."""
        self._draw = draw
        self.redraw()

    def strips(self, size: Size) -> list[Strip]:
        """Return the lines that fit, then blank ones."""
        lines = [*self._draw(size), *[()] * size.height][: size.height]
        return [self.strip(line, size.width) for line in lines]


class Scrollable(Lines):
    """A widget that draws only the visible ones of its rows. `top` is the first visible row."""

    top = 0

    @property
    def row_count(self) -> int:
        """Number of rows, visible or not."""
        raise NotImplementedError

    @property
    def page(self) -> int:
        """Number of rows that fit."""
        return max(1, self.size.height)

    def scroll_by(self, step: int) -> None:
        """Scroll by `step` rows, within bounds."""
        self.top = self.bounded(self.top + step)
        self.redraw()

    def bounded(self, top: int) -> int:
        """Return the nearest first row that leaves no room below the last one."""
        return max(0, min(top, self.row_count - self.page))

    def thumb(self) -> range:
        """Return the lines of the page that show the scroll bar's thumb; none if all rows fit."""
        if self.row_count <= self.page:
            return range(0)
        length = max(1, self.page * self.page // self.row_count)
        first = (self.page - length) * self.top // (self.row_count - self.page)
        return range(first, first + length)

    def with_thumb(
        self,
        strip: Strip,
        role: Role = Role.FAINT,
        background: Background = Background.SCREEN,
        mark: str = THUMB,
    ) -> Strip:
        """Return the strip with a part of the scroll bar over its last cell."""
        bar = Segment(mark, style(self.app.theme, role, background))
        return Strip.join([strip.crop(0, strip.cell_length - 1), Strip([bar], 1)])

    def on_mouse_scroll_down(self, event: events.MouseScrollDown) -> None:
        """Scroll down."""
        event.stop()
        self.scroll_by(_SCROLL_STEP)

    def on_mouse_scroll_up(self, event: events.MouseScrollUp) -> None:
        """Scroll up."""
        event.stop()
        self.scroll_by(-_SCROLL_STEP)
