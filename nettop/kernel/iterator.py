# SPDX-License-Identifier: Apache-2.0
"""BPF iterators: the kernel walks one of its tables and writes a row for each object."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from nettop.kernel import bpf
from nettop.snapshots.snapshot import Array

_READ_BYTES = 64 << 10
"""The kernel fills a buffer of 32 KiB and copies that; a larger read would return no more."""


class RowBuffer:
    """Memory that iterators are read into repeatedly; it grows when a reading does not fit."""

    def __init__(self, size: int = 256 << 10) -> None:
        self._bytes = bytearray(size)

    def fill(self, descriptor: int, dtype: np.dtype[Any]) -> Array:
        """Read `descriptor` to its end as rows of `dtype`. They are valid until the next call."""
        used = 0
        while True:
            if len(self._bytes) - used < _READ_BYTES:
                self._bytes = self._bytes + bytes(len(self._bytes))
            with memoryview(self._bytes) as view, view[used : used + _READ_BYTES] as free:
                count = os.readv(descriptor, [free])
            if not count:
                break
            used += count
        return np.frombuffer(self._bytes, dtype, used // dtype.itemsize)


class Iterator:
    """A linked iterator program. Reading it needs no capability; closing the link detaches it."""

    def __init__(self, program: int, dtype: np.dtype[Any], table: int | None = None) -> None:
        """With `table`, a map, the iterator is one over its elements."""
        self._dtype = dtype
        self._link = bpf.link(program, bpf.TRACE_ITER) if table is None else bpf.link_to_map(program, table)

    def read(self, buffer: RowBuffer) -> Array:
        """Every row of the kernel's table now; in `buffer`, valid until the buffer's next use.

        An iterator over sockets walks the network namespace of the calling thread.
        """
        descriptor = bpf.create_iterator(self._link)
        try:
            return buffer.fill(descriptor, self._dtype)
        finally:
            os.close(descriptor)

    def close(self) -> None:
        """Detach; a second call does nothing."""
        if self._link >= 0:
            os.close(self._link)
            self._link = -1
