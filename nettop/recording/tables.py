# SPDX-License-Identifier: Apache-2.0
"""Tables of rows as bytes: which rows left, which came, and what changed in the others."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from nettop.recording.numbers import (
    Bytes,
    Damaged,
    read_column,
    read_places,
    write_column,
    write_number,
    write_places,
)
from nettop.snapshots.arrays import Array, positions

_LAST = 0xFF
"""Ends the list of changed columns."""
_NO_COLUMN = -1
"""The number of padding, and of columns that are not written."""
_SAME_ROWS = 2 * write_places(np.zeros(0, np.int64))
"""No row left, and none came."""


def write_rows(now: Array, before: Array, names: Sequence[str], key: str) -> bytes:
    """Return the change of these columns from `before` to `now`, structured arrays of one dtype, sorted by `key`.

    Rows are compared with those of the same key; new rows, with 0.
    """
    parts, base = [write_number(len(now))], before
    if np.array_equal(now[key], before[key]):
        parts.append(_SAME_ROWS)
    else:
        places = positions(now[key], before[key])
        if (np.diff(places[places >= 0]) <= 0).any():  # rows of one key, or in another order
            places[:] = -1
        is_kept, kept = places >= 0, places[places >= 0]
        left, came = np.delete(np.arange(len(before)), kept), np.flatnonzero(~is_kept)
        parts += [write_places(left), write_places(came)]
        base = np.zeros_like(now)
        base[is_kept] = before[kept]
    for number in _changed_columns(now, base, tuple(names)):
        column, earlier = now[names[number]], base[names[number]]
        parts += [bytes([number]), write_column(_numbers(column).ravel(), _numbers(earlier).ravel())]
    return b"".join([*parts, bytes([_LAST])])


def _changed_columns(now: Array, base: Array, names: tuple[str, ...]) -> list[int]:
    """Return the numbers of the columns whose bits differ. Most do not, so all are compared at once."""
    if not len(now):
        return []
    differ = (_bytes_of(now) != _bytes_of(base)).any(axis=0)
    return sorted(set(_columns_of_bytes(now.dtype, names)[differ].tolist()) - {_NO_COLUMN})


def _bytes_of(rows: Array) -> Array:
    """View rows as bytes, shape (n, size of a row)."""
    return np.ascontiguousarray(rows).view(np.uint8).reshape(len(rows), -1)


@lru_cache(256)
def _columns_of_bytes(dtype: np.dtype[Any], names: tuple[str, ...]) -> Array:
    """Return the number of the column to which each byte of a row belongs."""
    fields: Any = dtype.fields
    columns = np.full(dtype.itemsize, _NO_COLUMN)
    for number, name in enumerate(names):
        column, offset = fields[name][:2]
        columns[offset : offset + column.itemsize] = number
    return columns


def read_rows(content: Bytes, before: Array) -> Array:
    """Return the rows that `write_rows` has written, given the rows before; raise Damaged."""
    size = content.number()
    left, came = read_places(content, len(before)), read_places(content, size)
    if len(before) - len(left) != size - len(came):
        raise Damaged("rows are missing")
    now = np.zeros(size, before.dtype)
    is_kept = np.ones(size, bool)
    is_kept[came] = False
    now[is_kept] = np.delete(before, left)
    names = before.dtype.names or ()
    while (number := content.take(1)[0]) != _LAST:
        if number >= len(names):
            raise Damaged("there is no such column")
        column = now[names[number]]
        numbers = _numbers(column)
        numbers = read_column(content, numbers.ravel()).reshape(numbers.shape)
        column[:] = numbers.view(column.dtype.newbyteorder("="))
    return now


def _numbers(column: Array) -> Array:
    """Copy a column to unsigned integers, shape (n, …)."""
    native = column.astype(column.dtype.newbyteorder("="))
    return native.view(native.dtype.str.replace("f", "u").replace("i", "u"))
