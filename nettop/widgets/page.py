# SPDX-License-Identifier: Apache-2.0
"""Lines of text that scroll: the pane of details, the help, the palette's matches."""

from __future__ import annotations

from collections.abc import Sequence

from rich.cells import cell_len
from rich.segment import Segment
from textual.geometry import Size
from textual.strip import Strip

from nettop.widgets.bar import Piece
from nettop.widgets.themes import Ground, Role, style
from nettop.widgets.wheel import Wheeled

Line = tuple[Piece, ...]
PLACE = "▐"


class Page(Wheeled, can_focus=True):
    """Lines on the panel's ground; `top` is the first one in sight, `chosen` stands on the band."""

    def __init__(self, id: str | None = None) -> None:  # noqa: A002 - Textual's word
        super().__init__(id=id)
        self.lines: tuple[Line, ...] = ()
        self.top = 0
        self.chosen: int | None = None

    def show(self, lines: Sequence[Line], chosen: int | None = None) -> None:
        """Show these lines; what is in sight stays as far as there are lines."""
        self.lines = tuple(lines)
        self.chosen = chosen
        if chosen is not None:
            self.top = min(max(self.top, chosen - self.size.height + 1), chosen)
        self.scroll_by(0)

    def scroll_by(self, step: int) -> None:
        """Move by `step` lines, as far as there are any."""
        self.top = max(0, min(self.top + step, len(self.lines) - max(1, self.size.height)))
        self.redraw()

    @property
    def text(self) -> str:
        """All lines, in sight or not."""
        return "\n".join("".join(piece.text for piece in line) for line in self.lines)

    def strips(self, size: Size) -> list[Strip]:
        """The lines in sight, with the mark of the place in their last cell."""
        return [self._strip(y, size.width) for y in range(size.height)]

    def _strip(self, y: int, width: int) -> Strip:
        at = self.top + y
        ground = Ground.BAND if at == self.chosen else Ground.PANEL
        line = self.lines[at] if at < len(self.lines) else ()
        segments = [Segment(" ", style(self.app.theme, Role.TEXT, ground))]
        segments += [Segment(piece.text, style(self.app.theme, piece.role, ground)) for piece in line]
        used = 1 + sum(cell_len(piece.text) for piece in line)
        segments.append(Segment(" " * max(0, width - used), style(self.app.theme, Role.TEXT, ground)))
        mark = PLACE if self._is_marked(y) else " "
        role = Role.KEY if self.has_focus else Role.FAINT
        last = Strip([Segment(mark, style(self.app.theme, role, ground))], 1)
        return Strip.join([Strip(segments, max(width, used)).crop(0, width - 1), last])

    def _is_marked(self, y: int) -> bool:
        lines, page = len(self.lines), self.size.height
        if lines <= page:
            return False
        length = max(1, page * page // lines)
        first = (page - length) * self.top // (lines - page)
        return first <= y < first + length

    def on_resize(self) -> None:
        """There may be room for lines further up now."""
        self.scroll_by(0)


def wrapped(text: str, width: int, role: Role, indent: int = 0) -> list[Line]:
    """The text in lines of at most `width` cells, broken between words."""
    lines: list[str] = []
    line = ""
    for word in text.split():
        if line and cell_len(line) + 1 + cell_len(word) > width - indent:
            lines.append(line)
            line = ""
        line = f"{line} {word}" if line else word
    return [(Piece(" " * indent + one, role),) for one in (*lines, line) if one]
