# SPDX-License-Identifier: Apache-2.0
"""Detection of Enter on standard input and of a closed standard output."""

from __future__ import annotations

import os
import select
import stat
import termios
from typing import TextIO


class StandardStreams:
    """The standard streams to wait for, and the meaning of their readiness.

    nettop reads standard input only if it is a terminal or a pipe: a file is meant for another program. It does not
    read a terminal with another foreground job (SIGTTIN would stop nettop), or in raw mode for a pager (nettop would
    take the pager's keys).
    """

    def __init__(self, stdin: TextIO | int | None, stdout: TextIO | int | None) -> None:
        self._stdin = _descriptor(stdin)
        if self._stdin is not None and not _is_dialogue(self._stdin):
            self._stdin = None
        self._stdout = _descriptor(stdout)

    def descriptors(self) -> dict[int, int]:
        """Return the descriptors to wait for, with their poll(2) events. Call it before each wait."""
        waited_for = {} if self._stdout is None else {self._stdout: 0}
        if self._stdin is not None and may_read(self._stdin):
            waited_for[self._stdin] = select.POLLIN
        return waited_for

    def entered(self, ready: dict[int, int]) -> bool:
        """Return whether the user pressed Enter; `ready` is the result of the wait.

        Stop watching standard input at its end. Raise BrokenPipeError if the reader of standard output is gone.
        """
        if self._stdout is not None and ready.get(self._stdout, 0) & (select.POLLERR | select.POLLHUP):
            raise BrokenPipeError
        # A pager or another job may have taken the terminal since the wait began.
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
    """Return whether nettop may read it: not a terminal in use by another job, or by a program in raw mode."""
    try:
        canonical = termios.tcgetattr(descriptor)[3] & termios.ICANON
    except termios.error:
        return True  # not a terminal
    try:
        return bool(canonical) and os.tcgetpgrp(descriptor) == os.getpgrp()
    except OSError:
        return bool(canonical)  # not the controlling terminal, so reading cannot stop nettop


def _is_dialogue(descriptor: int) -> bool:
    mode = os.fstat(descriptor).st_mode
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or os.isatty(descriptor)


def _descriptor(stream: TextIO | int | None) -> int | None:
    """Return the descriptor of a stream; None if it is closed or has none."""
    try:
        return stream if stream is None or isinstance(stream, int) else stream.fileno()
    except (OSError, ValueError):
        return None
