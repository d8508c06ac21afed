# SPDX-License-Identifier: Apache-2.0
"""Write files that a user names, and standard output: errors name the path and the cause, and a line is written whole.

Files belong to the caller of nettop where the caller opens them inside `commands.invoker.opening_as`.
"""

from __future__ import annotations

import errno
import os
import select
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from nettop.errors import TOO_MANY_FILES, NettopError, PermissionMissing, Unsupported
from nettop.interrupts import undisturbed
from nettop.reading import wrong_kind

OUTPUT = "the output"
"""What errors call standard output."""
_WRITABLE = (stat.S_IFREG, stat.S_IFIFO, stat.S_IFCHR)
_NEWLINE = 0x0A
_SIGNAL_STEP_MS = 100
"""How soon an interrupt is seen while the reader has no room."""
_END_OF_LINE_S = 1.0
"""How long an interrupt waits for the end of a line that the reader has in part."""


@contextmanager
def writing(what: str, remedy: str = "") -> Iterator[None]:
    """Turn a failure to write `what` into a NettopError. A reader who has gone stays a BrokenPipeError."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        kind = PermissionMissing if isinstance(error, PermissionError) else NettopError
        raise kind(f"{what} cannot be written: {why_not(error)}", remedy) from error


def why_not(error: OSError) -> str:
    """Return the cause in words."""
    return error.strerror or str(error) or type(error).__name__


def open_to_write(path: str | Path, flags: int = 0, mode: int = 0o666) -> int:
    """Open a file, a device, or a FIFO that somebody reads. Raises OSError, at once for anything else."""
    kind = stat.S_IFREG
    with suppress(FileNotFoundError):
        kind = stat.S_IFMT(os.stat(path).st_mode)
    if kind not in _WRITABLE:
        raise wrong_kind(kind)
    # O_NONBLOCK: the name may mean a FIFO by now.
    how = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC | flags
    try:
        descriptor = os.open(path, how, mode)
    except OSError as error:
        if error.errno == errno.ENXIO and kind == stat.S_IFIFO:
            raise OSError(errno.ENXIO, "nobody reads the FIFO") from error
        raise
    os.set_blocking(descriptor, True)
    return descriptor


def write_all(descriptor: int, data: bytes) -> None:
    """Write everything. Raises OSError."""
    done = 0
    while done < len(data):
        done += os.write(descriptor, data[done:] if done else data)


def replace_file(path: str | Path, content: bytes) -> None:
    """Put a new file in the place of the old one, whole or not at all; its mode and a symbolic link stay.

    Raises OSError.
    """
    place = Path(os.path.realpath(path))
    beside = file_beside(place)
    try:
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        try:
            if place.exists():
                os.fchmod(descriptor, stat.S_IMODE(place.stat().st_mode))
            write_all(descriptor, content)
        finally:
            os.close(descriptor)
        beside.rename(place)
    finally:
        with suppress(OSError):
            beside.unlink()


def file_beside(place: Path) -> Path:
    """Return the name of a file in the same folder that nobody else has."""
    return place.with_name(f".nettop.{os.urandom(8).hex()}")


@contextmanager
def path_in_memory(descriptor: int, content: bytes) -> Iterator[str]:
    """Write a file in memory, and give the path by which it is opened; the descriptor is closed at the end."""
    try:
        write_all(descriptor, content)
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)


def memory_file(name: str) -> int:
    """Return the descriptor of a file in memory. Raises NettopError where the kernel refuses it."""
    try:
        return os.memfd_create(name)
    except OSError as error:
        if error.errno in TOO_MANY_FILES:
            raise
        kind = PermissionMissing if isinstance(error, PermissionError) else Unsupported
        raise kind(
            f"memfd_create is refused: {why_not(error).lower()}",
            "allow this system call, as in the seccomp filter of the container or unit",
        ) from error


# --- lines ------------------------------------------------------------------------------------------------------


def write_output(stdout: TextIO, text: str | bytes, encoding: str = "") -> None:
    """Write whole lines to standard output: text in its own encoding unless another is given, and bytes as they are.

    Raises NettopError where it cannot be written, BrokenPipeError where nobody reads it any more, and KeyboardInterrupt
    at the end of a line: an interrupt leaves none in part, unless the reader takes nothing.
    """
    with writing(OUTPUT):
        try:
            descriptor = stdout.fileno()
        except OSError:  # a stream in memory
            stdout.write(text if isinstance(text, str) else text.decode(errors="replace"))
            stdout.flush()
            return
        data = text.encode(encoding or stdout.encoding, "replace") if isinstance(text, str) else text
        at, give_up_at = 0, float("inf")
        with undisturbed() as interrupts:
            while at < len(data):
                if interrupts:
                    give_up_at = min(give_up_at, time.monotonic() + _END_OF_LINE_S)
                    if at == 0 or data[at - 1] == _NEWLINE or time.monotonic() >= give_up_at:
                        break
                if has_room(descriptor, _SIGNAL_STEP_MS):
                    with suppress(BlockingIOError):  # another process that shares it made it non-blocking
                        at += os.write(descriptor, data[at : end_of_piece(data, at)])


def end_of_piece(data: bytes, at: int) -> int:
    """Return where to end a write that begins at `at`: behind the last line that fits into what a pipe takes at once.

    A pipe with room takes so much without waiting, and never in part.
    """
    end = at + select.PIPE_BUF
    return end if end >= len(data) else data.rfind(b"\n", at, end) + 1 or end


def has_room(descriptor: int, wait_ms: int) -> bool:
    """Return whether a write to a pipe or a terminal would not wait, now or within this time."""
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    return bool(poll.poll(wait_ms))


class LineFile:
    """A file of whole lines that must not disturb what it reports about.

    The first failure is told to `report`; nothing is written after it, and a line in part is taken back where the file
    allows it.
    """

    def __init__(self, path: str, descriptor: int, report: Callable[[str], None]) -> None:
        self._path = path
        self._descriptor = descriptor
        self._report = report
        self._has_failed = False

    def write(self, text: str) -> None:
        """Add whole lines."""
        if self._has_failed:
            return
        data, done = text.encode("utf-8", "replace"), 0
        try:
            while done < len(data):
                done += os.write(self._descriptor, data[done:])
        except OSError as error:
            self._fail(error)
            with suppress(OSError):  # no regular file
                size = os.fstat(self._descriptor).st_size
                os.ftruncate(self._descriptor, size - (done - data.rfind(b"\n", 0, done) - 1))

    def flush(self) -> None:
        """Do nothing: what is written is not kept back."""

    def close(self) -> None:
        """Close the file, which may be when the file system refuses what it had taken."""
        try:
            os.close(self._descriptor)
        except OSError as error:
            self._fail(error)

    def _fail(self, error: OSError) -> None:
        if not self._has_failed:
            self._report(f"{self._path} cannot be written: {why_not(error)}; it is incomplete")
        self._has_failed = True
