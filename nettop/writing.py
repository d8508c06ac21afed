# SPDX-License-Identifier: Apache-2.0
"""Writing of files named by the user, and of standard output: errors name path and cause, and lines stay whole.

Files opened inside `commands.invoker.open_files_as` belong to the user who called nettop.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TextIO

from nettop.errors import TOO_MANY_FILES, NettopError, PermissionMissing, Unsupported
from nettop.process.interrupts import Requests, delay_interrupts
from nettop.reading import wrong_kind

OUTPUT = "the output"
"""The name of standard output in errors."""
_WRITABLE = (stat.S_IFREG, stat.S_IFIFO, stat.S_IFCHR)
_NEWLINE = 0x0A
_SIGNAL_STEP_MS = 100
"""Milliseconds within which an interrupt is noticed while the reader is blocked."""
_END_OF_LINE_S = 1.0
"""Seconds that an interrupt waits for the end of a partly written line."""


@contextmanager
def writing(what: str, remedy: str = "") -> Iterator[None]:
    """Turn a failure to write `what` into a NettopError. Let BrokenPipeError pass: the reader has gone."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        kind = PermissionMissing if isinstance(error, PermissionError) else NettopError
        raise kind(f"{what} cannot be written: {why_not(error)}", remedy) from error


def why_not(error: OSError) -> str:
    """Return the cause of an error in words."""
    return error.strerror or str(error) or type(error).__name__


def open_to_write(path: str | Path, flags: int = 0, mode: int = 0o666) -> int:
    """Open a file, a device, or a FIFO with a reader. Raise OSError, at once for anything else."""
    kind = stat.S_IFREG
    with suppress(FileNotFoundError):
        kind = stat.S_IFMT(os.stat(path).st_mode)
    if kind not in _WRITABLE:
        raise wrong_kind(kind)
    # O_NONBLOCK: a FIFO may have replaced the file since.
    how = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC | flags
    try:
        descriptor = os.open(path, how, mode)
    except OSError as error:
        if error.errno == errno.ENXIO and kind == stat.S_IFIFO:
            raise OSError(errno.ENXIO, "the FIFO has no reader") from error
        raise
    os.set_blocking(descriptor, True)
    return descriptor


def write_all(descriptor: int, data: bytes) -> None:
    """Write all data. Raise OSError if that fails."""
    done = 0
    while done < len(data):
        done += os.write(descriptor, data[done:] if done else data)


def lock(descriptor: int, holder: str) -> None:
    """Lock a file or a directory. Raise OSError if another process, the `holder`, has locked it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise OSError(errno.EBUSY, holder) from None
    except OSError:
        return  # the file system does not support locks


def lock_file(descriptor: int, holder: str) -> None:
    """Lock a regular file, as `lock` does. Raise OSError also if it is another kind of file."""
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        raise OSError(errno.EINVAL, "it is not a regular file")
    lock(descriptor, holder)


def replace_file(path: str | Path, content: bytes) -> None:
    """Replace a file atomically; keep its mode, and a symbolic link to it. Raise OSError if that fails."""
    place = Path(os.path.realpath(path))
    beside = temporary_path(place)
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


def temporary_path(place: Path) -> Path:
    """Return a unique name for a temporary file in the same folder."""
    return place.with_name(f".nettop.{os.urandom(8).hex()}")


@contextmanager
def path_in_memory(descriptor: int, content: bytes) -> Iterator[str]:
    """Write to an in-memory file and yield a path that opens it; close the descriptor on exit."""
    try:
        write_all(descriptor, content)
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)


def memory_file(name: str) -> int:
    """Create an in-memory file and return its descriptor. Raise NettopError if the kernel refuses it."""
    try:
        return os.memfd_create(name)
    except OSError as error:
        if error.errno in TOO_MANY_FILES:
            raise
        kind = PermissionMissing if isinstance(error, PermissionError) else Unsupported
        raise kind(
            f"memfd_create is refused: {why_not(error).lower()}",
            "allow this system call, for example in the seccomp filter of the container or unit",
        ) from error


# --- lines ------------------------------------------------------------------------------------------------------


def write_output(
    stdout: TextIO, text: str | bytes, encoding: str = "", requests: Requests | None = None
) -> None:
    """Write whole lines to standard output: text in its encoding, unless another is given, and bytes unchanged.

    Raise NettopError if it cannot be written, BrokenPipeError if the reader has gone, and KeyboardInterrupt at the end
    of a line: an interrupt does not leave a partial line, unless the reader is blocked. Signals that are `requests` do
    not interrupt; once the end is requested, raise NettopError if the reader stays blocked.
    """
    with writing(OUTPUT):
        try:
            descriptor = stdout.fileno()
        except OSError:  # an in-memory stream
            stdout.write(text if isinstance(text, str) else text.decode(errors="replace"))
            stdout.flush()
            return
        data = text.encode(encoding or stdout.encoding, "replace") if isinstance(text, str) else text
        at, give_up_at = 0, float("inf")
        with ExitStack() as delayed:
            interrupts = delayed.enter_context(delay_interrupts()) if requests is None else []
            while at < len(data):
                if interrupts:
                    give_up_at = min(give_up_at, time.monotonic() + _END_OF_LINE_S)
                    if at == 0 or data[at - 1] == _NEWLINE or time.monotonic() >= give_up_at:
                        break
                if has_room(descriptor, _SIGNAL_STEP_MS):
                    with suppress(
                        BlockingIOError
                    ):  # another process that shares the stream made it non-blocking
                        at += os.write(descriptor, data[at : end_of_piece(data, at)])
                elif requests is not None and requests.ending:
                    give_up_at = min(give_up_at, time.monotonic() + _END_OF_LINE_S)
                    if time.monotonic() >= give_up_at:
                        raise OSError(errno.EAGAIN, "its reader does not read")


def end_of_piece(data: bytes, at: int) -> int:
    """Return the end of a write that begins at `at`: after the last line that fits into PIPE_BUF bytes.

    A pipe with room accepts that much atomically, without blocking.
    """
    end = at + select.PIPE_BUF
    return end if end >= len(data) else data.rfind(b"\n", at, end) + 1 or end


def has_room(descriptor: int, wait_ms: int | None) -> bool:
    """Return whether a pipe or a terminal accepts a write without blocking, now or within `wait_ms` (None: wait)."""
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    return bool(poll.poll(wait_ms))


class LineFile:
    """A file of whole lines whose failures must not disturb the program.

    The first failure is passed to `report`; nothing is written after it, and a partial line is removed if the file can
    be truncated.
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
            with suppress(OSError):  # not a regular file
                size = os.fstat(self._descriptor).st_size
                os.ftruncate(self._descriptor, size - (done - data.rfind(b"\n", 0, done) - 1))

    def flush(self) -> None:
        """Do nothing: writes are not buffered."""

    def close(self) -> None:
        """Close the file; a file system may report failed writes only here."""
        try:
            os.close(self._descriptor)
        except OSError as error:
            self._fail(error)

    def _fail(self, error: OSError) -> None:
        if not self._has_failed:
            self._report(f"{self._path} cannot be written: {why_not(error)}; it is incomplete")
        self._has_failed = True
