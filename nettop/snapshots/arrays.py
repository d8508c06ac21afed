# SPDX-License-Identifier: Apache-2.0
"""Fast operations on numpy rows: copies as bytes, and lookups in sorted keys."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from types import EllipsisType
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
Index = np.ndarray[Any, np.dtype[np.intp]]
Mask = np.ndarray[Any, np.dtype[np.bool_]]

_FEW_PER_ROW = 8
"""Numbers in a range of up to so many per row are counted; others are sorted, which takes longer."""


def positions(keys: Array, among: Array) -> Index:
    """Return the position of each key in the sorted `among`, or −1. Shape of `keys`."""
    if not (len(keys) and len(among)):
        return np.full(len(keys), -1, np.intp)
    if np.array_equal(keys, among):
        return np.arange(len(keys))
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
    parts = [part for column in columns for part in _parts(column)] if count else []
    places = np.zeros(count, np.intp)
    span = 1
    for part in parts:
        if (part != part[0]).any():
            codes = _codes(part)
            places = codes if span == 1 else _codes(places * (codes.max() + 1) + codes)
            span = int(places.max()) + 1
    firsts = np.zeros(min(span, count), np.intp)
    firsts[places[::-1]] = np.arange(count)[::-1]
    return firsts, places


def _parts(column: Array) -> list[Array]:
    """Return the fields of a structured column, or the parts of a column (n, …)."""
    if column.dtype.names:
        return [part for name in column.dtype.names for part in _parts(column[name])]
    return list(column.reshape(len(column), -1).T)


def _codes(values: Array) -> Index:
    """Return each value's index among the distinct values, in ascending order."""
    if values.dtype.kind == "b":
        values = values.view(np.uint8)
    low, high = values.min(), values.max()
    if values.dtype.kind not in "iu" or int(high) - int(low) >= _FEW_PER_ROW * len(values):
        return np.unique(values, return_inverse=True)[1].ravel()
    offsets = (values - low).astype(np.intp)
    is_used = np.zeros(int(high) - int(low) + 1, bool)
    is_used[offsets] = True
    used = np.flatnonzero(is_used)
    code_of = np.empty(len(is_used), np.intp)
    code_of[used] = np.arange(len(used))
    codes: Index = code_of[offsets]
    return codes


def sums_by_place(places: Index, numbers: Array, count: int) -> Array:
    """Sum unsigned numbers by their places, below `count`.

    Their halves are added as floats, exactly for up to 2²¹ numbers; np.add.at takes ten times as long.
    """
    numbers = numbers.astype(np.uint64)
    halves = numbers >> np.uint64(32), numbers & np.uint64(0xFFFF_FFFF)
    high, low = (np.bincount(places, half, count).astype(np.uint64) for half in halves)
    return (high << np.uint64(32)) + low


def as_list(column: Array) -> list[Any]:
    """Convert one column, or rows, to native Python types."""
    values: list[Any] = column.tolist()
    return values


def take_rows(rows: Array, at: Index | Mask) -> Array:
    """Copy the rows at these positions, or of this mask."""
    return _as_bytes(rows)[at].view(rows.dtype)


def copy_columns(
    rows: Array,
    source: Array,
    names: Iterable[str],
    to: Index | Mask | EllipsisType = ...,
    of: Index | Mask | EllipsisType = ...,
) -> None:
    """Copy the values of these columns `of` some rows of the source, or of all, `to` some rows, or to all."""
    for name in names:
        rows[name][to] = source[name][of]


def concatenate_rows(first: Array, *others: Array) -> Array:
    """Concatenate rows of the same dtype."""
    return np.concatenate([_as_bytes(rows) for rows in (first, *others)]).view(first.dtype)


def insert_rows(rows: Array, at: Index, others: Array) -> Array:
    """Insert `others` before these positions."""
    return np.insert(_as_bytes(rows), at, _as_bytes(others)).view(rows.dtype)


def delete_rows(rows: Array, at: Index) -> Array:
    """Copy the rows without those at these positions."""
    return np.delete(_as_bytes(rows), at).view(rows.dtype)


def replace_rows(rows: Array, left: Index, came: Index) -> Array:
    """Copy the rows without those at `left`, with zeroed rows that get the positions `came`. Both ascend."""
    replaced = np.zeros(len(rows) - len(left) + len(came), rows.dtype)
    is_kept = np.ones(len(replaced), bool)
    is_kept[came] = False
    _as_bytes(replaced)[is_kept] = _as_bytes(delete_rows(rows, left))
    return replaced


def _as_bytes(rows: Array) -> Array:
    """View rows as opaque bytes. numpy copies structured rows field by field, 15 times slower, and concatenating them
    converts every field to native byte order."""
    return np.ascontiguousarray(rows).view(f"V{rows.dtype.itemsize}")
