# SPDX-License-Identifier: Apache-2.0
"""What is written to a terminal that may fail, vanish, or take nothing any more."""

from __future__ import annotations

import os
import signal
import termios
import threading
from collections.abc import Callable
from contextlib import suppress

RESTORING = "\0"
"""A text that is not written: what follows it restores the terminal, and is not dropped."""
_PIECE_BYTES = 4096
"""An empty pseudo-terminal takes more than that at once."""


class TerminalOutput:
    """A file that writes to a terminal, for one thread. Writing waits for the terminal, until `drop` is called.

    It never fails: the first error is reported, and everything after it dropped. While it waits it holds no lock, so
    that the program can end meanwhile.
    """

    def __init__(self, descriptor: int, on_error: Callable[[], None]) -> None:
        self._descriptor = descriptor
        self._on_error = on_error
        self._has_failed = False
        self.is_dropping = False
        self.restoring = threading.Event()
        """Set once RESTORING was reached."""

    def fileno(self) -> int:
        """Return the terminal's descriptor."""
        return self._descriptor

    def write(self, text: str) -> None:
        """Write, while there is a terminal."""
        if text == RESTORING:
            self.is_dropping = False
            self.restoring.set()
            return
        left = text.encode("utf-8", "replace")
        while left and not (self._has_failed or self.is_dropping):
            try:
                left = left[os.write(self._descriptor, left[:_PIECE_BYTES]) :]
            except OSError:
                self._has_failed = True
                self._on_error()

    def flush(self) -> None:
        """Do nothing: everything is written at once."""

    def drop(self) -> None:
        """Drop what is written from now on, until RESTORING. May be called by any thread and by signal handlers."""
        self.is_dropping = True

    def unblock(self, thread_id: int) -> None:
        """Have the thread that waits for the terminal go on: drop what the kernel keeps for the terminal.

        A signal makes the thread look whether there is room now; SIGCONT is handled and has no other effect.
        """
        with suppress(termios.error):
            termios.tcflush(self._descriptor, termios.TCOFLUSH)
        with suppress(ProcessLookupError):
            signal.pthread_kill(thread_id, signal.SIGCONT)
