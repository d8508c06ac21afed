# SPDX-License-Identifier: Apache-2.0
"""Log files of complete lines, rotated by size.

Lines are appended (O_APPEND) in writes that end with a complete line. SIGKILL may cut the last write short; then only
the last line of the file is incomplete, and the next start removes it.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from contextlib import suppress
from itertools import count, pairwise
from pathlib import Path

from nettop.errors import NettopError, PermissionMissing
from nettop.writing import lock_file, why_not

LostLine = Callable[[str, int, int], bytes]
"""Function that returns the line for a gap: its cause, its lines, and all lines lost so far."""
TRY_AGAIN_S = 1.0
"""Seconds before retrying a file after a write error."""
LONGEST_LINE = 1 << 16
"""Bytes at the end of a file to search for an incomplete last line."""

_FILE_MODE, _DIRECTORY_MODE = 0o640, 0o750
# O_NONBLOCK: fail on a FIFO in place of the file instead of waiting for a reader.
_FLAGS = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class LossCount:
    """Lines that a destination lost: `total`, and those of the `gap` that no line in it reports yet."""

    def __init__(self) -> None:
        self.total = 0
        self.gap = 0

    def add(self, block: bytes) -> None:
        """Count the lines of a block."""
        lines = block.count(b"\n")
        self.gap += lines
        self.total += lines


class LogFile:
    """The log file `path`. On an error it counts the lines not written, reports the error once, and retries later.

    `NAME.1.ENDING` is the newest of `keep` rotated files. None exceeds `rotate_bytes`, unless a single line does. The
    files stay in the directory that was opened at the start, even if that is renamed or removed.

    `report` receives messages for the user; `lost_line(cause, count, total)` returns the line for a gap in the file.
    Raise NettopError if it cannot be opened.
    """

    def __init__(
        self, path: Path, rotate_bytes: int, keep: int, report: Callable[[str], None], lost_line: LostLine
    ) -> None:
        self.path = path
        self.lost = LossCount()
        self._rotate_bytes = rotate_bytes
        self._names = [path.name, *(f"{path.stem}.{number}{path.suffix}" for number in range(1, keep + 1))]
        self._report = report
        self._lost_line = lost_line
        self._descriptor = -1
        self._problem = ""
        self._lost_before = 0
        self._quiet_until = 0.0
        try:
            path.parent.mkdir(_DIRECTORY_MODE, parents=True, exist_ok=True)
            self._directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            self._open()
        except OSError as error:
            remedy = "set --log-dir to another directory, or to none for the console only"
            kind = PermissionMissing if isinstance(error, PermissionError) else NettopError
            raise kind(f"{path} cannot be written: {_why(error)}", remedy) from error

    def write(self, block: bytes) -> None:
        """Append complete lines; count those that cannot be written as lost."""
        if self._problem and time.monotonic() < self._quiet_until:
            self.lost.add(block)
            return
        gap = self._lost_line(self._problem, self.lost.gap, self.lost.total) if self.lost.gap else b""
        written = self._write_lines(gap + block)
        if gap and written:
            self.lost.gap = 0
        self.lost.add(block[max(0, written - len(gap)) :])
        if self._problem and written == len(gap) + len(block):
            missing = self.lost.total - self._lost_before
            self._report(f"{self.path} can be written again; {missing} lines are missing from it")
            self._problem = ""

    def reopen(self) -> None:
        """Close the file, then open or create the file that now has its name."""
        try:
            self._close_file()
            self._open()
        except OSError as error:
            self._fail(error)

    def close(self) -> None:
        """Close the file and its directory; a second call does nothing."""
        try:
            self._close_file()
        except OSError as error:  # some file systems report write errors only on close
            self._fail(error)
        if self._directory >= 0:
            os.close(self._directory)
            self._directory = -1

    def _close_file(self) -> None:
        if self._descriptor >= 0:
            descriptor, self._descriptor = self._descriptor, -1
            os.close(descriptor)

    # --- writing ------------------------------------------------------------------------------------------

    def _write_lines(self, block: bytes) -> int:
        """Write the block, rotating as needed; return how many bytes of complete lines were written."""
        at = 0
        try:
            while at < len(block):
                size = self._size()
                end = at + max(0, self._rotate_bytes - size)
                if end < len(block):
                    end = block.rfind(b"\n", at, end) + 1
                    if not end and size:
                        self._rotate()
                        continue
                    # A line that exceeds the limit gets a file of its own.
                    end = end or block.index(b"\n", at) + 1
                at += self._append(block[at:end], size)
                if at < end:
                    break
        except OSError as error:
            self._fail(error)
        return at

    def _size(self) -> int:
        """Return the size of the file; reopen it first if it was removed."""
        if self._descriptor < 0:
            self._open()
        now = os.fstat(self._descriptor)
        if now.st_nlink == 0:
            self._close_file()
            self._open()
            now = os.fstat(self._descriptor)
        return now.st_size

    def _append(self, data: bytes, size: int) -> int:
        """Append lines to the file of `size` bytes; return the bytes written. On an error, remove partial lines."""
        done = 0
        try:
            while done < len(data):
                done += os.write(self._descriptor, data[done:] if done else data)
        except OSError as error:
            done = data.rfind(b"\n", 0, done) + 1
            os.ftruncate(self._descriptor, size + done)
            self._fail(error)
        return done

    def _fail(self, error: OSError) -> None:
        """Report a new error, and stop writing the file for a while."""
        why = _why(error)
        if not self._problem:
            self._lost_before = self.lost.total
        if why != self._problem:
            self._report(f"{self.path} cannot be written ({why}); lines are dropped and counted until it can")
        self._problem = why
        self._quiet_until = time.monotonic() + TRY_AGAIN_S

    # --- opening and rotating -----------------------------------------------------------------------------

    def _open(self) -> None:
        descriptor = os.open(self.path.name, _FLAGS, _FILE_MODE, dir_fd=self._directory)
        try:
            lock_file(descriptor, "another nettop log is writing it")
            _repair_last_line(descriptor)
        except OSError:
            os.close(descriptor)
            raise
        self._descriptor = descriptor

    def _rotate(self) -> None:
        """Rename the file and the rotated files to the next number, delete the oldest, and start a new file."""
        with suppress(FileNotFoundError):
            for number in count(len(self._names) - 1):  # an earlier run may have kept more
                os.unlink(f"{self.path.stem}.{number}{self.path.suffix}", dir_fd=self._directory)
        for before, after in reversed(list(pairwise(self._names))):
            with suppress(FileNotFoundError):
                os.rename(before, after, src_dir_fd=self._directory, dst_dir_fd=self._directory)
        self._close_file()
        self._open()


def _repair_last_line(descriptor: int) -> None:
    """Remove an incomplete last line. If it is the only line, nettop did not write it: end it with a line break."""
    size = os.fstat(descriptor).st_size
    tail = os.pread(descriptor, LONGEST_LINE, max(0, size - LONGEST_LINE))
    unfinished = len(tail) - tail.rfind(b"\n") - 1
    if unfinished == len(tail) > 0:
        os.write(descriptor, b"\n")
    elif unfinished:
        os.ftruncate(descriptor, size - unfinished)


def _why(error: OSError) -> str:
    words = {errno.ELOOP: "it is a symbolic link", errno.EEXIST: "its parent is not a directory"}
    return words.get(error.errno or 0) or why_not(error)
