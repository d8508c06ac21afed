# SPDX-License-Identifier: Apache-2.0
"""Set-associative tables that programs write and nettop reads in place: entries that begin with their key and say when
they were first and last seen. Each CPU has sets of its own, so a key may be in several entries.
"""

from __future__ import annotations

import mmap
from typing import Any

import numpy as np

from nettop.snapshots.arrays import Index, take
from nettop.snapshots.snapshot import Array

_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


class SetTable:
    """A map of entries of `dtype`, mapped into memory until this is closed. Where `last_seen` is 0 an entry is free."""

    def __init__(self, map_fd: int, entries: int, dtype: np.dtype[Any], key: np.dtype[Any]) -> None:
        self._entries, self._dtype, self._key = entries, dtype, key
        self._memory = mmap.mmap(map_fd, entries * dtype.itemsize, mmap.MAP_SHARED, mmap.PROT_READ)

    def read(self) -> tuple[Array, Array, Index]:
        """The entries in use now, as `by_key` gives them.

        An entry that was given to another key while it was copied is left out: the next reading has it.
        """
        shared = np.frombuffer(self._memory, self._dtype, self._entries)
        at = np.flatnonzero(shared["last_seen"])
        entries = take(shared, at)
        again = take(shared, at)
        is_same = entries["first_seen"] == again["first_seen"]
        del shared
        return by_key(take(entries, np.flatnonzero(is_same)), self._key)

    def close(self) -> None:
        """Unmap the table."""
        self._memory.close()


def by_key(entries: Array, key: np.dtype[Any]) -> tuple[Array, Array, Index]:
    """The entries, those of one key side by side; a hash of each one's key; and where each key begins."""
    hashes = hashes_of(entries, key)
    order = np.argsort(hashes, kind="stable")
    hashes = hashes[order]
    return take(entries, order), hashes, np.flatnonzero(np.diff(hashes, prepend=~hashes[:1]))


def hashes_of(entries: Array, key: np.dtype[Any]) -> Array:
    """A number made of each entry's key, which is whole words at its beginning."""
    size = entries.dtype.itemsize
    keys = np.ascontiguousarray(entries).view(np.uint8).reshape(len(entries), size)[:, : key.itemsize]
    words = np.ascontiguousarray(keys).view(np.uint64).reshape(len(entries), key.itemsize // 8)
    hashes = np.zeros(len(entries), np.uint64)
    for column in words.T:
        hashes = mixed(hashes, column)
    return hashes


def mixed(hashes: Array, column: Array) -> Array:
    """Numbers made of each number and of a column's value beside it."""
    product = (hashes ^ column) * _MULTIPLIER
    mixed: Array = product ^ product >> np.uint64(32)
    return mixed
