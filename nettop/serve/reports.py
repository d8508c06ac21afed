# SPDX-License-Identifier: Apache-2.0
"""What a server tells people: lines on standard error."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import TextIO

from nettop.snapshots.safe_text import safe_text


def reporter(stderr: TextIO | None) -> Callable[[str], None]:
    """Return what writes a report; without a stream, or when its terminal or reader has gone, it does nothing."""

    def report(text: str) -> None:
        if stderr is not None:
            lines = "\n".join(map(safe_text, text.splitlines()))  # a bug has a traceback
            with suppress(OSError):
                stderr.write(f"nettop: {lines}\n")
                stderr.flush()

    return report
