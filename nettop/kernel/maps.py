# SPDX-License-Identifier: Apache-2.0
"""BPF maps read and written as arrays (commands and layouts: include/uapi/linux/bpf.h)."""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import sys
from functools import cache
from typing import Any

import numpy as np

from nettop.kernel import bpf
from nettop.kernel.proc_files import read_required
from nettop.snapshots.arrays import joined
from nettop.snapshots.snapshot import Array

_MAP_LOOKUP_ELEM = 1
_MAP_LOOKUP_AND_DELETE_ELEM = 21
_MAP_LOOKUP_BATCH = 24
_MAP_DELETE_BATCH = 27
_COUNT_AT = 32
"""The offset of `count` in the attributes of a batch."""
_AT_ONCE = 4096


@cache
def possible_cpus() -> int:
    """Return how many elements a per-CPU map has for each key. Raises Unsupported where /sys hides it."""
    last = read_required("/sys/devices/system/cpu/possible").strip().replace(",", "-").rpartition("-")[2]
    return int(last) + 1


def read_per_cpu(map_fd: int, index: int, dtype: np.dtype[Any]) -> Array:
    """Element `index` of a per-CPU array: one value of `dtype` for each possible CPU."""
    values = np.zeros(possible_cpus(), dtype)
    key = ctypes.create_string_buffer(index.to_bytes(4, sys.byteorder), 4)
    bpf.command(
        _MAP_LOOKUP_ELEM, struct.pack("=I4xQQQ", map_fd, ctypes.addressof(key), values.ctypes.data, 0)
    )
    return values


def read_each(map_fd: int, keys: Array, dtype: np.dtype[Any], *, delete: bool = False) -> tuple[Array, Array]:
    """The elements with these keys, and which of them exist. One by one, as batches follow the map's own order.

    With `delete` each is deleted in the same step; a hash table before Linux 5.14 refuses that as if none existed.
    """
    command = _MAP_LOOKUP_AND_DELETE_ELEM if delete else _MAP_LOOKUP_ELEM
    keys = np.ascontiguousarray(keys)
    values = np.zeros(len(keys), dtype)
    attributes = struct.Struct("=I4xQQQ").pack
    addresses = (
        (keys.ctypes.data + at * keys.itemsize, values.ctypes.data + at * dtype.itemsize)
        for at in range(len(keys))
    )
    exists = (bpf.try_command(command, attributes(map_fd, *address, 0))[0] == 0 for address in addresses)
    return values, np.fromiter(exists, bool, len(keys))


def read_all(map_fd: int, keys: np.dtype[Any], values: np.dtype[Any]) -> tuple[Array, Array]:
    """Every key and value of a map, in the same order. What changes meanwhile may be included or not."""
    batches: list[tuple[Array, Array]] = []
    cursor = ctypes.create_string_buffer(max(8, keys.itemsize))
    at_once, ended = _AT_ONCE, False
    while not ended:
        some_keys, some_values = np.zeros(at_once, keys), np.zeros(at_once, values)
        given = ctypes.addressof(cursor) if batches else 0
        attributes = _batch(map_fd, some_keys, some_values, given=given, next_at=ctypes.addressof(cursor))
        _, error, left = bpf.try_command(_MAP_LOOKUP_BATCH, attributes)
        if error == errno.ENOSPC:  # one bucket holds more than fits
            at_once *= 2
            continue
        ended = error == errno.ENOENT
        if error and not ended:
            raise OSError(error, f"bpf(2) command {_MAP_LOOKUP_BATCH}: {os.strerror(error)}")
        count = _count(left)
        batches.append((some_keys[:count], some_values[:count]))
    return joined(*(batch[0] for batch in batches)), joined(*(batch[1] for batch in batches))


def delete_all(map_fd: int, keys: Array) -> None:
    """Delete these elements. The kernel stops at a key that no longer exists; deletion then continues after it."""
    keys = np.ascontiguousarray(keys)
    at = 0
    while at < len(keys):
        _, error, left = bpf.try_command(_MAP_DELETE_BATCH, _batch(map_fd, keys[at:], keys[at:]))
        if error not in (0, errno.ENOENT):
            raise OSError(error, f"bpf(2) command {_MAP_DELETE_BATCH}: {os.strerror(error)}")
        at += _count(left) + 1


def _batch(map_fd: int, keys: Array, values: Array, *, given: int = 0, next_at: int = 0) -> bytes:
    addresses = (given, next_at, keys.ctypes.data, values.ctypes.data)
    return struct.pack("=QQQQIIQQ", *addresses, len(keys), map_fd, 0, 0)


def _count(attributes: bytes) -> int:
    count: int = struct.unpack_from("=I", attributes, _COUNT_AT)[0]
    return count
