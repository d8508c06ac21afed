# SPDX-License-Identifier: Apache-2.0
"""Destinations of recordings: one file, a directory with a file for each hour, and standard output.

A chunk is appended whole or not at all, so a recording that ends for any reason can be read.
"""

from __future__ import annotations

import errno
import os
import re
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple, TextIO

from nettop.errors import NettopError
from nettop.process.interrupts import Requests
from nettop.recording.chunks import HEAD_BYTES, MARKER, PAYLOAD_MAX, Incomplete, read_head
from nettop.recording.numbers import Damaged
from nettop.recording.reader import RecordedFile
from nettop.recording.writer import Sink
from nettop.writing import lock, lock_file, write_all, write_output, writing

SUFFIX = ".nettop"
"""Ends the names of recordings."""
HOUR_S = 3600
_SECOND_NS = 1_000_000_000
_FILE_MODE, _DIRECTORY_MODE = 0o640, 0o750
# O_NONBLOCK: fail on a FIFO in place of the file instead of waiting for a writer.
_FLAGS = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_HOLDER = "another nettop is recording to it"
_REMEDY = "free space, or record elsewhere; nettop replay shows what was recorded until then"
_PARTS = 4
"""A directory's files are at most this part of its maximum, so that removing the oldest leaves most of it."""
_TIME = "%Y%m%dT%H%M%SZ"
_UNSAFE = re.compile(r"[^A-Za-z0-9_.-]")
_NAME = re.compile(rf"nettop-.+-([0-9]{{8}}T[0-9]{{6}}Z){re.escape(SUFFIX)}")


class Full(Exception):
    """The recording has reached its maximum size."""


class Destination:
    """The destination of a recording, named `place`. `written` is how many bytes were appended to it.

    The recording ends with Full before more than `max_bytes` are there, if that is not None.
    """

    def __init__(self, place: str, max_bytes: int | None) -> None:
        self.place = place
        self.written = 0
        self._max_bytes = max_bytes
        self._sink = Sink(self._append)

    def sink_at(self, wall_ns: int) -> Sink:  # noqa: ARG002 - for files that begin at some time
        """Return the sink for what was read at this time. Raise NettopError if a file cannot be written."""
        return self._sink

    def close(self) -> None:
        """Close the files."""

    def _append(self, content: bytes) -> None:
        if self._max_bytes is not None and self._sink.size + len(content) > self._max_bytes:
            raise Full
        self._put(content)
        self.written += len(content)

    def _put(self, content: bytes) -> None:
        """Append all of it, or raise NettopError."""
        raise NotImplementedError


