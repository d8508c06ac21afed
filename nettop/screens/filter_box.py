# SPDX-License-Identifier: Apache-2.0
"""The box in which a filter is typed: checked at each key, applied when it is right and Enter is pressed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.message import Message
from textual.widgets import Input

from nettop.errors import UsageError
from nettop.widgets.bar import Bar, part
from nettop.widgets.themes import Ground, Role

Check = Callable[[str], str]
"""Says what a text would do; raises UsageError in words when it would do nothing."""


_EXAMPLE = "words match anywhere · :443 · pid=1812 · rtt_us > 10ms"


class FilterBox(Vertical):
    """One line to type in, one that answers."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "leave", "leave", show=False)]

    @dataclass
    class Applied(Message):
        """Enter was pressed on a filter that is right."""

        text: str

    class Left(Message):
        """Esc was pressed: the filter stays as it was."""

    def __init__(self, check: Check, text: str = "", example: str = _EXAMPLE) -> None:
        super().__init__(id="filter-box")
        self._check = check
        self.input = Input(
            text,
            placeholder=example,
            compact=True,
            select_on_focus=False,
        )
        self._prompt = Bar(Ground.PANEL, id="filter-prompt")
        self._prompt.show([part(("/", Role.KEY))])
        self._answer = Bar(Ground.PANEL, id="filter-answer")

    def compose(self) -> ComposeResult:
        """The two lines."""
        with Horizontal():
            yield self._prompt
            yield self.input
        yield self._answer

    def on_mount(self) -> None:
        """Typing begins at once."""
        self.input.focus()
        self._say(self.input.value)

    def on_input_changed(self, event: Input.Changed) -> None:
        """Answer at each key."""
        event.stop()
        self._say(event.value)

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Hand over a filter that is right; one that is not stays in the box."""
        event.stop()
        if self._say(event.value):
            self.post_message(self.Applied(event.value))

    def action_leave(self) -> None:
        """Leave the filter as it was."""
        self.post_message(self.Left())

    @property
    def answer(self) -> str:
        """What the box says about its text."""
        return self._answer.text.strip()

    def _say(self, text: str) -> bool:
        try:
            self._answer.show([part((self._check(text), Role.DIM))])
        except UsageError as error:
            remedy = f" · {error.remedy}" if error.remedy else ""
            self._answer.show([part(("▲ ", Role.BAD), (error.what, Role.BAD), (remedy, Role.TEXT))])
            return False
        return True
