# SPDX-License-Identifier: Apache-2.0
"""A BPF ring buffer read through its mapping: records are returned as one array, without looping over them.

Layout (kernel/bpf/ringbuf.c): a page with the consumer position, a page with the producer position, then the data,
mapped twice back to back so that no record is split. A record is an 8-byte header, whose first word holds the length
and two flags, then the data, padded to 8 bytes. (libbpf's ring_buffer calls back for each record.)
"""

from __future__ import annotations

import mmap
import struct
from typing import Any

import numpy as np

from nettop.errors import SourceFailed
from nettop.snapshots.arrays import Array

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
        """Return a copy of the records committed since the last call; later ones wait behind a record being written."""
        at, end = _position(self._reader), _position(self._writer)
        records, used = committed_records(self._data, at % self._size, end - at, self._dtype)
        struct.pack_into("=Q", self._reader, 0, at + used)
        return records

    @property
    def fill_ratio(self) -> float:
        """Share of the ring that is unread."""
        return (_position(self._writer) - _position(self._reader)) / self._size

    def close(self) -> None:
        """Unmap; a second call is a no-op."""
        if not self._reader.closed:
            del self._data
            self._reader.close()
            self._writer.close()


def committed_records(data: Array, start: int, length: int, dtype: np.dtype[Any]) -> tuple[Array, int]:
    """Copy the records in `length` bytes of `data` from `start`, up to the first that is still being written; return
    them and the bytes consumed, including discarded records.

    Raise SourceFailed if a record's size differs from `dtype`.
    """
    stride = HEADER_BYTES + -(-dtype.itemsize // 8) * 8
    slots = data[start : start + length // stride * stride].reshape(-1, stride)
    headers = slots[:, :4].copy().view(np.uint32)[:, 0]  # before the data: the kernel writes the header last
    busy = np.flatnonzero(headers & BUSY)
    done = headers[: busy[0]] if len(busy) else headers
    if (done & ~np.uint32(DISCARDED) != dtype.itemsize).any():
        raise SourceFailed("a ring buffer record has an unexpected size", "please report this as a bug")
    discarded = done & DISCARDED != 0
    kept = slots[: len(done)][~discarded] if discarded.any() else slots[: len(done)]
    records = kept[:, HEADER_BYTES : HEADER_BYTES + dtype.itemsize].copy()
    return records.view(dtype)[:, 0], len(done) * stride


def _position(page: mmap.mmap) -> int:
    position: int = struct.unpack_from("=Q", page, 0)[0]
    return position