def file_name(host: str, wall_ns: int) -> str:
    """Return the name of a recording of this host that begins at this time."""
    begun = datetime.fromtimestamp(wall_ns // _SECOND_NS, UTC)
    return f"nettop-{_UNSAFE.sub('_', host) or '_'}-{begun.strftime(_TIME)}{SUFFIX}"


class OneFile(Destination):
    """A file.

    A recording that is there already is continued, unless `continues` is false. Raise NettopError if the file is
    something else, if another nettop is recording to it, or if it cannot be written.
    """

    def __init__(self, path: Path, max_bytes: int | None = None, *, continues: bool = True) -> None:
        super().__init__(str(path), max_bytes)
        with writing(self.place, "choose another FILE"):
            self._descriptor, self._sink = _opened(self.place, self._append)
        if self._sink.size and not continues:
            self.close()
            raise NettopError(
                f"{path} is a recording already, and what --redact replaces in it would be replaced otherwise",
                "choose another FILE, or remove this one",
            )
        if max_bytes is not None and self._sink.size >= max_bytes:
            self.close()
            raise NettopError(
                f"{path} already has {self._sink.size:,} bytes", "raise --max-size, or choose another FILE"
            )

    def close(self) -> None:
        """Close the file; remove it if it is empty."""
        _close(self._descriptor, self.place)

    def _put(self, content: bytes) -> None:
        with writing(self.place, _REMEDY):
            _append(self._descriptor, content)


class _Old(NamedTuple):
    """An earlier recording in a directory; it began this many seconds after 1970."""

    begun_s: float
    name: str
    size: int


class HourlyFiles(Destination):
    """A directory, with a file for each hour that is named by the host and the time at which it begins.

    The oldest files are removed: those that ended more than `max_age_s` ago, and others while all have more than
    `max_bytes`. Other files are left alone. Raise NettopError if another nettop is recording to the directory, or if it
    cannot be written.
    """

    def __init__(self, path: Path, host: str, max_bytes: int, max_age_s: float) -> None:
        super().__init__(str(path), None)
        self._host = host
        self._kept_bytes = max_bytes
        self._max_age_s = max_age_s
        self._old: deque[_Old] = deque()
        self._old_bytes = 0
        self._name, self._hour = "", -1
        self._descriptor = -1
        with writing(self.place, "choose another directory"):
            path.mkdir(_DIRECTORY_MODE, parents=True, exist_ok=True)
            self._directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                lock(self._directory, _HOLDER)
                self._begin(time.time_ns())
            except BaseException:
                self.close()
                raise

    def sink_at(self, wall_ns: int) -> Sink:
        """Return the sink of the file for this time, the next one after an hour or if the file has become large."""
        is_large = self._sink.size * _PARTS >= self._kept_bytes
        if wall_ns // (HOUR_S * _SECOND_NS) != self._hour or is_large:
            with writing(self.place, _REMEDY):
                self._begin(wall_ns)
        return self._sink

    def close(self) -> None:
        """Close the file and the directory; remove the file if it is empty."""
        self._close_file()
        os.close(self._directory)

    def _begin(self, wall_ns: int) -> None:
        """Begin or continue the file for this time."""
        name = file_name(self._host, wall_ns)
        self._hour = wall_ns // (HOUR_S * _SECOND_NS)
        if name == self._name:
            return
        self._close_file()
        self._descriptor, self._sink = _opened(name, self._append, self._directory)
        self._name = name
        self._old = deque(sorted(self._find_old()))
        self._old_bytes = sum(old.size for old in self._old)
        expired_s = wall_ns / _SECOND_NS - self._max_age_s - HOUR_S
        while self._old and self._old[0].begun_s < expired_s:
            self._remove_oldest()

    def _find_old(self) -> list[_Old]:
        found = []
        with os.scandir(self._directory) as entries:
            for entry in entries:
                match = _NAME.fullmatch(entry.name)
                if match and entry.name != self._name and entry.is_file(follow_symlinks=False):
                    begun = datetime.strptime(match[1], _TIME).replace(tzinfo=UTC)
                    found.append(_Old(begun.timestamp(), entry.name, entry.stat().st_size))
        return found

    def _remove_oldest(self) -> None:
        oldest = self._old.popleft()
        self._old_bytes -= oldest.size
        with suppress(FileNotFoundError):
            os.unlink(oldest.name, dir_fd=self._directory)

    def _put(self, content: bytes) -> None:
        with writing(os.path.join(self.place, self._name), _REMEDY):
            while self._old and self._old_bytes + self._sink.size + len(content) > self._kept_bytes:
                self._remove_oldest()
            _append(self._descriptor, content)

    def _close_file(self) -> None:
        if self._descriptor >= 0:
            _close(self._descriptor, self._name, self._directory)
            self._descriptor = -1


class Output(Destination):
    """Standard output. Once the end is requested, writing fails if its reader has stalled."""

    def __init__(self, stdout: TextIO, requests: Requests, max_bytes: int | None = None) -> None:
        super().__init__("standard output", max_bytes)
        self._stdout = stdout
        self._requests = requests

    def _put(self, content: bytes) -> None:
        write_output(self._stdout, content, requests=self._requests)


# --- files ------------------------------------------------------------------------------------------------------


def _opened(name: str, append: Callable[[bytes], None], directory: int | None = None) -> tuple[int, Sink]:
    """Open and lock a file; return its descriptor, and a sink that continues its recording. Raise OSError."""
    try:
        descriptor = os.open(name, _FLAGS, _FILE_MODE, dir_fd=directory)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise OSError(errno.ELOOP, "it is a symbolic link") from error
        raise
    try:
        lock_file(descriptor, _HOLDER)
        return descriptor, _continued(descriptor, append)
    except BaseException:
        os.close(descriptor)
        raise


def _continued(descriptor: int, append: Callable[[bytes], None]) -> Sink:
    """Return a sink that continues the recording in a file, without its incomplete last chunk.

    Raise OSError if the file has something else.
    """
    recorded = RecordedFile(descriptor)
    if recorded.groups:
        end = recorded.end_of(len(recorded.groups) - 1)
        if _ends_early(descriptor, end):  # what is damaged otherwise stays: a newer nettop may read it
            os.ftruncate(descriptor, end)
        return Sink(append, recorded.size, recorded.groups[-1].at)
    if recorded.size and not _ends_early(descriptor, 0):
        why = next(iter(recorded.damage.values()), "it does not begin like one")
        raise OSError(errno.EINVAL, f"it is no recording: {why}")
    os.ftruncate(descriptor, 0)
    return Sink(append)


def _ends_early(descriptor: int, at: int) -> bool:
    """Return whether a file ends within the chunk that begins there."""
    content = os.pread(descriptor, HEAD_BYTES + PAYLOAD_MAX, at)
    if content[: len(MARKER)] != MARKER[: len(content)]:
        return False
    try:
        read_head(content[:HEAD_BYTES]).complete(content[HEAD_BYTES:])
    except Incomplete:
        return True
    except Damaged:
        return False
    return False


def _close(descriptor: int, name: str, directory: int | None = None) -> None:
    """Close a file, and remove it if nothing was recorded."""
    if not os.fstat(descriptor).st_size:
        with suppress(OSError):
            os.unlink(name, dir_fd=directory)
    os.close(descriptor)


def _append(descriptor: int, content: bytes) -> None:
    """Append all of it to a file. Raise OSError and leave nothing of it if that fails."""
    size = os.fstat(descriptor).st_size
    try:
        write_all(descriptor, content)
    except BaseException:
        with suppress(OSError):
            os.ftruncate(descriptor, size)
        raise
