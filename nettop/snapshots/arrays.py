# SPDX-License-Identifier: Apache-2.0
"""Fast operations on numpy rows: copies as bytes, and lookups in sorted keys."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
Index = np.ndarray[Any, np.dtype[np.intp]]
Mask = np.ndarray[Any, np.dtype[np.bool_]]


def positions(keys: Array, among: Array) -> Index:
    """Return the position of each key in the sorted `among`, or −1. Shape of `keys`."""
    if not len(among):
        return np.full(len(keys), -1, np.intp)
    among = np.ascontiguousarray(among)
    at = np.minimum(np.searchsorted(among, keys), len(among) - 1)
    return np.where(among[at] == keys, at, -1)


def growth(now: Array, before: Array) -> Array:
    """Return the growth of counters. A counter that went back has restarted at 0."""
    return np.where(now >= before, now - before, now)


def is_uniform(keys: Array, values: Array) -> Mask:
    """Return for each of the sorted `keys` whether all its rows have the same value, ignoring unknown ones (the
    dtype's maximum)."""
    if not len(keys):
        return np.zeros(0, bool)
    starts = np.flatnonzero(np.append(True, keys[1:] != keys[:-1]))
    least = np.minimum.reduceat(values, starts)
    most = np.maximum.reduceat(np.where(values == np.iinfo(values.dtype).max, 0, values), starts)
    same: Mask = np.repeat(least >= most, np.diff(np.append(starts, len(keys))))
    return same


def distinct_rows(columns: Sequence[Array]) -> tuple[Index, Index]:
    """Return the first row of each distinct combination of the columns' values (n, …), and each row's index into
    these (n,)."""
    count = len(columns[0])
    as_bytes = [np.ascontiguousarray(column).view(np.uint8).reshape(count, -1) for column in columns if count]
    if not as_bytes:
        return np.zeros(0, np.intp), np.zeros(0, np.intp)
    together = np.concatenate(as_bytes, axis=1)
    rows = together.view(f"V{together.shape[1]}").ravel()
    _, firsts, places = np.unique(rows, return_index=True, return_inverse=True)
    return firsts, places


def as_list(column: Array) -> list[Any]:
    """Convert one column, or rows, to native Python types."""
    values: list[Any] = column.tolist()
    return values


def take_rows(rows: Array, at: Index | Mask) -> Array:
    """Copy the rows at these positions, or of this mask."""
    return _as_bytes(rows)[at].view(rows.dtype)


def concatenate_rows(first: Array, *others: Array) -> Array:
    """Concatenate rows of the same dtype."""
    return np.concatenate([_as_bytes(rows) for rows in (first, *others)]).view(first.dtype)


def insert_rows(rows: Array, at: Index, others: Array) -> Array:
    """Insert `others` before these positions."""
    return np.insert(_as_bytes(rows), at, _as_bytes(others)).view(rows.dtype)


def _as_bytes(rows: Array) -> Array:
    """View rows as opaque bytes. numpy copies structured rows field by field, 15 times slower, and concatenating them
    converts every field to native byte order."""
    return np.ascontiguousarray(rows).view(f"V{rows.dtype.itemsize}")
