# SPDX-License-Identifier: Apache-2.0
"""What a person should know beside the data, on standard error."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from typing import TextIO

from nettop.snapshots.safe_text import safe_text


class Diagnostics:
    """Writes messages as lines of their own, safe to show; without a stream, or when it has closed, does nothing."""

    def __init__(self, stderr: TextIO | None) -> None:
        self._stderr = stderr
        self._remarks: list[str] = []

    def __call__(self, message: str) -> None:
        """Write the message."""
        if self._stderr is not None:
            with suppress(OSError):
                self._stderr.write(f"nettop: {safe_text(message)}\n")
                self._stderr.flush()

    def report_new(self, remarks: Iterable[str]) -> None:
        """Write those of the remarks that were not among the last ones."""
        before, self._remarks = self._remarks, list(remarks)
        for remark in self._remarks:
            if remark not in before:
                self(remark)
