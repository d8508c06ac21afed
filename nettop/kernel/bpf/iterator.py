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
    """Room for the rows of an iterator, which grows as needed. Only what was read takes memory, while it is used."""

    def __init__(self) -> None:
        self._size = 256 << 10

    def fill(self, descriptor: int, dtype: np.dtype[Any]) -> Array:
        """Read `descriptor` to its end as rows of `dtype`."""
        filled, used = np.empty(self._size, np.uint8), 0
        while count := os.readv(descriptor, [filled[used : used + _READ_BYTES].data]):
            used += count
            if self._size - used < _READ_BYTES:
                self._size *= 2
                grown = np.empty(self._size, np.uint8)
                grown[:used] = filled[:used]  # the rest stays untouched, and takes no memory
                filled = grown
        return filled[: used // dtype.itemsize * dtype.itemsize].view(dtype)


class Iterator:
    """A linked iterator program. Reading needs no capability; closing the link detaches the program."""

    def __init__(self, program: int, dtype: np.dtype[Any], table: int | None = None) -> None:
        """Link the program; given a map `table`, iterate over its elements."""
        self._dtype = dtype
        self._link = bpf.link(program, bpf.TRACE_ITER, table=table)

    def read(self, buffer: RowBuffer) -> Array:
        """Read all current rows of the kernel's table into `buffer`.

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
