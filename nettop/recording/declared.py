# SPDX-License-Identifier: Apache-2.0
"""Columns as a recording declares them, so that another version of nettop can read them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from nettop.recording.numbers import Damaged
from nettop.snapshots.arrays import Array
from nettop.snapshots.schema import BEGAN, Kind, Table
from nettop.snapshots.snapshot import known, unknown_value

Declared = list[list[Any]]
"""Columns as JSON: name, dtype, numbers in a row (0: one), kind, unit and labels of each."""

_BEGAN = [BEGAN, "|u1", 0, "", "", {}]


def declare(table: Table, dtype: np.dtype[Any]) -> Declared:
    """Return the declaration of a table's columns, as they are in rows of this dtype."""
    declared = [
        [field.name, *_shape(table.dtype[field.name]), field.kind.value, field.unit, _labels(field.labels)]
        for field in sorted(table.stored, key=lambda field: field.name)
    ]
    return [*declared, _BEGAN] if BEGAN in (dtype.names or ()) else declared


def _shape(dtype: np.dtype[Any]) -> tuple[str, int]:
    return dtype.base.str, dtype.shape[0] if dtype.shape else 0


def _labels(labels: Any) -> dict[str, str]:
    return {str(code): label for code, label in labels.items()}


def dtype_of(declared: Declared) -> np.dtype[np.void]:
    """Return the dtype of rows with these columns; raise Damaged."""
    try:
        return np.dtype(
            [(name, dtype, size) if size else (name, dtype) for name, dtype, size, *_ in declared]
        )
    except (TypeError, ValueError) as error:
        raise Damaged("its columns are not declared as numbers") from error


class Conversion:
    """The conversion of recorded rows to a table of this version.

    Columns that this version does not have, or has with another unit, are left out; `unread` names them. Those that
    the recording does not have are unknown.
    """

    def __init__(self, table: Table, declared: Declared) -> None:
        began = [(BEGAN, np.dtype("u1"))] if any(name == BEGAN for name, *_ in declared) else []
        self._dtype = np.dtype(
            [*((name, table.dtype[name]) for name in table.dtype.names or ()), *began], align=True
        )
        self._copied: list[tuple[str, Callable[[Array], Array]]] = []
        self.unread: list[str] = []
        for name, dtype, size, kind, unit, labels in declared:
            field = table.by_name.get(name)
            if name == BEGAN or (
                field and (field.kind.value, field.unit) == (kind, unit) and self._fits(name, size)
            ):
                renumber = (
                    None
                    if field is None or field.kind is not Kind.ENUM
                    else _renumbering(labels, field.labels)
                )
                self._copied.append((name, _converter(np.dtype(dtype), self._dtype[name], renumber)))
            else:
                self.unread.append(name)
        self._unknown = set(self._dtype.names or ()) - {name for name, _ in self._copied}

    def _fits(self, name: str, size: int) -> bool:
        """Return whether a column has as many numbers in a row; a histogram with other buckets has not."""
        return _shape(self._dtype[name])[1] == size

    def convert(self, rows: Array) -> Array:
        """Return these rows as rows of the table."""
        converted = np.zeros(len(rows), self._dtype)
        for name, convert in self._copied:
            converted[name] = convert(rows[name])
        for name in self._unknown:
            converted[name] = unknown_value(self._dtype[name])
        return converted


def _renumbering(recorded: dict[str, str], labels: Any) -> dict[int, int] | None:
    """Return the codes of this version by those of the recording; None if they are the same."""
    if recorded == _labels(labels):
        return None
    code_of = {label: code for code, label in labels.items()}
    return {int(code): code_of[label] for code, label in recorded.items() if label in code_of}


def _converter(
    recorded: np.dtype[Any], wanted: np.dtype[Any], codes: dict[int, int] | None
) -> Callable[[Array], Array]:
    """Return the conversion of a column: of its codes, of a number's width, or none."""
    if codes is not None:
        return lambda column: np.array(
            [codes.get(int(code), unknown_value(wanted)) for code in column], wanted.base
        )
    if recorded == wanted.base:
        return lambda column: column
    most = unknown_value(wanted)

    def widen(column: Array) -> Array:
        fits = known(column) & ~(column >= most)  # nothing is greater than NaN
        return np.where(fits, column, most)

    return widen


def names_of(declared: Declared) -> Sequence[str]:
    """Return the names of declared columns."""
    return [name for name, *_ in declared]
