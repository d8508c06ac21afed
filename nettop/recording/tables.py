# SPDX-License-Identifier: Apache-2.0
"""Tables of rows as bytes: which rows left, which came, and what changed in the others."""

from __future__ import annotations

from collections.abc import Sequence

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
_UNSIGNED = {size: np.dtype(f"u{size}") for size in (1, 2, 4, 8)}


def write_rows(now: Array, before: Array, names: Sequence[str], key: str) -> bytes:
    """Return the change of these columns from `before` to `now`, structured arrays of one dtype, sorted by `key`.

    Rows are compared with those of the same key; new rows, with 0.
    """
    places = positions(now[key], before[key])
    if (np.diff(places[places >= 0]) <= 0).any():  # rows of one key, or in another order
        places[:] = -1
    is_kept, kept = places >= 0, places[places >= 0]
    left, came = np.delete(np.arange(len(before)), kept), np.flatnonzero(~is_kept)
    parts = [write_number(len(now)), write_places(left), write_places(came)]
    base = before
    if len(left) or len(came):
        base = np.zeros_like(now)
        base[is_kept] = before[kept]
    for number, name in enumerate(names if len(now) else ()):
        column, earlier = now[name], base[name]
        if not np.array_equal(_bits(column), _bits(earlier)):  # most are equal, and this is quick
            change = write_column(_numbers(column).ravel(), _numbers(earlier).ravel())
            parts += [bytes([number]), change]
    return b"".join([*parts, bytes([_LAST])])


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


def _bits(column: Array) -> Array:
    """View a column as unsigned integers, whatever their byte order: to compare it."""
    return column.view(_UNSIGNED[column.dtype.itemsize])


def _numbers(column: Array) -> Array:
    """Copy a column to unsigned integers, shape (n, …)."""
    native = column.astype(column.dtype.newbyteorder("="))
    return native.view(native.dtype.str.replace("f", "u").replace("i", "u"))
