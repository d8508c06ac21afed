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
_FIRST_ROOM = 256 << 10
"""Bytes of room for the rows of a first reading; it doubles as needed, and stays for the next."""


class Iterator:
    """A linked iterator program. Reading needs no capability; closing the link detaches the program."""

    def __init__(self, program: int, dtype: np.dtype[Any], table: int | None = None) -> None:
        """Link the program; given a map `table`, iterate over its elements."""
        self._dtype = dtype
        self._room = _FIRST_ROOM
        self._link = bpf.link(program, bpf.TRACE_ITER, table=table)

    def read(self) -> Array:
        """Read all current rows of the kernel's table; one call at a time.

        A socket iterator walks the network namespace of the calling thread.
        """
        descriptor = bpf.call("bpf_iter_create", self._link)
        try:
            return self._read_to_end(descriptor)
        finally:
            os.close(descriptor)

    def _read_to_end(self, descriptor: int) -> Array:
        filled, used = np.empty(self._room, np.uint8), 0
        while count := os.readv(descriptor, [filled[used : used + _READ_BYTES].data]):
            used += count
            if self._room - used < _READ_BYTES:
                self._room *= 2
                grown = np.empty(self._room, np.uint8)
                grown[:used] = filled[:used]  # the rest stays untouched, and takes no memory
                filled = grown
        return filled[: used // self._dtype.itemsize * self._dtype.itemsize].view(self._dtype)

    def close(self) -> None:
        """Detach; a second call is a no-op."""
        if self._link >= 0:
            os.close(self._link)
            self._link = -1
