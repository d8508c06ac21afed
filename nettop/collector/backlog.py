# SPDX-License-Identifier: Apache-2.0
"""A disk queue that extends the socket buffers, for datagrams that arrive faster than the worker decodes them.

It is a directory of small files, oldest first. Each record holds the number of datagrams and bytes, the metadata of
each datagram, and their content. The worker reads a file once, as a whole, and removes it before decoding its
datagrams.
"""

from __future__ import annotations

import os
import struct
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nettop.collector.columns import ADDRESS
from nettop.collector.decode.datagrams import Datagrams
from nettop.collector.files import make_directory
from nettop.errors import SourceFailed
from nettop.snapshots.arrays import Array, as_list

FILE_BYTES = 1 << 20
"""Maximum size of a file before a new one is begun. Decoding it takes less time than filling the socket buffers."""
_SUFFIX = ".datagrams"
_RECORD = struct.Struct("<II")
_DATAGRAM = np.dtype([("length", "u4"), ("sender", ADDRESS), ("port", "u2"), ("received_ns", "i8")])


@dataclass(slots=True)
class _File:
    path: Path
    datagrams: int = 0
    bytes: int = 0


class Backlog:
    """Queue of one worker. It starts with the datagrams that an earlier worker left in the directory."""

    def __init__(self, directory: Path, max_bytes: int) -> None:
        """Create the directory if it is missing. Raise UsageError if that fails."""
        self._directory, self._max_bytes = directory, max_bytes
        make_directory(directory, "datagrams")
        self._files = deque(_known(path) for path in sorted(directory.glob(f"*{_SUFFIX}")))
        self._bytes = sum(file.bytes for file in self._files)
        self._number = int(self._files[-1].path.stem) if self._files else 0

    @property
    def datagrams(self) -> int:
        """Number of waiting datagrams."""
        return sum(file.datagrams for file in self._files)

    @property
    def is_empty(self) -> bool:
        """Whether no datagrams are waiting."""
        return not self._files

    @property
    def is_full(self) -> bool:
        """Whether there is no room for more."""
        return self._bytes >= self._max_bytes

    def put(self, datagrams: Datagrams) -> bool:
        """Append datagrams; return False if they cannot be written."""
        record = _record(datagrams)
        if not self._files or self._files[-1].bytes >= FILE_BYTES:
            self._number += 1
            self._files.append(_File(self._directory / f"{self._number:012}{_SUFFIX}"))
        file = self._files[-1]
        try:
            with file.path.open("ab") as stream:
                stream.write(record)
        except OSError:
            with suppress(OSError):
                os.truncate(file.path, file.bytes)
            if not file.bytes:
                self._files.pop()
            return False
        file.datagrams += len(datagrams.starts)
        file.bytes += len(record)
        self._bytes += len(record)
        return True

    def take(self) -> Datagrams:
        """Remove and return the oldest file's datagrams. Raise SourceFailed."""
        file = self._files.popleft()
        self._bytes -= file.bytes
        try:
            content = file.path.read_bytes()
            file.path.unlink()
        except OSError as error:
            raise SourceFailed(
                f"cannot read the datagrams in {file.path}: {error.strerror}", "remove that file"
            ) from error
        return _datagrams(content)


def _known(path: Path) -> _File:
    """Open a file left by an earlier process. Truncate an incomplete record, so that more can be appended."""
    datagrams = _datagrams(path.read_bytes())
    whole = int(datagrams.ends[-1]) if len(datagrams.starts) else 0
    os.truncate(path, whole)
    return _File(path, len(datagrams.starts), whole)


def _record(datagrams: Datagrams) -> bytes:
    known: Array = np.zeros(len(datagrams.starts), _DATAGRAM)
    known["length"], known["sender"] = datagrams.lengths, datagrams.senders
    known["port"], known["received_ns"] = datagrams.ports, datagrams.received_ns
    buffer = datagrams.buffer.data
    places = zip(as_list(datagrams.starts), as_list(datagrams.ends), strict=True)
    content = b"".join([buffer[start:end] for start, end in places])
    return b"".join((_RECORD.pack(len(known), len(content)), known.tobytes(), content))


def _datagrams(content: bytes) -> Datagrams:
    """Return the datagrams in a file, without an incomplete last record left by a killed process."""
    rows: list[Array] = [np.zeros(0, _DATAGRAM)]
    starts: list[Array] = [np.zeros(0, np.intp)]
    at = 0
    while at + _RECORD.size <= len(content):
        count, size = _RECORD.unpack_from(content, at)
        begin = at + _RECORD.size + count * _DATAGRAM.itemsize
        if begin + size > len(content):
            break
        rows.append(np.frombuffer(content, _DATAGRAM, count, at + _RECORD.size))
        lengths = rows[-1]["length"].astype(np.intp)
        starts.append(begin + np.cumsum(lengths) - lengths)
        at = begin + size
    known = np.concatenate(rows)
    return Datagrams(
        np.frombuffer(content, np.uint8),
        np.concatenate(starts),
        known["length"].astype(np.intp),
        *(np.ascontiguousarray(known[name]) for name in ("sender", "port", "received_ns")),
    )
