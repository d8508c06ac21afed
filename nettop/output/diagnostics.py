# SPDX-License-Identifier: Apache-2.0
"""What a person should know beside the data, on standard error."""

from __future__ import annotations

from contextlib import suppress
from typing import TextIO

from nettop.snapshots.safe_text import safe_text


class Told:
    """Writes remarks as lines of their own; where nobody listens, nothing happens."""

    def __init__(self, stderr: TextIO | None) -> None:
        self._stderr = stderr

    def __call__(self, remark: str) -> None:
        """Say it."""
        if self._stderr is not None:
            with suppress(OSError):
                self._stderr.write(f"nettop: {safe_text(remark)}\n")
                self._stderr.flush()
