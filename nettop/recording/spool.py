# SPDX-License-Identifier: Apache-2.0
"""Recordings from a pipe: copied to a file, which can be read like a recording that grows."""

from __future__ import annotations

import errno
import os
import select
import threading
from collections.abc import Callable
from tempfile import TemporaryFile

from nettop.errors import SourceFailed
from nettop.process.wake_event import WakeEvent
from nettop.writing import why_not, write_all

SPOOL_MAX = 1 << 30
"""Maximum bytes of the file: a day or two of a busy host. The recording ends there."""
_PIECE = 1 << 20
_PATIENCE_MS = 1000
"""Milliseconds without anything after which the user is told what nettop waits for."""


class PipeSpool:
    """A file without a name, in the folder for temporary files, and the pipe that is copied to it.

    `report_waiting` is called once, if the main thread waits for the pipe. Raise SourceFailed without room for a file.
    """

    def __init__(self, pipe: int, report_waiting: Callable[[], None]) -> None:
        self.is_over = False
        """True once the pipe has ended, or was closed because the file cannot grow."""
        self.cut_short = ""
        """Why the file cannot grow; empty if it can."""
        self._pipe = pipe
        self._report_waiting = report_waiting
        self._has_reported = False
        self._news = threading.Condition()
        self._end = WakeEvent()
        self._is_closing = False
        self._thread: threading.Thread | None = None
        try:
            self._file = TemporaryFile(buffering=0)  # noqa: SIM115 - closed by close()
        except OSError as error:
            raise SourceFailed(
                f"a recording from a pipe needs a temporary file: {why_not(error)}",
                "set TMPDIR to a folder with room",
            ) from error

    def fileno(self) -> int:
        """Return the file's descriptor."""
        return self._file.fileno()

    def start(self) -> None:
        """Copy in a thread from now on, unless the pipe has ended."""
        if not self.is_over and self._thread is None:
            self._thread = threading.Thread(target=self._run, name="spool", daemon=True)
            self._thread.start()

    def copy(self) -> None:
        """Wait until the pipe has something, and copy it."""
        ready = select.poll()
        ready.register(self._pipe, select.POLLIN)
        if not ready.poll(_PATIENCE_MS):
            if not self._has_reported:
                self._report_waiting()
                self._has_reported = True
            ready.poll()
        self._copy()

    def copy_all(self) -> None:
        """Copy everything up to the end of the pipe."""
        while not self.is_over:
            self.copy()

    def wait_beyond(self, size: int) -> bool:
        """Wait until the file has more than `size` bytes; return False if it never will."""
        with self._news:
            self._news.wait_for(lambda: self.is_over or self._size > size)
            return self._size > size

    def close(self) -> None:
        """End the thread; close the pipe, so that its writer learns that nobody reads, and the file."""
        if self._thread is not None:
            self._is_closing = True  # first: the thread may not wait for the event yet
            self._end.set()
            self._thread.join()
        self._close_pipe()
        self._file.close()

    @property
    def _size(self) -> int:
        return os.fstat(self._file.fileno()).st_size

    def _run(self) -> None:
        with self._end:
            while not (self.is_over or self._is_closing):
                if self._end.wait({self._pipe: select.POLLIN}):
                    self._copy()

    def _copy(self) -> None:
        try:
            content = os.read(self._pipe, _PIECE)
            if self._size + len(content) > SPOOL_MAX:
                raise OSError(errno.EFBIG, f"it has more than {SPOOL_MAX >> 20:,} MiB")
            write_all(self._file.fileno(), content)
        except BlockingIOError:  # another process made it non-blocking, and reads it too
            return
        except OSError as error:
            content, self.cut_short = b"", why_not(error)
        with self._news:
            if not content:
                self._close_pipe()
                self.is_over = True
            self._news.notify_all()

    def _close_pipe(self) -> None:
        if self._pipe >= 0:
            os.close(self._pipe)
            self._pipe = -1
