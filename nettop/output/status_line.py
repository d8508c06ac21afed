# SPDX-License-Identifier: Apache-2.0
"""A line at the bottom of a terminal that is rewritten while a command runs, and messages above it."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TextIO

from nettop.diagnostics import Diagnostics
from nettop.writing import has_room

_CLEAR = "\r\x1b[K"


class StatusLine:
    """Messages on standard error, and on a terminal the line below them."""

    def __init__(self, stderr: TextIO | None) -> None:
        self._terminal = stderr if stderr is not None and stderr.isatty() else None
        self._report = Diagnostics(stderr)
        self._shown = ""

    def show(self, text: str) -> None:
        """Replace the line. Do nothing without a terminal, or if it does not read."""
        if self._terminal is not None and text != self._shown:
            self._write(f"{_CLEAR}{text[: self._columns() - 1]}")
            self._shown = text

    def report(self, message: str) -> None:
        """Write a message, and remove the line until it is shown again."""
        if self._shown:
            self._write(_CLEAR)
            self._shown = ""
        self._report(message)

    def _columns(self) -> int:
        assert self._terminal is not None
        try:
            return os.get_terminal_size(self._terminal.fileno()).columns or 80
        except OSError:
            return 80

    def _write(self, text: str) -> None:
        assert self._terminal is not None
        with suppress(OSError):
            if has_room(self._terminal.fileno(), 0):
                self._terminal.write(text)
                self._terminal.flush()
