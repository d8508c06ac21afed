# SPDX-License-Identifier: Apache-2.0
"""Rows of a snapshot as Python values."""

from __future__ import annotations

from typing import Any, TypeAlias

from nettop.snapshots.arrays import Mask
from nettop.snapshots.schema import Kind
from nettop.snapshots.snapshot import Rows, known

Row: TypeAlias = dict[str, Any]


def rows_of(rows: Rows, keep: Mask) -> list[Row]:
    """Convert these rows to Python values: text as str, None for unknown."""
    kept = rows.array[keep]
    columns: dict[str, list[Any]] = {}
    for field in rows.table.stored:
        if field.kind is Kind.ADDRESS:
            continue
        values = kept[field.name]
        texts = rows.texts.get(field.name)
        columns[field.name] = [
            None if not is_known else value if texts is None else texts[value]
            for value, is_known in zip(values.tolist(), known(values), strict=True)
        ]
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
