# SPDX-License-Identifier: Apache-2.0
"""A child process that waits for a go-ahead before it executes a command."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Sequence
from typing import NoReturn

_RESTORED_SIGNALS = (signal.SIGPIPE, signal.SIGXFSZ)
"""Signals that Python ignores, restored to their default so that the command does not ignore them too."""
_CANNOT_RUN = 126


class Child:
    """The child process. Create it while there is only one thread, before dropping privileges.

    It shares nettop's standard streams, working directory, environment and process group. `prepare` runs in it. Its
    `descriptor` is readable once it has ended.
    """

    def __init__(self, words: Sequence[str], prepare: Callable[[], object]) -> None:
        (go_reader, go_writer), (error_reader, error_writer) = os.pipe(), os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(go_writer)  # else the child would never see end of file
            _wait_and_execute(go_reader, error_writer, words, prepare)
        os.close(go_reader)
        os.close(error_writer)
        self._go, self._error = os.fdopen(go_writer, "wb", buffering=0), os.fdopen(error_reader, "rb")
        self.descriptor = os.pidfd_open(self.pid)
        self._status: int | None = None

    def start(self) -> OSError | None:
        """Let the child execute the command; return the error if that fails."""
        with contextlib.suppress(BrokenPipeError), self._go:  # already killed
            self._go.write(b"\1")
        number = self._error.read()
        return OSError(int(number), os.strerror(int(number))) if number else None

    def send(self, number: int) -> None:
        """Send a signal to the child if it still runs and nettop may signal it."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            signal.pidfd_send_signal(self.descriptor, number)

    def status(self) -> int:
        """Wait for the child to end and return its exit status, negative if killed by a signal."""
        if self._status is None:
            self._status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self._status

    def close(self) -> None:
        """Wait for the child to end, which is immediate if it was not started, and close the descriptors."""
        self._go.close()
        self.status()
        self._error.close()
        os.close(self.descriptor)


def _wait_and_execute(go: int, error: int, words: Sequence[str], prepare: Callable[[], object]) -> NoReturn:
    try:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, signal.SIG_DFL)
        for number in _RESTORED_SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        prepare()
        if os.read(go, 1):
            os.execvp(words[0], list(words))  # noqa: S606 - running the user's command is the purpose
    except OSError as refused:
        os.write(error, str(refused.errno).encode())
    finally:
        os._exit(_CANNOT_RUN)  # never return into the parent's code
