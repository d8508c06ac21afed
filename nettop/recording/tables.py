# SPDX-License-Identifier: Apache-2.0
"""Tables of rows as bytes: which rows left, which came, and what changed in the others."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
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
from nettop.snapshots.arrays import Array, positions, replace_rows

ROWS_MAX = 1 << 27
"""Maximum bytes of all rows of a reading, in memory: some 400,000 connections."""
_NO_COLUMN = -1
"""The number of padding, and of columns that are not written."""
_SAME_ROWS = 2 * write_places(np.zeros(0, np.int64))
"""No row left, and none came."""
_NONE = 0xFF
"""Instead of a column's number: ends the list of changed columns, or says that a change is like no other."""


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
        left, came = np.delete(np.arange(len(before)), places[places >= 0]), np.flatnonzero(places < 0)
        parts += [write_places(left), write_places(came)]
        base = replace_rows(before, left, came)
    changes: dict[int, Array] = {}
    for number in _changed_columns(now, base, tuple(names)):
        change = (_numbers(now[names[number]]) - _numbers(base[names[number]])).ravel()
        if not change.any():
            continue
        like = _like(change, changes) if len(before) else _NONE
        parts += [bytes([number, like]), write_column(change, _expected(change, like, changes))]
        changes[number] = change
    return b"".join([*parts, bytes([_NONE])])


def _changed_columns(now: Array, base: Array, names: tuple[str, ...]) -> list[int]:
    """Return the numbers of the columns that may differ, because a word differs that has a part of them. Most do not,
    so all are compared at once."""
    differ = (_words_of(now) != _words_of(base)).any(axis=0)
    return sorted(set(_columns_of_words(now.dtype, names)[differ].ravel().tolist()) - {_NO_COLUMN})


def _words_of(rows: Array) -> Array:
    """View rows as numbers as wide as fit, shape (n, words of a row)."""
    width = _word_bytes(rows.dtype)
    return np.ascontiguousarray(rows).view(f"u{width}").reshape(len(rows), rows.dtype.itemsize // width)


def _word_bytes(dtype: np.dtype[Any]) -> int:
    return math.gcd(dtype.itemsize, 8)


@lru_cache(256)
def _columns_of_words(dtype: np.dtype[Any], names: tuple[str, ...]) -> Array:
    """Return the numbers of the columns to which the bytes of each word belong, shape (words, bytes of a word)."""
    fields: Any = dtype.fields
    columns = np.full(dtype.itemsize, _NO_COLUMN)
    for number, name in enumerate(names):
        column, offset = fields[name][:2]
        columns[offset : offset + column.itemsize] = number
    return columns.reshape(-1, _word_bytes(dtype))


def _like(change: Array, changes: Mapping[int, Array]) -> int:
    """Return the number of the column whose change differs from this one in the fewest rows, as bytes sent and bytes
    acknowledged do; _NONE if there is no change in more rows."""
    like, fewest = _NONE, np.count_nonzero(change)
    for number, other in changes.items():
        if (other.dtype, other.shape) == (change.dtype, change.shape):
            differing = np.count_nonzero(change != other)
            if differing < fewest:
                like, fewest = number, differing
    return like


def _expected(column: Array, like: int, changes: Mapping[int, Array]) -> Array:
    return np.zeros(len(column), column.dtype) if like == _NONE else changes[like]


def read_rows(content: Bytes, before: Array, room: int = ROWS_MAX) -> Array:
    """Return the rows that `write_rows` has written, given the rows before; raise Damaged, also if they have more
    than `room` bytes."""
    size = content.number()
    if size * before.dtype.itemsize > room:
        raise Damaged("it has more rows than it may")
    left, came = read_places(content, len(before)), read_places(content, size)
    if len(before) - len(left) != size - len(came):
        raise Damaged("rows are missing")
    now = replace_rows(before, left, came)
    names, changes = before.dtype.names or (), dict[int, Array]()
    while (number := content.take(1)[0]) != _NONE:
        if number >= len(names):
            raise Damaged("there is no such column")
        column, like = now[names[number]], content.take(1)[0]
        numbers = _numbers(column)
        change = read_column(content, _expected(numbers.ravel(), like, changes))
        changes[number] = change
        numbers += change.reshape(numbers.shape)
        column[:] = numbers.view(column.dtype.newbyteorder("="))
    return now


def _numbers(column: Array) -> Array:
    """Copy a column to unsigned integers, shape (n, …)."""
    native = column.astype(column.dtype.newbyteorder("="))
    return native.view(f"u{native.itemsize}")
