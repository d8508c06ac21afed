# SPDX-License-Identifier: Apache-2.0
"""Tables of rows as bytes: which rows left, which came, and what changed in the others."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NamedTuple

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
_SAME_ROWS = 2 * write_places(np.zeros(0, np.int64))
"""No row left, and none came."""
_NONE = 0xFF
"""Instead of a column's number: ends the list of changed columns, or says that a change is like no other."""


def write_rows(now: Array, before: Array, names: tuple[str, ...], key: str) -> bytes:
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
        left, came = np.delete(np.arange(len(before)), places[places >= 0]), (places < 0).nonzero()[0]
        parts += [write_places(left), write_places(came)]
        base = replace_rows(before, left, came)
    changes: dict[int, _ColumnChange] = {}
    for number in _changed_columns(now, base, names):
        numbers = (_numbers(now[names[number]]) - _numbers(base[names[number]])).ravel()
        change = _ColumnChange(numbers, np.count_nonzero(numbers))
        if not change.rows:
            continue
        like = _like(change, changes) if len(before) else _NONE
        unlike = numbers if like == _NONE else numbers - changes[like].numbers
        parts += [bytes([number, like]), write_column(unlike)]
        changes[number] = change
    return b"".join([*parts, bytes([_NONE])])


def _changed_columns(now: Array, base: Array, names: tuple[str, ...]) -> list[int]:
    """Return the numbers of the columns that may differ, because a word differs that has a part of them. Most do not,
    so all are compared at once."""
    differ = (_words_of(now) != _words_of(base)).any(axis=0)
    columns = _columns_of_words(now.dtype, names)
    return sorted({number for word in differ.nonzero()[0].tolist() for number in columns[word]})


def _words_of(rows: Array) -> Array:
    """View rows as numbers as wide as fit, shape (n, words of a row)."""
    width = _word_bytes(rows.dtype)
    return np.ascontiguousarray(rows).view(f"u{width}").reshape(len(rows), rows.dtype.itemsize // width)


def _word_bytes(dtype: np.dtype[Any]) -> int:
    return math.gcd(dtype.itemsize, 8)


@lru_cache(256)
def _columns_of_words(dtype: np.dtype[Any], names: tuple[str, ...]) -> list[list[int]]:
    """Return the numbers of the columns that each word has a part of."""
    fields: Any = dtype.fields
    width = _word_bytes(dtype)
    columns: list[list[int]] = [[] for _ in range(dtype.itemsize // width)]
    for number, name in enumerate(names):
        column, offset = fields[name][:2]
        for word in range(offset // width, -(-(offset + column.itemsize) // width)):
            columns[word].append(number)
    return columns


class _ColumnChange(NamedTuple):
    """How a column changed, and in how many rows."""

    numbers: Array
    rows: int


def _like(change: _ColumnChange, changes: Mapping[int, _ColumnChange]) -> int:
    """Return the number of the column whose change differs from this one in the fewest rows, as bytes sent and bytes
    acknowledged do; _NONE if there is no change in more rows."""
    like, fewest, numbers = _NONE, change.rows, change.numbers
    for number, other in changes.items():
        # Where only one of them changed, they differ, so most columns need not be compared.
        if abs(other.rows - change.rows) >= fewest:
            continue
        if (other.numbers.dtype, other.numbers.shape) == (numbers.dtype, numbers.shape):
            differing = np.count_nonzero(numbers != other.numbers)
            if differing < fewest:
                like, fewest = number, differing
    return like


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
        same = np.zeros(numbers.size, numbers.dtype) if like == _NONE else changes[like]
        changes[number] = read_column(content, same)
        numbers = numbers + changes[number].reshape(numbers.shape)
        column[:] = numbers.view(column.dtype.newbyteorder("="))
    return now


def _numbers(column: Array) -> Array:
    """View a column as unsigned integers, shape (n, …); it is copied if its bytes are in the other order."""
    native = column if column.dtype.isnative else column.astype(column.dtype.newbyteorder("="))
    return native.view(f"u{native.itemsize}")
