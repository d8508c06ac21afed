# SPDX-License-Identifier: Apache-2.0
"""The filter box: its text is checked at each key, and applied with Enter if it is valid."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import ClassVar

from rich.cells import cell_len
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.widgets import Input

from nettop.errors import FilterError, UsageError
from nettop.widgets.bar import Bar, BarItem, item
from nettop.widgets.themes import Background, Role

_TEXT_AT = 2
"""Offset in cells of the upper line's text from the lower line's."""


class FilterBox(Vertical):
    """An input line, and below it the effect of its text.

    `check` returns the effect in words, and raises UsageError for an invalid text. `leave` closes the box: with a valid
    text after Enter, with None after Esc.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "apply", "apply", show=False, priority=True),
        Binding("escape", "leave", "leave", show=False),
    ]

    def __init__(
        self,
        check: Callable[[str], str],
        leave: Callable[[str | None], Awaitable[None]],
        text: str,
        example: str,
        prompt: str,
    ) -> None:
        super().__init__(id="filter-box")
        self._check, self._leave = check, leave
        self.input = Input(text, placeholder=example, compact=True, select_on_focus=False)
        self._prompt = Bar(Background.PANEL, id="filter-prompt")
        self._prompt.show([item((prompt, Role.KEY))])
        self._effect = Bar(Background.PANEL, id="filter-effect")

    def compose(self) -> ComposeResult:
        """Yield the two lines."""
        with Horizontal():
            yield self._prompt
            yield self.input
        yield self._effect

    def on_mount(self) -> None:
        """Show the effect of the initial text."""
        self.check(self.input.value)

    def check(self, text: str) -> bool:
        """Show the effect of a text; return False if it is invalid."""
        try:
            self._effect.show([item((self._check(text), Role.DIM))])
        except UsageError as error:
            self._effect.show([self._pointed(error) or _problem(error.what, error.remedy)])
            return False
        return True

    def on_input_changed(self, event: Input.Changed) -> None:
        """Show the effect of the new text."""
        event.stop()
        self.check(event.value)

    async def action_apply(self) -> None:
        """Apply a valid text; keep the box open otherwise."""
        if self.check(self.input.value):
            await self._leave(self.input.value)

    async def action_leave(self) -> None:
        """Close without changing the filter."""
        await self._leave(None)

    @property
    def effect(self) -> str:
        """The text of the lower line."""
        return self._effect.text.strip()

    def _pointed(self, error: UsageError) -> BarItem | None:
        """Return the problem with its mark below the offending character, or None if there is no room for it."""
        if not isinstance(error, FilterError) or cell_len(error.text) >= self.input.size.width:
            return None
        place = _TEXT_AT + cell_len(error.text[: error.at])
        problem = _problem(error.reason, error.remedy)
        if place + problem.width < self.size.width:
            return item((" " * place, Role.TEXT), *problem.spans)
        mark, *words = problem.spans
        blank = place - problem.width + 1
        return None if blank < 0 else item((" " * blank, Role.TEXT), *words, (" ▲", mark.role))


def _problem(what: str, remedy: str) -> BarItem:
    return item(("▲ ", Role.BAD), (what, Role.BAD), (f" · {remedy}" if remedy else "", Role.TEXT))
