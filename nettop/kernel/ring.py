# SPDX-License-Identifier: Apache-2.0
"""A BPF ring buffer read through its mapping: records are returned as one array, without a loop over them.

Layout (kernel/bpf/ringbuf.c): a page that the reader writes its position to, a page with the writer's, then the
data, mapped twice in a row so that no record is split. A record is 8 bytes of header, whose first word is
the length and two flags, and the data; both rounded up to 8 bytes.
"""

from __future__ import annotations

import mmap
import struct
from typing import Any

import numpy as np

from nettop.errors import SourceFailed
from nettop.snapshots.snapshot import Array

BUSY, DISCARDED = 1 << 31, 1 << 30
HEADER_BYTES = 8


class Ring:
    """A ring whose records all have one dtype. Reading it needs no capability."""

    def __init__(self, map_fd: int, size: int, dtype: np.dtype[Any]) -> None:
        self.descriptor = map_fd
        self._size = size
        self._dtype = dtype
        self._reader = mmap.mmap(map_fd, mmap.PAGESIZE)
        self._writer = mmap.mmap(map_fd, mmap.PAGESIZE + 2 * size, prot=mmap.PROT_READ, offset=mmap.PAGESIZE)
        self._data = np.frombuffer(self._writer, np.uint8, 2 * size, mmap.PAGESIZE)

    def read(self) -> Array:
        """A copy of what was written since the last call; records still being written come later."""
        at, end = _position(self._reader), _position(self._writer)
        records, used = committed(self._data, at % self._size, end - at, self._dtype)
        struct.pack_into("=Q", self._reader, 0, at + used)
        return records

    @property
    def filled(self) -> float:
        """The share of the ring that waits to be read."""
        return (_position(self._writer) - _position(self._reader)) / self._size

    def close(self) -> None:
        """Unmap; a second call does nothing."""
        if not self._reader.closed:
            del self._data
            self._reader.close()
            self._writer.close()


def committed(data: Array, start: int, length: int, dtype: np.dtype[Any]) -> tuple[Array, int]:
    """Copies of the records in `length` bytes of `data` from `start`, up to the first that is still being
    written, and how many bytes they and the discarded ones between them take.

    Raises SourceFailed when a record has another size than `dtype`.
    """
    stride = HEADER_BYTES + -(-dtype.itemsize // 8) * 8
    slots = data[start : start + length // stride * stride].reshape(-1, stride)
    headers = slots[:, :4].copy().view(np.uint32)[:, 0]  # read before the data, which was written before them
    busy = np.flatnonzero(headers & BUSY)
    done = headers[: busy[0]] if len(busy) else headers
    if (done & ~np.uint32(DISCARDED) != dtype.itemsize).any():
        raise SourceFailed("a record of the ring has an unknown size", "please report this as a bug")
    discarded = done & DISCARDED != 0
    kept = slots[: len(done)][~discarded] if discarded.any() else slots[: len(done)]
    records = kept[:, HEADER_BYTES : HEADER_BYTES + dtype.itemsize].copy()
    return records.view(dtype)[:, 0], len(done) * stride


def _position(page: mmap.mmap) -> int:
    position: int = struct.unpack_from("=Q", page, 0)[0]
    return position
