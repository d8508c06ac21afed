# SPDX-License-Identifier: Apache-2.0
"""Log files of whole lines, rotated by size.

Lines are appended (O_APPEND) in writes that end with a line. SIGKILL may cut the last of them short: then only the last
line of the file is unfinished, and the next start removes it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from nettop.errors import NettopError, PermissionMissing
from nettop.writing import why_not

TRY_AGAIN_S = 1.0
"""How long a file that cannot be written is left alone."""
LONGEST_LINE = 1 << 16
"""An unfinished last line is searched for in this many bytes at the end of a file."""

_FILE_MODE, _DIRECTORY_MODE = 0o640, 0o750
_DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# O_NONBLOCK: a FIFO in the file's place is refused, not waited for.
_FLAGS = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class Place:
    """Where a log is: `NAME.ENDING` in a directory; the `keep` old ones are `NAME.1.ENDING`, the newest, and so on.

    A file never grows beyond `rotate_bytes`, unless one line is longer.
    """

    directory: Path
    name: str
    ending: str
    rotate_bytes: int
    keep: int

    @property
    def file(self) -> str:
        """The name of the file that is written."""
        return f"{self.name}.{self.ending}"

    @property
    def path(self) -> Path:
        """The file that is written."""
        return self.directory / self.file

    def old(self, number: int) -> str:
        """The name of the file that was rotated that many times."""
        return f"{self.name}.{number}.{self.ending}"


class LogFile:
    """One log. What cannot be written is counted, reported once, and tried again later.

    It stays in the directory that had this name when it was opened, whoever renames that directory since. If it is
    removed, another one is taken for it only where no symbolic link leads to that.

    `report` gets what a person should know; `lost_line(cause, count, total)` makes the line for a gap in the file.
    """

    def __init__(
        self, place: Place, report: Callable[[str], None], lost_line: Callable[[str, int, int], bytes]
    ) -> None:
        self.place = place
        self.lost = 0
        self._report = report
        self._lost_line = lost_line
        self._resolved = place.directory
        self._directory = self._descriptor = -1
        self._problem = ""
        self._gap = 0
        self._lost_before = 0
        self._quiet_until = 0.0

    def open(self) -> None:
        """Make the directory, and open the file. Raises NettopError where that is not possible."""
        try:
            self.place.directory.mkdir(_DIRECTORY_MODE, parents=True, exist_ok=True)
            self._resolved = self.place.directory.resolve()
            # By this name, as a directory above it may be one that cannot be searched.
            self._directory = os.open(self.place.directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            self._open()
        except OSError as error:
            remedy = "give --log-dir another directory, or none for the console only"
            kind = PermissionMissing if isinstance(error, PermissionError) else NettopError
            raise kind(f"{self.place.path} cannot be written: {_why(error)}", remedy) from error

    def write(self, block: bytes) -> None:
        """Add whole lines; those that cannot be written are lost, and counted."""
        lines = block.count(b"\n")
        if self._problem and time.monotonic() < self._quiet_until:
            self._lose(lines)
            return
        gap = self._lost_line(self._problem, self._gap, self.lost) if self._gap else b""
        written = self._write_lines(gap + block)
        if gap and written:
            self._gap = 0
            written -= 1
        self._lose(lines - written)
        if self._problem and written == lines:
            missing = self.lost - self._lost_before
            self._report(f"{self.place.path} is written again; {missing} lines are missing from it")
            self._problem = ""

    def reopen(self) -> None:
        """Close the file, and open what now has its name, or a new one."""
        try:
            self._close_file()
            self._open()
        except OSError as error:
            self._fail(error)

    def close(self) -> None:
        """Close the file and its directory; a second call does nothing."""
        try:
            self._close_file()
        except OSError as error:  # some file systems refuse only now what they had taken
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
        """How many lines of the block could be written."""
        at = 0
        try:
            while at < len(block):
                size = self._size()
                end = at + max(0, self.place.rotate_bytes - size)
                if end < len(block):
                    end = block.rfind(b"\n", at, end) + 1
                    if not end and size:
                        self._rotate()
                        continue
                    end = end or block.index(b"\n", at) + 1  # an empty file takes any line
                at += self._append(block[at:end], size)
                if at < end:
                    break
        except OSError as error:
            self._fail(error)
        return block.count(b"\n", 0, at)

    def _size(self) -> int:
        """The size of the file, which is opened again where somebody has removed it."""
        if self._descriptor < 0:
            self._open()
        now = os.fstat(self._descriptor)
        if now.st_nlink == 0:
            self._close_file()
            self._open()
            now = os.fstat(self._descriptor)
        return now.st_size

    def _append(self, data: bytes, size: int) -> int:
        """Write lines to the file of `size` bytes; returns how many bytes. Where that fails no line stays in part."""
        done = 0
        try:
            while done < len(data):
                done += os.write(self._descriptor, data[done:] if done else data)
        except OSError as error:
            done = data.rfind(b"\n", 0, done) + 1
            os.ftruncate(self._descriptor, size + done)
            self._fail(error)
        return done

    def _lose(self, lines: int) -> None:
        self._gap += lines
        self.lost += lines

    def _fail(self, error: OSError) -> None:
        """Report what is wrong, once, and leave the file alone for a while."""
        why = _why(error)
        if not self._problem:
            self._lost_before = self.lost
        if why != self._problem:
            self._report(
                f"{self.place.path} cannot be written ({why}): lines are lost, and counted, until it can"
            )
        self._problem = why
        self._quiet_until = time.monotonic() + TRY_AGAIN_S

    # --- opening and rotating -----------------------------------------------------------------------------

    def _open(self) -> None:
        try:
            descriptor = os.open(self.place.file, _FLAGS, _FILE_MODE, dir_fd=self._directory)
        except FileNotFoundError:  # the directory has been removed
            directory = _open_directory(self._resolved)
            os.close(self._directory)
            self._directory = directory
            descriptor = os.open(self.place.file, _FLAGS, _FILE_MODE, dir_fd=self._directory)
        try:
            _take(descriptor)
            _end_last_line(descriptor)
        except OSError:
            os.close(descriptor)
            raise
        self._descriptor = descriptor

    def _rotate(self) -> None:
        """Have the file and the old ones move one number on; the oldest goes."""
        place = self.place
        if self._is_in_place():
            with suppress(FileNotFoundError):
                for number in count(place.keep):  # more may have been kept before
                    os.unlink(place.old(number), dir_fd=self._directory)
            for number in range(place.keep - 1, 0, -1):
                with suppress(FileNotFoundError):
                    self._rename(place.old(number), place.old(number + 1))
            self._rename(place.file, place.old(1))
        self._close_file()
        self._open()

    def _is_in_place(self) -> bool:
        """Whether the open file still has its name."""
        try:
            named = os.stat(self.place.file, dir_fd=self._directory, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return os.path.samestat(os.fstat(self._descriptor), named)

    def _rename(self, before: str, after: str) -> None:
        os.rename(before, after, src_dir_fd=self._directory, dst_dir_fd=self._directory)


def _open_directory(path: Path) -> int:
    """Open a directory by an absolute path without symbolic links. Raises OSError."""
    descriptor = os.open(path.anchor, _DIRECTORY)
    for name in path.parts[1:]:
        above = descriptor
        try:
            descriptor = os.open(name, _DIRECTORY, dir_fd=above)
        finally:
            os.close(above)
    return descriptor


def _take(descriptor: int) -> None:
    """Make sure that it is a file, and that nobody else writes it."""
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        raise OSError(errno.EINVAL, "it is not a regular file")
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise OSError(errno.EBUSY, "another nettop log writes it") from None
    except OSError:
        return  # a file system without locks


def _end_last_line(descriptor: int) -> None:
    """Remove a last line that is unfinished; where there is no other, it is not ours, and is ended."""
    size = os.fstat(descriptor).st_size
    tail = os.pread(descriptor, LONGEST_LINE, max(0, size - LONGEST_LINE))
    unfinished = len(tail) - tail.rfind(b"\n") - 1
    if unfinished == len(tail) > 0:
        os.write(descriptor, b"\n")
    elif unfinished:
        os.ftruncate(descriptor, size - unfinished)


def _why(error: OSError) -> str:
    words = {errno.ELOOP: "it is a symbolic link", errno.EEXIST: "its folder is not a directory"}
    return words.get(error.errno or 0) or why_not(error)
