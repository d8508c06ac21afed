# SPDX-License-Identifier: Apache-2.0
"""Widgets that scroll their own lines."""

from __future__ import annotations

from textual import events

from nettop.widgets.lines import Lines

THUMB = "▐"
"""The scroll bar: drawn over the last cell of some lines."""
_STEP = 3


def thumb(lines: int, page: int, top: int) -> range:
    """The lines of a page that show the thumb of the scroll bar; none where all lines fit."""
    if lines <= page:
        return range(0)
    length = max(1, page * page // lines)
    first = (page - length) * top // (lines - page)
    return range(first, first + length)


class Scrollable(Lines):
    """A widget with lines of its own to scroll."""

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
