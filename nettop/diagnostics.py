# SPDX-License-Identifier: Apache-2.0
"""What a person should know beside the data, on standard error."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from typing import TextIO

from nettop.snapshots.safe_text import safe_text
from nettop.writing import has_room

_WAIT_MS = 1000
"""How long a message waits for whoever reads them."""


class Diagnostics:
    """Writes messages as lines of their own, safe to show; without a stream, or when it has closed, does nothing.

    A terminal that takes nothing keeps nobody from ending: what finds no room is left out and counted.
    """

    def __init__(self, stderr: TextIO | None) -> None:
        self._stderr = stderr
        self._remarks: list[str] = []
        self._left_out = 0

    def __call__(self, message: str) -> None:
        """Write the message."""
        self._write(safe_text(message))

    def report_lines(self, text: str) -> None:
        """Write a text whose lines stay lines, such as that of a bug with its traceback."""
        self._write("\n".join(map(safe_text, text.splitlines())))

    def _write(self, text: str) -> None:
        if self._stderr is None:
            return
        if not _has_room(self._stderr, 0 if self._left_out else _WAIT_MS):
            self._left_out += 1
            return
        left_out = (
            f"nettop: {self._left_out} messages left out, as nobody read them\n" if self._left_out else ""
        )
        self._left_out = 0
        with suppress(OSError):
            self._stderr.write(f"{left_out}nettop: {text}\n")
            self._stderr.flush()

    def report_new(self, remarks: Iterable[str]) -> None:
        """Write those of the remarks that were not among the last ones."""
        before, self._remarks = self._remarks, list(remarks)
        for remark in self._remarks:
            if remark not in before:
                self(remark)


def _has_room(stream: TextIO, wait_ms: int) -> bool:
    try:
        descriptor = stream.fileno()
    except OSError:  # no file, but text in memory
        return True
    return has_room(descriptor, wait_ms)
