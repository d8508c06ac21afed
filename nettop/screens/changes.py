# SPDX-License-Identifier: Apache-2.0
"""The list of changes between two spans of recordings; → opens the rows of one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType

from nettop.screens.actions import MOVES
from nettop.screens.terminal_app import TerminalApp
from nettop.snapshots.schema import Certainty
from nettop.widgets.bar import Bar, item
from nettop.widgets.page import Page
from nettop.widgets.text import Line, Span, wrapped
from nettop.widgets.themes import Background, Role

if TYPE_CHECKING:
    from nettop.recording.diff import Change

_KEYS = {"→": "rows at that time", "↑ ↓": "select", "q": "quit"}
_ROLES = {Certainty.CERTAIN: Role.BOLD, Certainty.LIKELY: Role.TEXT, Certainty.POSSIBLE: Role.DIM}
_INDENT = 4


class ChangesApp(TerminalApp, inherit_bindings=False):
    """The changes, one of which is selected. After the app has ended, `chosen` is the one to open; None to quit."""

    BINDINGS: ClassVar[list[BindingType]] = [
        *MOVES,
        Binding("right,enter", "choose", show=False),
        Binding("q,escape", "interrupt", show=False),
        Binding("ctrl+c", "interrupt", show=False, priority=True),
        Binding("ctrl+z", "suspend_process", show=False, priority=True),
    ]

    def __init__(self, changes: Sequence[Change], notes: Sequence[str], theme: str, selected: int) -> None:
        super().__init__(theme)
        self.selected = selected
        self.chosen: int | None = None
        self._changes = changes
        self._notes = notes
        self._page = Page(id="page")

    def compose(self) -> ComposeResult:
        """Yield the sentences, and the keys."""
        keys = Bar(Background.PANEL)
        keys.show([item((key, Role.KEY), (f" {effect}", Role.DIM)) for key, effect in _KEYS.items()])
        yield from (self._page, keys)

    def on_resize(self) -> None:
        """Wrap the sentences for the new width."""
        self.call_after_refresh(self._draw)

    def action_move(self, step: int) -> None:
        """Select another change."""
        self.selected = max(0, min(self.selected + step, len(self._changes) - 1))
        self._draw()

    def action_choose(self) -> None:
        """End, to open the selected change."""
        self.chosen = self.selected
        self.exit()

    def _draw(self) -> None:
        lines: list[Line] = []
        first, width = 0, self._page.size.width - 2
        for at, change in enumerate(self._changes):
            sentence = wrapped(
                f"{change.certainty.value}: {change.sentence}",
                width,
                _ROLES[change.certainty],
                indent=_INDENT,
            )
            mark = "▸" if at == self.selected else " "
            first = len(lines) if at == self.selected else first
            number = Span(f"{mark}{at + 1:>{_INDENT - 2}} ", Role.KEY if at == self.selected else Role.DIM)
            lines += [(number, sentence[0][0]._replace(text=sentence[0][0].text[_INDENT:])), *sentence[1:]]
        for note in self._notes:
            lines += wrapped(note, width, Role.DIM, indent=_INDENT)
        self._page.show(lines, first)
