# SPDX-License-Identifier: Apache-2.0
"""The pane with the details of the selected row: its values, and the source's additions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

from textual.message import Message

from nettop.query.view import View
from nettop.widgets.bar import Span
from nettop.widgets.details import detail_lines
from nettop.widgets.page import Line, Page
from nettop.widgets.themes import Role

Describe = Callable[[], "Future[dict[str, str]] | None"]
"""Function that asks the source for further details; None if it has none."""


class RowDetails(Page):
    """The details of one row. It asks the source once per row, and keeps the answer until another row is shown."""

    @dataclass
    class Described(Message):
        """The source's answer: the details of a row."""

        key: int
        answer: Future[dict[str, str]]

    def __init__(self) -> None:
        super().__init__(id="details")
        self._key: int | None = None
        self._answer: Mapping[str, str] | str = ""

    def show_row(
        self, view: View, key: int, describe: Describe, *, explained: bool, more: Sequence[Line]
    ) -> None:
        """Show a row, then `more` lines."""
        if key != self._key:
            self._key, self._answer = key, {}
            answer = describe()
            if answer is not None:  # the source answers from another thread, by a message
                self._answer = "reading the details …"
                answer.add_done_callback(lambda done: self.post_message(self.Described(key, done)) and None)
        lines = detail_lines(view, key, self._answer, self.size.width - 2, explained=explained)
        self.show([*lines, *more])

    def show_no_row(self) -> None:
        """Show that no row is selected."""
        self.show([(Span("no row selected", Role.DIM),)])

    def forget(self) -> None:
        """Ask the source again when a row is shown next."""
        self._key = None

    def on_row_details_described(self, message: Described) -> None:
        """Keep the source's details if their row is still selected; the screen then draws them."""
        if message.key != self._key:
            message.stop()
            return
        error = message.answer.exception()
        remedy = getattr(error, "remedy", "")
        text = f"{error}: {remedy}" if remedy else str(error)
        self._answer = message.answer.result() if error is None else text
