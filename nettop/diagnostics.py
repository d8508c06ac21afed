# SPDX-License-Identifier: Apache-2.0
"""Messages to the user on standard error, and on a terminal a line below them."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from typing import TextIO

from nettop.snapshots.safe_text import safe_text
from nettop.writing import has_room

_WAIT_MS = 1000
"""Milliseconds that a message waits for its reader."""
_CLEAR = "\r\x1b[K"
_BAR_CELLS = 24


class Diagnostics:
    """A writer of messages, one per line and safe to show. Without a stream, or if it is closed, it is a no-op.

    A terminal that does not read must not block the exit, so messages without room are dropped and counted.
    """

    def __init__(self, stderr: TextIO | None) -> None:
        self._stderr = stderr
        self._remarks: list[str] = []
        self._left_out = 0

    def __call__(self, message: str) -> None:
        """Write the message."""
        self._write(safe_text(message))

    def report_lines(self, text: str) -> None:
        """Write a text of several lines, such as a traceback."""
        self._write("\n".join(map(safe_text, text.splitlines())))

    def _write(self, text: str) -> None:
        if self._stderr is None:
            return
        if not _has_room(self._stderr, 0 if self._left_out else _WAIT_MS):
            self._left_out += 1
            return
        left_out = (
            f"nettop: {self._left_out} messages dropped because nobody read them\n" if self._left_out else ""
        )
        self._left_out = 0
        with suppress(OSError):
            self._stderr.write(f"{left_out}nettop: {text}\n")
            self._stderr.flush()

    def report_new(self, remarks: Iterable[str]) -> None:
        """Write the remarks that were not in the previous call."""
        before, self._remarks = self._remarks, list(remarks)
        for remark in self._remarks:
            if remark not in before:
                self(remark)


class StatusLine:
    """Messages on standard error, and on a terminal the line below them."""

    def __init__(self, stderr: TextIO | None) -> None:
        self._terminal = stderr if stderr is not None and stderr.isatty() else None
        self._report = Diagnostics(stderr)
        self._shown = ""

    @property
    def is_shown(self) -> bool:
        """Whether there is a terminal for the line."""
        return self._terminal is not None

    def show(self, text: str, done: float | None = None) -> None:
        """Replace the line; `done` is the share of long work, from 0 to 1, for a bar before the text. Do nothing
        without a terminal, or if it does not read.
        """
        if not self.is_shown:
            return
        if done is not None:
            full = round(min(done, 1.0) * _BAR_CELLS)
            text = f"{'█' * full}{'░' * (_BAR_CELLS - full)} {text}"
        if text != self._shown:
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


def _has_room(stream: TextIO, wait_ms: int) -> bool:
    try:
        descriptor = stream.fileno()
    except OSError:  # an in-memory stream
        return True
    return has_room(descriptor, wait_ms)
