# SPDX-License-Identifier: Apache-2.0
"""BPF maps read and written as arrays."""

from __future__ import annotations

import ctypes
import errno
import sys
from functools import cache
from typing import Any

import numpy as np

from nettop.kernel import bpf_syscall as bpf
from nettop.kernel.host.proc_files import read_required
from nettop.snapshots.arrays import Array, concatenate_rows

_BATCH_SIZE = 4096
_NUMBER = np.dtype("u8")


@cache
def possible_cpus() -> int:
    """Return the number of values that a per-CPU map has for each key. Raise Unsupported if /sys does not show it.

    Does not use libbpf_num_possible_cpus, which cannot say what hides /sys.
    """
    last = read_required("/sys/devices/system/cpu/possible").strip().replace(",", "-").rpartition("-")[2]
    return int(last) + 1


def read_per_cpu(map_fd: int, index: int, dtype: np.dtype[Any]) -> Array:
    """Read element `index` of a per-CPU array: one value of `dtype` per possible CPU."""
    values = np.zeros(possible_cpus(), dtype)
    bpf.call("bpf_map_lookup_elem", map_fd, index.to_bytes(4, sys.byteorder), values.ctypes)
    return values


def sum_per_cpu(map_fd: int, index: int, dtype: np.dtype[Any] = _NUMBER) -> Array:
    """Read element `index` of a per-CPU array, summed over all CPUs: a zero-dimensional array of `dtype`."""
    return sum_last_axis(read_per_cpu(map_fd, index, dtype))


def sum_last_axis(values: Array) -> Array:
    """Return the sums over the last axis, such as that of the values of all CPUs."""
    sums: Array = np.zeros(values.shape[:-1], values.dtype)
    for name in values.dtype.names or (...,):
        sums[name] = values[name].sum(axis=values.ndim - 1, dtype=np.uint64)
    return sums


def read_each(map_fd: int, keys: Array, dtype: np.dtype[Any], *, delete: bool = False) -> tuple[Array, Array]:
    """Return the values of these keys, and which keys exist. Reads one by one: batches follow the map's own order.

    With `delete`, also delete each element atomically. Hash tables before Linux 5.14 refuse, as if no key existed.
    """
    library = bpf.libbpf()
    read = library.bpf_map_lookup_and_delete_elem if delete else library.bpf_map_lookup_elem
    keys = np.ascontiguousarray(keys)
    values = np.zeros(len(keys), dtype)
    addresses = (
        (keys.ctypes.data + at * keys.itemsize, values.ctypes.data + at * dtype.itemsize)
        for at in range(len(keys))
    )
    exists = (read(map_fd, *map(ctypes.c_void_p, address)) == 0 for address in addresses)
    return values, np.fromiter(exists, bool, len(keys))


def read_all(map_fd: int, keys: np.dtype[Any], values: np.dtype[Any]) -> tuple[Array, Array]:
    """Read all keys and values of a map, in the same order. May or may not include concurrent changes."""
    batches: list[tuple[Array, Array]] = []
    cursor = ctypes.create_string_buffer(max(8, keys.itemsize))
    batch_size, result = _BATCH_SIZE, 0
    while result != -errno.ENOENT:
        batch, count = (np.zeros(batch_size, keys), np.zeros(batch_size, values)), ctypes.c_uint32(batch_size)
        result = bpf.call(
            "bpf_map_lookup_batch", map_fd, cursor if batches else None, cursor, batch[0].ctypes, batch[1].ctypes,
            ctypes.byref(count), None, allowed=(errno.ENOSPC, errno.ENOENT),
        )  # fmt: skip
        if result == -errno.ENOSPC:  # one bucket holds more elements than fit
            batch_size *= 2
        else:
            batches.append((batch[0][: count.value], batch[1][: count.value]))
    return concatenate_rows(*(batch[0] for batch in batches)), concatenate_rows(
        *(batch[1] for batch in batches)
    )


def delete_all(map_fd: int, keys: Array) -> None:
    """Delete these elements. The kernel stops at a key that no longer exists; continue after it."""
    keys = np.ascontiguousarray(keys)
    at = 0
    while at < len(keys):
        count = ctypes.c_uint32(len(keys) - at)
        rest = keys[at:].ctypes
        bpf.call("bpf_map_delete_batch", map_fd, rest, ctypes.byref(count), None, allowed=(errno.ENOENT,))
        at += count.value + 1
