# SPDX-License-Identifier: Apache-2.0
"""The list of changes between two spans of recordings; → opens the rows of one."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import TYPE_CHECKING, ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType

from nettop.screens.actions import MOVES
from nettop.screens.terminal_app import TerminalApp
from nettop.snapshots.schema import Certainty
from nettop.widgets.bar import Bar, item
from nettop.widgets.page import Page
from nettop.widgets.text import Line, TextSpan, wrapped
from nettop.widgets.themes import Background, Role

if TYPE_CHECKING:
    from nettop.recording.diff import Change

_KEYS = {"→": "rows at that time", "↑ ↓": "select", "q": "quit"}
_ROLES = {Certainty.CERTAIN: Role.BOLD, Certainty.LIKELY: Role.TEXT, Certainty.POSSIBLE: Role.DIM}
_INDENT = 4


class ChangesPage(Page):
    """The sentences of changes, one of which is selected, and notes."""

    def __init__(self, changes: Sequence[Change], notes: Sequence[str], selected: int) -> None:
        super().__init__(id="page")
        self.selected = selected
        self._changes = changes
        self._notes = notes

    def on_resize(self) -> None:
        """Wrap the sentences for the new width."""
        self.draw()

    def move(self, step: int) -> None:
        """Select another change."""
        self.selected = max(0, min(self.selected + step, len(self._changes) - 1))
        self.draw()

    def draw(self) -> None:
        """Show all of the selected sentence, and what follows the last one with it: no key selects notes."""
        width = self.size.width - 2
        sentences = [self._sentence(at, width) for at in range(len(self._changes))]
        notes = [line for note in self._notes for line in wrapped(note, width, Role.DIM, indent=_INDENT)]
        is_last = self.selected == len(self._changes) - 1
        follows = len(sentences[self.selected]) - 1 + (len(notes) if is_last else 0)
        first = sum(map(len, sentences[: self.selected]))
        self.show([*chain(*sentences), *notes], first, follows)

    def _sentence(self, at: int, width: int) -> list[Line]:
        """Return the lines of a change, with its number."""
        change = self._changes[at]
        text = f"{change.certainty.value}: {change.sentence}"
        (begin,), *rest = wrapped(text, width, _ROLES[change.certainty], indent=_INDENT)
        is_selected = at == self.selected
        number = f"{'▸' if is_selected else ' '}{at + 1:>{_INDENT - 2}} "
        mark = TextSpan(number, Role.KEY if is_selected else Role.DIM)
        return [(mark, begin._replace(text=begin.text[_INDENT:])), *rest]


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
        self.chosen: int | None = None
        self._page = ChangesPage(changes, notes, selected)

    def compose(self) -> ComposeResult:
        """Yield the sentences, and the keys."""
        keys = Bar(Background.PANEL)
        keys.show([item((key, Role.KEY), (f" {effect}", Role.DIM)) for key, effect in _KEYS.items()])
        yield from (self._page, keys)

    def action_move(self, step: int) -> None:
        """Select another change."""
        self._page.move(step)

    def action_choose(self) -> None:
        """End, to open the selected change."""
        self.chosen = self._page.selected
        self.exit()
