# SPDX-License-Identifier: Apache-2.0
"""Enter on standard input, and the reader of standard output going away."""

from __future__ import annotations

import os
import select
import termios
from typing import TextIO


class StandardStreams:
    """Which descriptors to wait for, and what it means that they are ready.

    Standard input is left alone while it is not ours to read: a terminal whose foreground is another job (reading
    would stop us), or one that a pager has in raw mode (reading would take its keys).
    """

    def __init__(self, stdin: TextIO | int | None, stdout: TextIO | int | None) -> None:
        self._stdin = _descriptor(stdin)
        self._stdout = _descriptor(stdout)

    def descriptors(self) -> dict[int, int]:
        """What to wait for, with the events of poll(2); to be called before each wait."""
        waited_for = {} if self._stdout is None else {self._stdout: 0}
        if self._stdin is not None and may_read(self._stdin):
            waited_for[self._stdin] = select.POLLIN
        return waited_for

    def entered(self, ready: dict[int, int]) -> bool:
        """Whether somebody pressed Enter; `ready` is what the wait returned.

        At its end standard input is given up. Raises BrokenPipeError once nobody reads standard output any more.
        """
        if self._stdout is not None and ready.get(self._stdout, 0) & (select.POLLERR | select.POLLHUP):
            raise BrokenPipeError
        # A pager, or another job, may have taken the terminal meanwhile.
        if self._stdin is None or self._stdin not in ready or not may_read(self._stdin):
            return False
        try:
            read = os.read(self._stdin, 65536)
        except OSError:
            read = b""
        if not read:
            self._stdin = None
        return b"\n" in read


def may_read(descriptor: int) -> bool:
    """False for a terminal that another job or a program in raw mode is reading."""
    try:
        canonical = termios.tcgetattr(descriptor)[3] & termios.ICANON
    except termios.error:
        return True  # no terminal
    try:
        return bool(canonical) and os.tcgetpgrp(descriptor) == os.getpgrp()
    except OSError:
        return bool(canonical)  # not the terminal that stops jobs


def _descriptor(stream: TextIO | int | None) -> int | None:
    """The descriptor behind a stream; None when it is closed or has none."""
    try:
        return stream if stream is None or isinstance(stream, int) else stream.fileno()
    except (OSError, ValueError):
        return None
