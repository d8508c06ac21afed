# SPDX-License-Identifier: Apache-2.0
"""Files that only ever hold whole lines, and are rotated by size.

The kernel copies what is written into a file page by page, and SIGKILL ends it between two pages. So no line
crosses the border of a page: the last one before it is filled up with blanks.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from nettop.errors import NettopError, PermissionMissing

PAGE = mmap.PAGESIZE
TRY_AGAIN_S = 1.0
"""How long a file that cannot be written is left alone."""

_FILE_MODE, _DIRECTORY_MODE = 0o640, 0o750
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
    def path(self) -> Path:
        """The file that is written."""
        return self.directory / f"{self.name}.{self.ending}"

    def old(self, number: int) -> Path:
        """The file that was rotated so many times."""
        return self.directory / f"{self.name}.{number}.{self.ending}"


class LogFile:
    """One log. What cannot be written is counted, told once, and tried again later.

    `tell` gets what a person should know; `lost_line(cause, count, total)` is what the file says of a gap in it.
    """

    def __init__(
        self, place: Place, tell: Callable[[str], None], lost_line: Callable[[str, int, int], bytes]
    ) -> None:
        self.place = place
        self.lost = 0
        self._tell = tell
        self._lost_line = lost_line
        self._descriptor = -1
        self._longest = 0
        self._trouble = ""
        self._gap = 0
        self._lost_before = 0
        self._quiet_until = 0.0

    def open(self) -> None:
        """Begin: make the directory, and open the file. Raises NettopError when that cannot be."""
        try:
            self.place.directory.mkdir(_DIRECTORY_MODE, parents=True, exist_ok=True)
            self._open()
        except OSError as error:
            remedy = "give --log-dir another directory, or none for the console only"
            kind = PermissionMissing if isinstance(error, PermissionError) else NettopError
            raise kind(f"{self.place.path} cannot be written: {_why(error)}", remedy) from error

    def write(self, block: bytes) -> None:
        """Add whole lines; those that cannot be written are lost, and counted."""
        lines = block.count(b"\n")
        if self._trouble and time.monotonic() < self._quiet_until:
            self._lose(lines)
            return
        gap = self._lost_line(self._trouble, self._gap, self.lost) if self._gap else b""
        written = self._write_lines(gap + block)
        if gap and written:
            self._gap = 0
            written -= 1
        self._lose(lines - written)
        if self._trouble and written == lines:
            missing = self.lost - self._lost_before
            self._tell(f"{self.place.path} is written again; {missing} lines are missing from it")
            self._trouble = ""

    def reopen(self) -> None:
        """Close the file, and open what now has its name, or a new one."""
        self.close()
        try:
            self._open()
        except OSError as error:
            self._fail(error)

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    # --- writing ------------------------------------------------------------------------------------------

    def _write_lines(self, block: bytes) -> int:
        """How many lines of the block could be written."""
        self._longest = max(self._longest, *map(len, block.split(b"\n")))
        at = lines = 0
        try:
            while at < len(block):
                size = self._size()
                data, used = paged(block, at, size, self.place.rotate_bytes, self._longest)
                if not used:
                    self._rotate()
                    continue
                kept, error = self._append(data, size)
                lines += kept
                if error is not None:
                    raise error
                at += used
        except OSError as error:
            self._fail(error)
        return lines

    def _size(self) -> int:
        """The size of the file, which is opened again where somebody has removed it."""
        if self._descriptor < 0:
            self._open()
        now = os.fstat(self._descriptor)
        if now.st_nlink == 0:
            self.close()
            self._open()
            now = os.fstat(self._descriptor)
        return now.st_size

    def _append(self, data: bytes, size: int) -> tuple[int, OSError | None]:
        """Write the lines, and say how many are in the file, and why not all; none stays there in part."""
        done = 0
        try:
            while done < len(data):
                done += os.write(self._descriptor, data[done:] if done else data)
        except OSError as error:
            kept = data.rfind(b"\n", 0, done) + 1
            os.ftruncate(self._descriptor, size + kept)
            return data.count(b"\n", 0, kept), error
        return data.count(b"\n"), None

    def _lose(self, lines: int) -> None:
        self._gap += lines
        self.lost += lines

    def _fail(self, error: OSError) -> None:
        """Tell what is wrong, once, and leave the file alone for a while."""
        why = _why(error)
        if not self._trouble:
            self._lost_before = self.lost
        if why != self._trouble:
            self._tell(
                f"{self.place.path} cannot be written ({why}): lines are lost, and counted, until it can"
            )
        self._trouble = why
        self._quiet_until = time.monotonic() + TRY_AGAIN_S

    # --- opening and rotating -----------------------------------------------------------------------------

    def _open(self) -> None:
        descriptor = os.open(self.place.path, _FLAGS, _FILE_MODE)
        try:
            _take(descriptor)
            _end_line(descriptor)
        except OSError:
            os.close(descriptor)
            raise
        self._descriptor = descriptor

    def _rotate(self) -> None:
        """Have the file and the old ones move one number on; the oldest goes."""
        place = self.place
        if _is_same(self._descriptor, place.path):
            number = place.keep
            while _removed(place.old(number)):
                number += 1  # more were kept before
            for number in range(place.keep - 1, 0, -1):
                if place.old(number).exists():
                    place.old(number).rename(place.old(number + 1))
            place.path.rename(place.old(1))
        self.close()
        self._open()


def paged(block: bytes, at: int, size: int, limit: int, longest: int) -> tuple[bytes, int]:
    """The lines of `block` from `at` that fit a file of `size` bytes, and how long they are in the block.

    No line crosses the border of a page, unless it is longer than one: the line before is filled up. At the end
    room is left only for a line of `longest` bytes. The file shall not exceed `limit`, but for its first page.
    """
    pieces, start = [], at
    while at < len(block):
        room = PAGE - size % PAGE
        end = block.rfind(b"\n", at, at + room) + 1
        blanks = 0
        if end > at:
            left = room - (end - at)
            blanks = 0 if end == len(block) and left > longest else left
        else:
            end = block.index(b"\n", at) + 1
        if size and size + end - at + blanks > limit:
            break
        pieces += [block[at : end - 1], b" " * blanks, b"\n"]
        size += end - at + blanks
        at = end
    return b"".join(pieces), at - start


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


def _end_line(descriptor: int) -> None:
    """End a last line that somebody left unfinished."""
    size = os.fstat(descriptor).st_size
    if size and os.pread(descriptor, 1, size - 1) != b"\n":
        os.write(descriptor, b"\n")


def _is_same(descriptor: int, path: Path) -> bool:
    """True when the path still names the open file."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _removed(path: Path) -> bool:
    """True when there was such a file, which is no more."""
    try:
        path.unlink()
    except FileNotFoundError:
        return False
    return True


def _why(error: OSError) -> str:
    return "it is a symbolic link" if error.errno == errno.ELOOP else error.strerror or str(error)
