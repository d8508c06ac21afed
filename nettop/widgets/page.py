# SPDX-License-Identifier: Apache-2.0
"""Scrollable lines of text: the details pane, the help, the palette's matches."""

from __future__ import annotations

from collections.abc import Sequence

from rich.cells import cell_len
from rich.segment import Segment
from textual.geometry import Size
from textual.strip import Strip

from nettop.widgets.bar import Span
from nettop.widgets.scrollable import THUMB, Scrollable, thumb
from nettop.widgets.themes import Background, Role, style

Line = tuple[Span, ...]


class Page(Scrollable, can_focus=True):
    """Lines on the panel's background; `top` is the first visible one, `chosen` is highlighted."""

    def __init__(self, id: str | None = None) -> None:  # noqa: A002 - Textual's name
        super().__init__(id=id)
        self.lines: tuple[Line, ...] = ()
        self.top = 0
        self.chosen: int | None = None

    def show(self, lines: Sequence[Line], chosen: int | None = None) -> None:
        """Replace the lines; scroll only as far as needed to show `chosen`."""
        self.lines = tuple(lines)
        self.chosen = chosen
        if chosen is not None:
            self.top = min(max(self.top, chosen - self.size.height + 1), chosen)
        self.scroll_by(0)

    def scroll_by(self, step: int) -> None:
        """Scroll by `step` lines, within bounds."""
        self.top = max(0, min(self.top + step, len(self.lines) - max(1, self.size.height)))
        self.redraw()

    @property
    def text(self) -> str:
        """All lines, visible or not."""
        return "\n".join("".join(span.text for span in line) for line in self.lines)

    def strips(self, size: Size) -> list[Strip]:
        """Return the visible lines, with the scroll bar in the last cell."""
        return [self._strip(y, size.width) for y in range(size.height)]

    def _strip(self, y: int, width: int) -> Strip:
        at = self.top + y
        ground = Background.BAND if at == self.chosen else Background.PANEL
        line = self.lines[at] if at < len(self.lines) else ()
        segments = [Segment(" ", style(self.app.theme, Role.TEXT, ground))]
        segments += [Segment(span.text, style(self.app.theme, span.role, ground)) for span in line]
        used = 1 + sum(cell_len(span.text) for span in line)
        segments.append(Segment(" " * max(0, width - used), style(self.app.theme, Role.TEXT, ground)))
        mark = THUMB if y in thumb(len(self.lines), self.size.height, self.top) else " "
        role = Role.KEY if self.has_focus else Role.FAINT
        last = Strip([Segment(mark, style(self.app.theme, role, ground))], 1)
        return Strip.join([Strip(segments, max(width, used)).crop(0, width - 1), last])

    def on_resize(self) -> None:
        """Keep the scroll position within bounds."""
        self.scroll_by(0)


def wrapped(text: str, width: int, role: Role, indent: int = 0) -> list[Line]:
    """Wrap the text between words into lines of at most `width` cells."""
    lines: list[str] = []
    line = ""
    for word in text.split():
        if line and cell_len(line) + 1 + cell_len(word) > width - indent:
            lines.append(line)
            line = ""
        line = f"{line} {word}" if line else word
    return [(Span(" " * indent + full, role),) for full in (*lines, line) if full]
