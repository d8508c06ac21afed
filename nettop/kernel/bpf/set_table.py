# SPDX-License-Identifier: Apache-2.0
"""Set-associative tables that programs write and nettop reads in place. An entry starts with its key and has the times
when the key was first and last seen. Each CPU has its own sets, so several entries may have the same key.
"""

from __future__ import annotations

import mmap
from typing import Any

import numpy as np

from nettop.kernel.bpf import maps
from nettop.snapshots.arrays import Array, Index, take_rows

_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


def partition(entries: int, set_entries: int) -> tuple[int, int]:
    """Return the number of sets in each partition of a table for this many entries, and of partitions: one per CPU."""
    parts = maps.possible_cpus()
    return max(1, entries // set_entries // parts), parts


class SetTable:
    """A map of entries of `dtype`, mapped into memory until closed. An entry whose `last_seen` is 0 is free."""

    def __init__(self, map_fd: int, entries: int, dtype: np.dtype[Any], key: np.dtype[Any]) -> None:
        self._entries, self._dtype, self._key = entries, dtype, key
        self._memory = mmap.mmap(map_fd, entries * dtype.itemsize, mmap.MAP_SHARED, mmap.PROT_READ)

    def read(self) -> tuple[Array, Array, Index]:
        """Read the entries in use; return them as `group_by_key` does.

        Skips an entry that was reassigned to another key while being copied; the next read has it.
        """
        shared = np.frombuffer(self._memory, self._dtype, self._entries)
        at = np.flatnonzero(shared["last_seen"])
        entries = take_rows(shared, at)
        again = take_rows(shared, at)
        is_same = entries["first_seen"] == again["first_seen"]
        del shared
        return group_by_key(take_rows(entries, np.flatnonzero(is_same)), self._key)

    def close(self) -> None:
        """Unmap the table."""
        self._memory.close()


def group_by_key(entries: Array, key: np.dtype[Any]) -> tuple[Array, Array, Index]:
    """Return the entries grouped by key, the hash of each entry's key, and the index at which each key starts."""
    hashes = key_hashes(entries, key)
    order = np.argsort(hashes, kind="stable")
    hashes = hashes[order]
    return take_rows(entries, order), hashes, np.flatnonzero(np.diff(hashes, prepend=~hashes[:1]))


def key_hashes(entries: Array, key: np.dtype[Any]) -> Array:
    """Return a hash of each entry's key, which consists of whole words."""
    size = entries.dtype.itemsize
    keys = np.ascontiguousarray(entries).view(np.uint8).reshape(len(entries), size)[:, : key.itemsize]
    words = np.ascontiguousarray(keys).view(np.uint64).reshape(len(entries), key.itemsize // 8)
    hashes = np.zeros(len(entries), np.uint64)
    for column in words.T:
        hashes = mix(hashes, column)
    return hashes


def mix(hashes: Array, column: Array) -> Array:
    """Mix each value of a column into the hash of the same row."""
    product = (hashes ^ column) * _MULTIPLIER
    mixed: Array = product ^ product >> np.uint64(32)
    return mixed
