# SPDX-License-Identifier: Apache-2.0
"""BPF iterators: the kernel walks one of its tables and writes a row for each object."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from nettop.kernel import bpf_syscall as bpf
from nettop.snapshots.arrays import Array

_READ_BYTES = 64 << 10
"""The kernel fills and copies a 32 KiB buffer; a larger read would return no more."""


class RowBuffer:
    """A reusable buffer for reading iterators; grows as needed."""

    def __init__(self, size: int = 256 << 10) -> None:
        self._bytes = np.empty(size, np.uint8)

    def fill(self, descriptor: int, dtype: np.dtype[Any]) -> Array:
        """Read `descriptor` to its end as rows of `dtype`, valid until the next call."""
        used = 0
        while True:
            if len(self._bytes) - used < _READ_BYTES:
                smaller, self._bytes = self._bytes, np.empty(2 * len(self._bytes), np.uint8)
                self._bytes[:used] = smaller[:used]
            count = os.readv(descriptor, [self._bytes[used : used + _READ_BYTES].data])
            if not count:
                break
            used += count
        return self._bytes[: used - used % dtype.itemsize].view(dtype)


class Iterator:
    """A linked iterator program. Reading needs no capability; closing the link detaches the program."""

    def __init__(self, program: int, dtype: np.dtype[Any], table: int | None = None) -> None:
        """Link the program; given a map `table`, iterate over its elements."""
        self._dtype = dtype
        self._link = bpf.link(program, bpf.TRACE_ITER, table=table)

    def read(self, buffer: RowBuffer) -> Array:
        """Read all current rows of the kernel's table into `buffer`, valid until its next use.

        A socket iterator walks the network namespace of the calling thread.
        """
        descriptor = bpf.call("bpf_iter_create", self._link)
        try:
            return buffer.fill(descriptor, self._dtype)
        finally:
            os.close(descriptor)

    def close(self) -> None:
        """Detach; a second call is a no-op."""
        if self._link >= 0:
            os.close(self._link)
            self._link = -1
