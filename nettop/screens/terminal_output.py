# SPDX-License-Identifier: Apache-2.0
"""Output to a terminal that may fail, disappear, or stop accepting data."""

from __future__ import annotations

import os
import signal
import termios
import threading
from collections.abc import Callable
from contextlib import suppress

RESTORING = "\0"
"""A marker that is not written itself: the text after it restores the terminal, and is not dropped."""
_PIECE_BYTES = 4096
"""Bytes per write; an empty pseudo-terminal accepts more than that at once."""


class TerminalOutput:
    """A file that writes to a terminal, for one thread. Writes block on the terminal until `drop` is called.

    Writes never fail: the first error is reported, and everything after it is dropped. A blocked write holds no lock,
    so that the program can exit.
    """

    def __init__(self, descriptor: int, on_error: Callable[[], None]) -> None:
        self._descriptor = descriptor
        self._on_error = on_error
        self._has_failed = False
        self.is_dropping = False
        self.restoring = threading.Event()
        """Event that is set once RESTORING is reached."""

    def fileno(self) -> int:
        """Return the terminal's descriptor."""
        return self._descriptor

    def write(self, text: str) -> None:
        """Write the text, unless the terminal has failed or output is being dropped."""
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
        """Do nothing: writes are unbuffered."""

    def drop(self) -> None:
        """Drop all output until RESTORING. May be called from any thread and from signal handlers."""
        self.is_dropping = True

    def unblock(self, thread_id: int) -> None:
        """Unblock the thread that waits for the terminal: discard the kernel's output queue.

        A signal makes the thread check for room again; SIGCONT is handled and has no other effect.
        """
        with suppress(termios.error):
            termios.tcflush(self._descriptor, termios.TCOFLUSH)
        with suppress(ProcessLookupError):
            signal.pthread_kill(thread_id, signal.SIGCONT)
