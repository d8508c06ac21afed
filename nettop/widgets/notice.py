# SPDX-License-Identifier: Apache-2.0
"""A centred notice in place of the content: attaching, why a lens failed, terminal too small."""

from __future__ import annotations

from collections.abc import Sequence

from rich.cells import cell_len
from rich.segment import Segment
from textual.strip import Strip
from textual.widget import Widget

from nettop.widgets.bar import Span
from nettop.widgets.page import wrapped
from nettop.widgets.themes import Role, style

_WIDEST = 72


class Notice(Widget):
    """Wrapped and centred texts."""

    ALLOW_SELECT = False

    def __init__(self, id: str | None = None) -> None:  # noqa: A002 - Textual's name
        super().__init__(id=id)
        self._texts: tuple[Span, ...] = ()

    def show(self, texts: Sequence[Span]) -> None:
        """Show each text as a paragraph."""
        if tuple(texts) != self._texts:
            self._texts = tuple(texts)
            self.refresh()

    @property
    def text(self) -> str:
        """The text shown, without line breaks."""
        return " ".join(span.text for span in self._texts)

    def render_line(self, y: int) -> Strip:
        """Return a line of the centred text, or an empty one."""
        blank = style(self.app.theme, Role.TEXT)
        width = self.size.width
        widest = max(1, min(_WIDEST, width - 2))
        lines = [line for span in self._texts for line in wrapped(span.text, widest, span.role)]
        at = y - max(0, (self.size.height - len(lines)) // 2)
        if not 0 <= at < len(lines):
            return Strip.blank(width, blank)
        text, role = lines[at][0]
        before = max(0, (width - cell_len(text)) // 2)
        margins = [Segment(" " * cells, blank) for cells in (before, max(0, width - before - cell_len(text)))]
        return Strip([margins[0], Segment(text, style(self.app.theme, role)), margins[1]]).crop(0, width)
