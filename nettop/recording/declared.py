# SPDX-License-Identifier: Apache-2.0
"""Columns as a recording declares them, so that another version of nettop can read them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from nettop.recording.numbers import Damaged
from nettop.snapshots.arrays import Array, positions
from nettop.snapshots.schema import BEGAN, FORMER_UNITS, Field, Kind, Table
from nettop.snapshots.snapshot import unknown_value

Declared = list[list[Any]]
"""Columns as JSON: name, dtype, numbers in a row (0: one), kind, unit and labels of each."""

_BEGAN = [BEGAN, "|u1", 0, "", "", {}]
_NUMBERS = frozenset(f"{order}{kind}{size}" for order in "<>|" for kind in "uif" for size in (1, 2, 4, 8))
_IN_ROW_MAX = 1 << 12
"""Maximum elements of an array column, such as histogram buckets."""


def declare(table: Table, dtype: np.dtype[Any]) -> Declared:
    """Return the declaration of a table's columns, as they are in rows of this dtype."""
    declared = [
        [name, *_shape(table.dtype[name]), field.kind.value, field.unit, _labels(field.labels)]
        for name in table.dtype.names or ()
        for field in (table.by_name[name],)
    ]
    return [*declared, _BEGAN] if BEGAN in (dtype.names or ()) else declared


def _shape(dtype: np.dtype[Any]) -> tuple[str, int]:
    return dtype.base.str, dtype.shape[0] if dtype.shape else 0


def _labels(labels: Mapping[int, str]) -> dict[str, str]:
    return {str(code): label for code, label in labels.items()}


def names_of(declared: Declared) -> tuple[str, ...]:
    """Return the names of declared columns."""
    return tuple(name for name, *_ in declared)


def dtype_of(declared: Declared) -> np.dtype[np.void]:
    """Return the dtype of rows with these columns; raise Damaged."""
    try:
        return np.dtype([_column(name, dtype, size) for name, dtype, size, *_ in declared], align=True)
    except (TypeError, ValueError) as error:
        raise Damaged("its columns are not declared as numbers") from error


def _column(name: str, dtype: str, size: int) -> tuple[str, str] | tuple[str, str, tuple[int]]:
    if dtype not in _NUMBERS or not 0 <= size <= _IN_ROW_MAX:
        raise ValueError(dtype, size)
    return (name, dtype, (size,)) if size else (name, dtype)


class Conversion:
    """The conversion of recorded rows to a table of this version.

    Columns that this version does not have, or has with another unit, are left out; `unread` names them. Those that
    the recording does not have are unknown. Without `has_key`, nothing tells the rows apart.
    """

    def __init__(self, table: Table, declared: Declared) -> None:
        columns = [(name, table.dtype[name]) for name in table.dtype.names or ()]
        recorded = dtype_of(declared)
        if BEGAN in (recorded.names or ()):
            columns.append((BEGAN, np.dtype("u1")))
        self._dtype = np.dtype(columns, align=True)
        self._copied: dict[str, tuple[str, Callable[[Array], Array]]] = {}
        self.unread: list[str] = []
        for name, _, _, kind, unit, labels in declared:
            field = table.by_name.get(table.current(name))
            if name == BEGAN:
                self._copied[name] = name, _as_it_is
            elif field is None or field.is_composite or not _fits(field, recorded[name], kind, unit):
                self.unread.append(name)
            else:
                self._copied[field.name] = name, _converter(field, recorded[name], labels)
        self._unknown = [name for name, _ in columns if name not in self._copied]
        self.has_key = table.key in self._copied
        self._is_same = (
            recorded == self._dtype
            and not self.unread
            and all(convert is _as_it_is for _, convert in self._copied.values())
        )

    def convert(self, rows: Array) -> Array:
        """Return recorded rows as rows of the table: the same ones, if they have the same columns."""
        if self._is_same:
            return rows
        converted = np.zeros(len(rows), self._dtype)
        for name, (in_recording, convert) in self._copied.items():
            converted[name] = convert(rows[in_recording])
        for name in self._unknown:
            converted[name] = unknown_value(self._dtype[name])
        return converted


def _fits(field: Field, recorded: np.dtype[Any], kind: str, unit: str) -> bool:
    """Return whether a recorded column is this field. A histogram with other buckets is another one."""
    return (field.kind.value, field.unit) == (
        kind,
        FORMER_UNITS.get(unit, unit),
    ) and recorded.shape == np.dtype(field.dtype).shape


def _converter(field: Field, recorded: np.dtype[Any], labels: dict[str, str]) -> Callable[[Array], Array]:
    """Return the conversion of a column: of its codes, of a number's width, or none."""
    wanted = np.dtype(field.dtype).base
    if field.kind is Kind.ENUM and labels != _labels(field.labels):
        return _renumbering(labels, field.labels, wanted)
    return _as_it_is if recorded.base == wanted else lambda column: _resized(column, wanted)


def _as_it_is(column: Array) -> Array:
    return column


def _renumbering(
    recorded: Mapping[str, str], labels: Mapping[int, str], wanted: np.dtype[Any]
) -> Callable[[Array], Array]:
    """Return the conversion of codes to those that have the same labels here; others become unknown."""
    code_of = {label: code for code, label in labels.items()}
    both = sorted((int(code), code_of[label]) for code, label in recorded.items() if label in code_of)
    theirs = np.array([code for code, _ in both], np.int64)
    ours = np.array([*(code for _, code in both), unknown_value(wanted)], wanted)
    return lambda column: ours[positions(column, theirs)]


def _resized(column: Array, wanted: np.dtype[Any]) -> Array:
    """Return numbers of another dtype; those that it cannot hold are unknown."""
    unknown = unknown_value(wanted)
    is_known = ~np.isnan(column) if column.dtype.kind == "f" else column != unknown_value(column.dtype)
    if wanted.kind != "f":
        most = float(unknown) if column.dtype.kind == "f" else unknown
        is_known &= (column >= np.iinfo(wanted).min) & (column < most)
    resized = np.full(column.shape, unknown, wanted)
    resized[is_known] = column[is_known].astype(wanted)
    return resized
