# SPDX-License-Identifier: Apache-2.0
"""Texts: scrollable lines (the details, the help, the palette's matches), and a notice in place of the content."""

from __future__ import annotations

from collections.abc import Sequence

from textual.geometry import Size
from textual.strip import Strip

from nettop.widgets.lines import THUMB, Drawing, Scrollable
from nettop.widgets.text import Line, TextSpan, width_of, wrapped
from nettop.widgets.themes import Background, Role

_WIDEST_NOTICE = 72


class Page(Scrollable, can_focus=True):
    """Lines on the panel's background; `chosen` is highlighted."""

    lines: tuple[Line, ...] = ()
    chosen: int | None = None

    def show(self, lines: Sequence[Line], chosen: int | None = None, follows: int = 0) -> None:
        """Replace the lines; scroll only as far as needed to show `chosen` and, if they fit, so many that follow it."""
        self.lines = tuple(lines)
        self.chosen = chosen
        if chosen is not None:
            self.top = min(max(self.top, chosen + follows - self.size.height + 1), chosen)
        self.scroll_by(0)

    @property
    def row_count(self) -> int:
        """Number of lines."""
        return len(self.lines)

    @property
    def text(self) -> str:
        """All lines, visible or not."""
        return "\n".join("".join(span.text for span in line) for line in self.lines)

    def strips(self, size: Size) -> list[Strip]:
        """Return the visible lines, with the scroll bar in the last cell."""
        return [self._strip(y, size.width) for y in range(size.height)]

    def _strip(self, y: int, width: int) -> Strip:
        at = self.top + y
        background = Background.BAND if at == self.chosen else Background.PANEL
        line = self.lines[at] if at < len(self.lines) else ()
        strip = self.strip([TextSpan(" "), *line], width, background)
        role = Role.KEY if self.has_focus else Role.FAINT
        return self.with_thumb(strip, role, background, THUMB if y in self.thumb() else " ")

    def on_resize(self) -> None:
        """Keep the scroll position within bounds."""
        self.scroll_by(0)


class Notice(Drawing):
    """A centred notice: attaching, why a lens failed, terminal too small."""

    text = ""
    """The text shown, without line breaks."""

    def notify_of(self, *texts: TextSpan) -> None:
        """Show each text as a paragraph."""
        self.text = " ".join(span.text for span in texts)
        self.show(lambda size: _centred(texts, size))


def _centred(texts: Sequence[TextSpan], size: Size) -> list[Line]:
    """Return texts, wrapped and in the middle of the lines."""
    widest = max(1, min(_WIDEST_NOTICE, size.width - 2))
    lines = [line for span in texts for line in wrapped(span.text, widest, span.role)]
    above = max(0, (size.height - len(lines)) // 2)
    return [()] * above + [(TextSpan(" " * ((size.width - width_of(line)) // 2)), *line) for line in lines]
