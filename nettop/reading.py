# SPDX-License-Identifier: Apache-2.0
"""Reading of files named by the user: regular files of bounded size, and pipes that the process was started with.

Everything else is refused at once: a FIFO without a writer would block forever, and opening a device may have side
effects. Errors are OSErrors whose `strerror` is the cause.
"""

from __future__ import annotations

import errno
import os
import re
import select
import stat
import time
from collections.abc import Iterable
from pathlib import Path

PIPE_WAIT_S = 10.0
"""Seconds that a command in <(…) may take to write."""
_PIECE_BYTES = 1 << 20
_KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a block device",
}
_OWN_PIPE = re.compile(r"/proc/[0-9]+/fd/pipe:\[[0-9]+\]")
"""The resolved path of a pipe that the shell created for <(…) or standard input."""


def read_file(path: str | Path, most_bytes: int) -> bytes:
    """Return the whole content. Raise OSError, also for other kinds of files and for more than `most_bytes`."""
    return read_with_mode(path, most_bytes)[0]


def read_with_mode(path: str | Path, most_bytes: int) -> tuple[bytes, int]:
    """Return the whole content and the file's mode. Raise OSError like `read_file`."""
    is_own_pipe = _OWN_PIPE.fullmatch(os.path.realpath(path)) is not None
    _check_kind(os.stat(path).st_mode, is_own_pipe=is_own_pipe)
    # The file may have been replaced since: O_NONBLOCK opens a FIFO without waiting.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        status = os.fstat(descriptor)
        _check_kind(status.st_mode, is_own_pipe=is_own_pipe)
        if stat.S_ISREG(status.st_mode) and status.st_size > most_bytes:
            raise _too_large(most_bytes)
        return _read(descriptor, most_bytes), status.st_mode
    finally:
        os.close(descriptor)


def wrong_kind(mode: int) -> OSError:
    """Return the error for something that is not a regular file. For a directory, use the kernel's own error."""
    return OSError(
        errno.EINVAL, f"it is {_KINDS.get(stat.S_IFMT(mode), 'of another kind')}, not a regular file"
    )


def _check_kind(mode: int, *, is_own_pipe: bool) -> None:
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode) or (is_own_pipe and stat.S_ISFIFO(mode))):
        raise wrong_kind(mode)


def _read(descriptor: int, most_bytes: int) -> bytes:
    content = bytearray()
    deadline = time.monotonic() + PIPE_WAIT_S
    while len(content) <= most_bytes:
        try:
            piece = os.read(descriptor, min(_PIECE_BYTES, most_bytes + 1 - len(content)))
        except BlockingIOError:
            if not has_data([descriptor], max(0, round((deadline - time.monotonic()) * 1000))):
                raise TimeoutError(
                    errno.ETIMEDOUT, f"the pipe was not written within {PIPE_WAIT_S:g} s"
                ) from None
            continue
        if not piece:
            return bytes(content)
        content += piece
    raise _too_large(most_bytes)


def has_data(descriptors: Iterable[int], wait_ms: int) -> bool:
    """Return whether one of the descriptors can be read without blocking, now or within `wait_ms`.

    select(2) refuses descriptors above 1023, which a host with many CPUs may need.
    """
    poll = select.poll()
    for descriptor in descriptors:
        poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(wait_ms))


def _too_large(most_bytes: int) -> OSError:
    return OSError(errno.EFBIG, f"it has more than {most_bytes:,} bytes")
