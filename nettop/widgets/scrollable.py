# SPDX-License-Identifier: Apache-2.0
"""Widgets that scroll their lines themselves."""

from __future__ import annotations

from rich.segment import Segment
from rich.style import Style
from textual import events
from textual.strip import Strip

from nettop.widgets.lines import Lines

THUMB = "▐"
"""The scroll bar's thumb, drawn over the last cell of some lines."""
_STEP = 3


def thumb(lines: int, page: int, top: int) -> range:
    """Return the lines of a page that show the scroll bar's thumb; none if all lines fit."""
    if lines <= page:
        return range(0)
    length = max(1, page * page // lines)
    first = (page - length) * top // (lines - page)
    return range(first, first + length)


def with_thumb(strip: Strip, bar: Style) -> Strip:
    """Return the strip with a part of the scroll bar over its last cell."""
    return Strip.join([strip.crop(0, strip.cell_length - 1), Strip([Segment(THUMB, bar)], 1)])


class Scrollable(Lines):
    """A widget that scrolls its own lines."""

    def scroll_by(self, step: int) -> None:
        """Scroll by `step` lines, within bounds."""
        raise NotImplementedError

    def on_mouse_scroll_down(self, event: events.MouseScrollDown) -> None:
        """Scroll down."""
        event.stop()
        self.scroll_by(_STEP)

    def on_mouse_scroll_up(self, event: events.MouseScrollUp) -> None:
        """Scroll up."""
        event.stop()
        self.scroll_by(-_STEP)
