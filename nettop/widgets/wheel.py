# SPDX-License-Identifier: Apache-2.0
"""Widgets that move their own lines by the mouse's wheel."""

from __future__ import annotations

from textual import events

from nettop.widgets.lines import Lines

_STEP = 3


class Wheeled(Lines):
    """A widget with lines of its own to scroll."""

    def scroll_by(self, step: int) -> None:
        """Move by `step` lines, as far as there are any."""
        raise NotImplementedError

    def on_mouse_scroll_down(self, event: events.MouseScrollDown) -> None:
        """Further down."""
        event.stop()
        self.scroll_by(_STEP)

    def on_mouse_scroll_up(self, event: events.MouseScrollUp) -> None:
        """Back up."""
        event.stop()
        self.scroll_by(-_STEP)
